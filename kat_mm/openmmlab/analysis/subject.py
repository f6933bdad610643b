"""What is analysed, and how: a model, its run, its start and its images."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ...analysis.start import known_start
from ...checks import check_indices
from ...errors import DataError, UserError
from . import images, models

# Shows the progress of a number of steps: progress(what, how many) as what moves it by one.
Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


@dataclass
class Subject:
    """What is analysed, and how.

    Attributes:
        config: of the model.
        checkpoint: its weights.
        model: with these weights, in evaluation mode.
        device: where it is.
        out: folder for the pictures.
        progress: shows progress.
        notes: what could not be done, by analysis, in a line each.
        blocks, heads: which are drawn, all by default.
        queries: (y, x) of the tokens whose weights are drawn, as fractions of the image.
        image: number or path of the first image.
        num_images: for the spectra.
        batches: for the losses.
        points: along each side of the landscape.
        start: a checkpoint of the start; drawn again from the seed without.
    """

    config: Config
    checkpoint: Path
    model: nn.Module
    device: torch.device
    out: Path
    progress: Progress
    blocks: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    queries: Sequence[tuple[float, float]] = ((0.25, 0.25), (0.5, 0.5), (0.75, 0.75))
    image: str = '0'
    num_images: int = 4
    batches: int = 4
    points: int = 21
    start: str | None = None
    notes: dict[str, str] = field(default_factory=dict)
    scores_within: dict[str, float] = field(default_factory=dict)  # by name of the attention

    _mistake: str | None = field(default=None, init=False)

    @cached_property
    def samples(self) -> list[dict]:
        return images.validation_images(self.config, self.image, self.num_images)

    @cached_property
    def first_image(self) -> images.Image:
        return images.look_at(self.model, self.samples[0])

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu() for name, value in self.model.state_dict().items()}

    @cached_property
    def run(self) -> list[models.Saved]:
        """The checkpoints of the run up to this one."""
        return models.path_of_training(self.checkpoint)

    @cached_property
    def earliest_weights(self) -> dict[str, Tensor]:
        try:
            return models.load_states(self.model, self.run[:1])[0]
        except DataError:  # the folder has checkpoints of another run
            return self.weights

    @cached_property
    def start_weights(self) -> dict[str, Tensor] | None:
        """The weights at the start as far as anything tells them; see `known_start`."""
        if self.start is None:
            try:
                return models.redraw(self.config, self.checkpoint, self.device)
            except UserError as error:  # such as for pretrained weights that are gone
                self._mistake = str(error)
                return None
        file = models.Saved(0, models.find_checkpoint(self.start))
        return models.load_states(self.model, [file])[0]

    def known_start(self, groups: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """Returns the parameters of these groups whose start is known.

        What was drawn again is compared with the earliest checkpoint of the run, which has most in
        common with its start.
        """
        weights = self.start_weights
        if weights is None or self.start is not None:
            return weights or {}
        return known_start(weights, self.earliest_weights, groups)

    def no_start(self, of: str) -> str:
        """Returns why something has no start, in a line."""
        if self.start_weights is None:
            reason = self._mistake or 'the checkpoint tells no seed'
        else:
            reason = "its seed draws here and now what the run's checkpoints do not descend from"
        return f'no start of {of}: {reason}; --start CHECKPOINT names one'

    def chosen(self, count: int, which: Sequence[int] | None, option: str, of: str) -> list[int]:
        return list(check_indices(option, which, count, of, range(count)))

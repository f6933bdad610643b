"""The analyses of a trained model: each writes pictures to a folder and returns its numbers."""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ...analysis import landscape, parameters, spectra, units
from ...analysis.start import known_start
from ...checks import check_indices
from ...errors import ConfigError
from . import images, models
from .losses import BatchLosses, training_batches

# Shows the progress of a number of steps: progress(what, how many) as what moves it by one.
Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
LIMIT = 4.0  # of the scores, where none were seen
DRAWN = 8.0  # limit of the scores that functions are drawn for


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
        return models.load_states(self.model, self.run[:1])[0]

    @cached_property
    def start_weights(self) -> dict[str, Tensor] | None:
        """The weights at the start as far as anything tells them; see `known_start`."""
        if self.start is None:
            return models.redraw(self.config, self.checkpoint, self.device)
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
            reason = 'the checkpoint tells no seed'
        else:
            reason = "its seed draws here and now what the run's checkpoints do not descend from"
        return f'no start of {of}: {reason}; --start CHECKPOINT names one'

    def chosen(self, count: int, which: Sequence[int] | None, option: str, of: str) -> list[int]:
        return list(check_indices(option, which, count, of, range(count)))


def attention(subject: Subject) -> dict:
    """Draws what some tokens of an image attend to, in a picture for each block."""
    from ...analysis.plot_attention import plot_attention

    image = subject.first_image
    height, width = image.picture.shape[:2]
    blocks = subject.chosen(len(image.seen), subject.blocks, '--blocks', 'blocks with attention')
    numbers = {'image': image.name, 'blocks': {}}
    with subject.progress('attention maps', len(blocks)) as advance:
        for block in blocks:
            seen = image.seen[block]
            size = image.token_size(seen.grid)
            tokens = [(int(y * height) // size, int(x * width) // size) for y, x in subject.queries]
            heads = subject.chosen(seen.attention.num_heads, subject.heads, '--heads', 'heads')
            rows = seen.rows(tokens)[:, heads].cpu()
            kind = 'global' if seen.windows is None else f'windows of {seen.windows.key[2]}'
            title = f'Attention of block {block}: {seen.label}, {kind}'
            png = subject.out / f'attention_block{block}.png'
            plot_attention(png, title, image.picture, size, tokens, rows, heads)
            count = rows.isfinite().sum((2, 3), keepdim=True)
            flat = (rows * count).nan_to_num().flatten(2)
            numbers['blocks'][block] = {
                'name': seen.name,
                'tokens': tokens,
                'heads': heads,
                'most_times_N': flat.amax(2).tolist(),
                'least_times_N': flat.amin(2).tolist(),
            }
            advance()
    return numbers


def singular_values(subject: Subject) -> dict:
    """Decomposes the matrices of all blocks over some images."""
    from ...analysis.plot_spectra import plot_effective_ranks, plot_singular_values

    count = len(subject.first_image.seen)
    blocks = [spectra.BlockSpectra() for _ in range(count)]
    kinds = len(spectra.MATRICES)
    with subject.progress('singular values', len(subject.samples) * count * kinds) as advance:
        for i, sample in enumerate(subject.samples):
            image = subject.first_image if i == 0 else images.look_at(subject.model, sample)
            for block, seen in zip(blocks, image.seen, strict=True):
                block.add(seen, advance)
    summaries = [block.summary() for block in blocks]
    for block, summary in zip(blocks, summaries, strict=True):
        name, within = summary['name'], subject.scores_within
        within[name] = max(block.scores_within(), within.get(name, 0.0))
    kind = ' and '.join(dict.fromkeys(s['attention'] for s in summaries))
    many = f'{len(subject.samples)} images' if len(subject.samples) > 1 else 'one image'
    plot_effective_ranks(
        subject.out / 'effective_rank.png', summaries, f'Effective rank of {kind}, {many}'
    )
    plot_singular_values(
        subject.out / 'singular_values.png',
        [block.curves() for block in blocks],
        [
            f'block {i}' + (f', windows of {s["window"][0]}' if s['window'] else '')
            for i, s in enumerate(summaries)
        ],
        f'Singular values of {kind}: median and middle 80% over heads and {many}',
    )
    definition = 'exp(entropy of s / sum(s)), Roy and Vetterli, EUSIPCO 2007'
    return {'images': len(subject.samples), 'definition': definition, 'blocks': summaries}


def learned_units(subject: Subject) -> dict:
    """Draws the functions of KArAt that changed most and middling, against their start."""
    from ...analysis.plot_units import Curves, plot_units

    layers = dict(units.unit_layers(subject.model))
    if not layers:
        raise ConfigError(f'{type(subject.model).__name__} has no learnable functions of KArAt')
    groups = [[f'{name}.{k}' for k, _ in m.named_parameters()] for name, m in layers.items()]
    known = subject.known_start(groups)
    if not all(key in known for group in groups for key in group):
        subject.notes['units'] = subject.no_start('the functions')
        known = {}
    x = torch.linspace(-DRAWN, DRAWN, units.POINTS, dtype=torch.float64)
    rows, numbers = [], {}
    with subject.progress('units', len(layers)) as advance:
        for i, (name, layer) in enumerate(layers.items()):
            begun = units.layer_with(layer, name, known) if known else None
            within = subject.scores_within.get(name.partition('.operator.')[0])
            if _takes_others(subject.model, name):
                within = None
            change = units.unit_change(layer, begun, within or LIMIT)
            numbers[name] = {'limit': within or LIMIT, **change.summary()}
            label = _block_label(name)
            heads = subject.chosen(change.size.shape[0], subject.heads, '--heads', 'heads')
            row = []
            for head in heads:
                order = change.by_change(head)
                picked = order[[0, len(order) // 2]]
                learned = units.evaluate_units(layer, x, head, picked).cpu()
                before = None
                if begun is not None:
                    before = units.evaluate_units(begun, x, head, picked).cpu()
                labels = ('changed most', 'median change') if known else ('largest', 'median size')
                row.append(Curves(f'{label}, head {head}', labels, learned, before, within))
            rows.append((i, row))
            advance()
    shown = [row for i, row in rows if subject.blocks is None or i in subject.blocks] or [
        rows[0][1]
    ]
    plot_units(
        subject.out / 'units.png',
        x,
        shown,
        'Learned functions of the scores' + (' and their start' if known else ''),
    )
    return {'has_start': bool(known), 'layers': numbers}


def _takes_others(model: nn.Module, name: str) -> bool:
    """Tells whether functions take something else than scores."""
    operator = model.get_submodule(name.rpartition('.')[0])
    return name.endswith('.units2') or getattr(operator, 'form', None) == 'phi_w'


def _block_label(name: str) -> str:
    found = re.search(r'blocks\.(\d+)\.', name)
    second = ', Φ2' if name.endswith('.units2') else ''
    return (f'block {found[1]}' if found else name) + second


def histograms(subject: Subject) -> dict:
    """Draws histograms of all parameters by kind."""
    from ...analysis.plot_parameters import Kind, plot_histograms

    kinds = parameters.kinds(subject.model)
    known = subject.known_start(list(kinds.values()))
    unknown = [kind for kind, names in kinds.items() if any(name not in known for name in names)]
    if unknown:
        which = 'the parameters' if len(unknown) == len(kinds) else ', '.join(unknown)
        subject.notes['histograms'] = subject.no_start(which)
    drawn, numbers = [], {}
    for kind, values, before, described in parameters.by_kind(
        subject.model, subject.weights, known
    ):
        drawn.append(Kind(kind, values, before))
        numbers[kind] = described
    plot_histograms(subject.out / 'histograms.png', drawn, 'Parameters by kind')
    return {'kinds': numbers}


def loss_landscape(subject: Subject) -> dict:
    """Computes the loss around the path of training, on the plane that holds most of it."""
    from ...analysis.plot_landscape import plot_landscape

    model, points = subject.model, subject.points
    files = list(subject.run)
    models.check_spans_plane(files)
    states = models.load_states(model, files)
    names = [name for name, _ in model.named_parameters()]
    begun = subject.known_start(list(parameters.kinds(model).values()))
    if files[0].iteration > 0 and all(name in begun for name in names):
        files.insert(0, models.Saved(0, Path('start')))
        states.insert(0, begun)
    plane = landscape.principal_plane(states, names, subject.device)
    loss = BatchLosses(model, training_batches(subject.config, subject.batches))
    final = {'loss': loss(), 'loss_with_own_statistics': loss.with_own_statistics()}
    axes = plane.axes(points)
    along, projected = [], []
    with subject.progress('loss landscape', points**2 + 2 * len(files)) as advance:
        for state, (a, b) in zip(states, plane.path.tolist(), strict=True):
            landscape.set_parameters(model, state)
            along.append(loss())
            advance()
            landscape.set_parameters(model, plane.point(a, b))
            projected.append(loss())
            advance()
        losses = landscape.grid_losses(model, plane, axes, loss, advance)
    plot_landscape(
        subject.out / 'landscape.png',
        axes,
        losses,
        plane.path,
        [step for step, _ in files],
        plane.variance,
        'Loss around the path of training',
    )
    return {
        'batches': len(loss.batches),
        'mode': 'evaluation; batch norms with statistics of these batches at each point',
        'batch_norms': len(landscape.batch_norms(model)),
        'final': final,
        'variance': plane.variance,
        'axes': [axis.tolist() for axis in axes],
        'losses': losses.tolist(),
        'path': [
            {
                'iteration': step,
                'checkpoint': path.name,
                'place': place,
                'distance_to_plane': distance,
                'loss': one,
                'loss_of_projection': other,
            }
            for (step, path), place, distance, one, other in zip(
                files,
                plane.path.tolist(),
                plane.distances.tolist(),
                along,
                projected,
                strict=True,
            )
        ],
    }


ANALYSES: dict[str, Callable[[Subject], dict]] = {
    'attention': attention,
    'spectra': singular_values,
    'units': learned_units,
    'histograms': histograms,
    'landscape': loss_landscape,
}
DATA = {'attention': 'test', 'spectra': 'test', 'landscape': 'train'}  # split that each reads

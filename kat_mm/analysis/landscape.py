"""The loss on the plane of parameters that a training path mostly lies in.

As Li et al., Visualizing the loss landscape of neural nets (arXiv 1712.09913, section 7), draw
training paths: the plane goes through the last checkpoint along the two principal directions of all
checkpoints, to which the path is projected.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import DataError

LEAST = 3  # checkpoints in which two directions can lie
FLAT = 1e-12  # share of the variance below which a direction is rounding
MARGIN = 0.3  # beside the path, of its extent


class Plane(NamedTuple):
    """Points centre + a d1 + b d2 of the space of parameters.

    Attributes:
        centre: parameters of the last checkpoint, by name.
        directions: d1 and d2, of length 1 each over all parameters, at right angles.
        path: (a, b) of each checkpoint's projection, [checkpoints, 2]; the last is (0, 0).
        variance: shares of the path's variance that lie along d1 and d2.
        distances: of each checkpoint to the plane, [checkpoints].
    """

    centre: dict[str, Tensor]
    directions: tuple[dict[str, Tensor], dict[str, Tensor]]
    path: Tensor
    variance: tuple[float, float]
    distances: Tensor

    def point(self, a: float, b: float) -> dict[str, Tensor]:
        """Returns the parameters at a point; (0, 0) is the last checkpoint bit for bit."""
        first, second = self.directions
        return {k: c + a * first[k] + b * second[k] for k, c in self.centre.items()}

    def axes(self, points: int) -> tuple[Tensor, Tensor]:
        """Returns the coordinates a and b of a grid around the path, one of each exactly 0."""
        axes = []
        for along in self.path.unbind(1):
            low, high = along.min().item(), along.max().item()
            margin = MARGIN * (high - low)
            axis = torch.linspace(low - margin, high + margin, points, dtype=torch.float64)
            axes.append(axis - axis[axis.abs().argmin()])
        return axes[0], axes[1]


def principal_plane(
    checkpoints: Sequence[Mapping[str, Tensor]],
    names: Sequence[str],
    device: torch.device | str = 'cpu',
) -> Plane:
    """Finds the plane of a training path by principal component analysis of its checkpoints.

    Only products of the checkpoints are decomposed, [checkpoints, checkpoints], and parameters are
    read one after the other: checkpoints may stay in their files.

    Args:
        checkpoints: weights in the order of the path.
        names: of the parameters that span the space; no statistics of norms.
        device: of the plane.

    Raises:
        DataError: for fewer than three checkpoints, or more that lie on a line.
    """
    count = len(checkpoints)
    if count < LEAST:
        raise DataError(f'{count} checkpoints span no plane: there must be at least {LEAST}')
    gram = torch.zeros(count, count, dtype=torch.float64)
    for name in names:
        steps = _steps(checkpoints, name)
        gram += steps @ steps.T
    centred = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
    values, vectors = torch.linalg.eigh(centred)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)[:, :2]
    if not values[1] > FLAT * values[0]:
        raise DataError(
            f'the {count} checkpoints lie on a line, or are all the same: they span no plane'
        )
    # d = X^T u / sqrt(lambda), with rows x_i of steps from the last checkpoint, as u sums to zero.
    vectors = vectors / values[:2].sqrt()
    path = gram @ vectors
    signs = torch.where(path[0] < 0, -1.0, 1.0)  # the path comes from the right and the top
    vectors, path = vectors * signs, path * signs
    directions = ({}, {})
    for name in names:
        both = _steps(checkpoints, name).T @ vectors
        like = checkpoints[-1][name]
        for direction, values_of in zip(directions, both.unbind(1), strict=True):
            direction[name] = values_of.view(like.shape).to(device, like.dtype)
    return Plane(
        {name: checkpoints[-1][name].to(device) for name in names},
        directions,
        path,
        tuple((values[:2] / values.sum()).tolist()),
        (gram.diagonal() - path.square().sum(1)).clamp(min=0).sqrt(),
    )


def _steps(checkpoints: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    """Returns the differences of a parameter to the last checkpoint, [checkpoints, entries]."""
    last = checkpoints[-1][name].double().flatten()
    return torch.stack([c[name].double().flatten() - last for c in checkpoints])


@torch.no_grad()
def set_parameters(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copies values to the parameters of these names."""
    for name, parameter in model.named_parameters():
        if name in values:
            parameter.copy_(values[name])


def grid_losses(
    model: nn.Module,
    plane: Plane,
    axes: tuple[Tensor, Tensor],
    loss: Callable[[], float],
    on_point: Callable[[], object] = lambda: None,
) -> Tensor:
    """Computes the loss at all points of a grid, [len(a), len(b)]; the model ends at (0, 0).

    Args:
        model: what has the parameters.
        plane: the plane.
        axes: coordinates a and b.
        loss: computes the loss of the model as it is.
        on_point: called after each point, to show progress.
    """
    losses = torch.full((len(axes[0]), len(axes[1])), torch.nan, dtype=torch.float64)
    for i, a in enumerate(axes[0].tolist()):
        for j, b in enumerate(axes[1].tolist()):
            set_parameters(model, plane.point(a, b))
            losses[i, j] = loss()
            on_point()
    set_parameters(model, plane.point(0.0, 0.0))
    return losses


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Returns the layers of a model that keep statistics of batches."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


@contextmanager
def fresh_statistics(model: nn.Module, run: Callable[[], object]) -> Iterator[None]:
    """Gives batch norms the statistics of what `run` runs, for as long as the context lasts.

    Statistics of a checkpoint belong to its weights: elsewhere on the plane, other weights give
    other activations, and the loss with old statistics would say nothing of them. So they are
    computed anew at each point, as means over the batches (Izmailov et al., Averaging weights leads
    to wider optima, arXiv 1803.05407, section 3.2). All else stays in its mode. Without
    batch norms nothing runs.
    """
    norms = batch_norms(model)
    kept = [({k: v.clone() for k, v in m.named_buffers()}, m.momentum, m.training) for m in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True  # a plain mean over the batches
        if norms:
            run()
        for norm, (_, _, training) in zip(norms, kept, strict=True):
            norm.training = training
        yield
    finally:
        for norm, (buffers, momentum, training) in zip(norms, kept, strict=True):
            norm.load_state_dict(buffers, strict=False)
            norm.momentum, norm.training = momentum, training

"""The plane of a training path and losses on it, against numpy and formulas."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from kat_mm.analysis.landscape import (
    batch_norms,
    fresh_statistics,
    grid_losses,
    principal_plane,
    set_parameters,
)
from kat_mm.errors import DataError


def path(count=8, noise=0.0):
    """Checkpoints of two parameters on a known plane, with a little beside it."""
    torch.manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(14, 2, dtype=torch.float64))
    t = torch.linspace(1, 0, count, dtype=torch.float64)
    places = torch.stack([5 * t, (3 * t).sin()], 1)
    points = torch.randn(14, dtype=torch.float64) + places @ basis.T
    points = points + noise * torch.randn(count, 14, dtype=torch.float64)
    return [{'a': p[:6].view(2, 3), 'b': p[6:], 'mean': torch.zeros(1)} for p in points], basis


def flat(parameters):
    return torch.cat([parameters['a'].flatten(), parameters['b']])


@pytest.mark.parametrize('noise', [0.0, 0.05])
def test_directions_are_those_of_numpy(noise):
    checkpoints, basis = path(noise=noise)
    plane = principal_plane(checkpoints, ['a', 'b'])
    matrix = np.stack([flat(c).numpy() for c in checkpoints])
    _, s, rows = np.linalg.svd(matrix - matrix.mean(0), full_matrices=False)
    found = torch.stack([flat(d) for d in plane.directions])
    torch.testing.assert_close(found @ found.T, torch.eye(2, dtype=torch.float64))
    for direction, row in zip(found.numpy(), rows, strict=False):
        assert abs(direction @ row) == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(plane.variance, (s**2 / (s**2).sum())[:2])
    if not noise:  # they span the plane that the path was made on
        torch.testing.assert_close(found @ basis @ basis.T, found)
    steps = torch.from_numpy(matrix - matrix[-1])
    torch.testing.assert_close(plane.path, steps @ found.T)
    beside = steps - steps @ found.T @ found
    torch.testing.assert_close(plane.distances, beside.norm(dim=1), atol=1e-6, rtol=1e-6)
    assert (plane.path[0] > 0).all()


def test_the_middle_is_the_last_checkpoint_bit_for_bit():
    checkpoints = [{k: v.float() for k, v in c.items()} for c in path(noise=0.1)[0]]
    plane = principal_plane(checkpoints, ['a', 'b'])
    assert plane.path[-1].tolist() == [0, 0]
    for name, value in plane.point(0.0, 0.0).items():
        assert torch.equal(value, checkpoints[-1][name])
    for axis, along in zip(plane.axes(9), plane.path.unbind(1), strict=True):
        assert (axis == 0).any()
        torch.testing.assert_close(axis.diff(), axis.diff()[:1].expand(8))
        assert axis.max() >= along.max()
        assert axis.min() <= along.min()


def test_points_of_the_plane_are_the_checkpoints_that_lie_on_it():
    checkpoints, _ = path()
    plane = principal_plane(checkpoints, ['a', 'b'])
    for checkpoint, (a, b) in zip(checkpoints, plane.path.tolist(), strict=True):
        torch.testing.assert_close(flat(plane.point(a, b)), flat(checkpoint))


def test_paths_that_span_no_plane():
    checkpoints, _ = path()
    with pytest.raises(DataError, match='2 checkpoints span no plane: there must be at least 3'):
        principal_plane(checkpoints[:2], ['a', 'b'])
    line = [{'a': torch.full((3,), float(i))} for i in range(4)]
    for same in (line, line[:1] * 4):
        with pytest.raises(DataError, match='the 4 checkpoints lie on a line, or are all the same'):
            principal_plane(same, ['a'])


def test_losses_of_a_grid_are_those_of_the_formula():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
            self.b = nn.Parameter(torch.zeros(8, dtype=torch.float64))

        def loss(self):
            with torch.no_grad():
                return (self.a.square().sum() + (self.b - 1).abs().sum()).item()

    checkpoints, _ = path(noise=0.1)
    plane, model, calls = principal_plane(checkpoints, ['a', 'b']), Model(), []
    axes = plane.axes(5)
    losses = grid_losses(model, plane, axes, model.loss, lambda: calls.append(None))
    assert len(calls) == 25
    for i, a in enumerate(axes[0].tolist()):
        for j, b in enumerate(axes[1].tolist()):
            p = plane.point(a, b)
            wanted = p['a'].square().sum() + (p['b'] - 1).abs().sum()
            assert losses[i, j].item() == pytest.approx(wanted.item())
    set_parameters(model, checkpoints[-1])
    last = model.loss()
    at_last = losses[(axes[0] == 0).nonzero().item(), (axes[1] == 0).nonzero().item()]
    assert at_last.item() == pytest.approx(last, abs=1e-6)


def test_statistics_of_batch_norms_are_computed_anew_and_put_back():
    torch.manual_seed(0)

    def network():
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)),
            *(nn.BatchNorm2d(4), nn.Dropout(0.5), nn.BatchNorm2d(4, track_running_stats=False)),
        )

    model, other = network(), network()
    batches = list(torch.randn(3, 5, 3, 4, 4))
    model.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    # torch's own function runs all of the model in training mode; dropout comes last.
    update_bn(batches, other)

    def run():
        with torch.no_grad():
            for batch in batches:
                model(batch)

    assert len(batch_norms(model)) == 2
    with fresh_statistics(model, run):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, other.state_dict()[name])
        assert not any(module.training for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert model[1].momentum == 0.1
    with pytest.raises(ZeroDivisionError), fresh_statistics(model, lambda: 1 / 0):
        pass
    assert not any(module.training for module in model.modules())
    assert model[1].momentum == 0.1


def test_without_batch_norms_nothing_runs():
    with fresh_statistics(nn.Sequential(nn.LayerNorm(2), nn.InstanceNorm1d(2)), pytest.fail):
        pass

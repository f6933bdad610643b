"""The matrix W of a fitted operator, fitted again to the outputs of attention themselves."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..attention.operator import Operator
from .operators import features

LARGEST = 4096  # unknowns of a head
RIDGES = (10.0, 1.0, 1e-1, 1e-2, 1e-3)


def can_refit(operator: Operator) -> bool:
    """Tells whether an operator has a W, and of a size for which the system can be solved."""
    return operator.form == 'w_phi' and operator.weight[0].numel() <= LARGEST


class OutputMoments:
    """Sums that the least squares problem of W takes, for each head, in fp64.

    The output of a row is V^T W z, with z = Phi(s): linear in W. With V and z of each image, sums
    are those of (V V^T) x (z z^T), of V o z^T for the output o wanted, and of |o|^2.
    """

    def __init__(self, operator: Operator):
        self.operator = operator
        heads, count, rank = operator.weight.shape
        zeros = dict(dtype=torch.float64, device=operator.weight.device)
        self.square = torch.zeros(heads, count * count, rank * rank, **zeros)
        self.cross = torch.zeros(heads, count, rank, **zeros)
        self.total = torch.zeros(heads, **zeros)

    @torch.no_grad()
    def add(self, scores: Tensor, values: Tensor, outputs: Tensor) -> None:
        """Adds images: scores [B, heads, n, N], scaled, values and the outputs wanted."""
        units, (inner, outer) = self.operator.units, self.operator.scales(scores.shape[-1])
        for h in range(scores.shape[1]):
            c = units.coefficients[h]
            if units.base:
                c = torch.cat([c, units.base_scale[h, ..., None]], -1)
            z = features(self.operator, scores[:, h]) @ c.flatten(1).to(scores).mT * inner * outer
            v, o = values[:, h], outputs[:, h]
            self.square[h] += (v @ v.mT).flatten(1).mT @ (z.mT @ z).flatten(1)
            self.cross[h] += (v @ (o.mT @ z)).sum(0)
            self.total[h] += o.square().sum()

    def system(self, h: int) -> Tensor:
        """Returns the matrix [N r, N r] of a head."""
        count, rank = self.cross.shape[1:]
        wide = self.square[h].view(count, count, rank, rank)
        return wide.transpose(1, 2).reshape(count * rank, count * rank)

    def error(self, h: int, w: Tensor) -> float:
        """Computes the relative error of the output for a W [N, r] of a head."""
        square = w.flatten() @ (self.system(h) @ w.flatten())
        rest = self.total[h] - 2 * (w * self.cross[h]).sum() + square
        return (rest.clamp(min=0) / self.total[h]).sqrt().item()


@torch.no_grad()
def refit_weight(
    operator: Operator,
    fitted: OutputMoments,
    held_out: OutputMoments,
    ridges: Sequence[float] = RIDGES,
) -> None:
    """Sets W to what minimises the mean of |V^T W z - o|^2, with V of each image.

    A ridge times |W - W0|^2 is added, with W0 what it was or zero. That and the ridge, one of
    `ridges` in units of the mean diagonal entry of the system, are those with the least error on
    held-out images; where none has less than W0, it stays.
    """
    for h in range(len(fitted.cross)):
        start = operator.weight[h].to(fitted.cross)
        system, best, least = fitted.system(h), start, held_out.error(h, start)
        centres = torch.stack([start.flatten(), torch.zeros_like(start).flatten()], -1)
        rest = fitted.cross[h].view(-1, 1) - system @ centres
        identity = torch.eye(len(system), dtype=system.dtype, device=system.device)
        for ridge in ridges:
            damped = system + identity * (ridge * system.diagonal().mean())
            factor, failed = torch.linalg.cholesky_ex(damped)
            if failed:
                continue
            for found in (centres + torch.cholesky_solve(rest, factor)).mT:
                found = found.view_as(start)
                if (error := held_out.error(h, found)) < least:
                    best, least = found, error
        operator.weight[h] = best.to(operator.weight)

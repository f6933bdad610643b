"""The learnable operator of Kolmogorov-Arnold attention: what stands in the place of softmax."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..arithmetic import is_symbol
from ..rational.torch_internals import has_tangents, is_transformed
from .bases import Basis, LinearBasis
from .tokens import Tokens
from .units import UnitLayer

FORMS = ('w_phi', 'phi_w', 'phi_phi', 'phi')
CHUNK = 2**22  # values of functions that are there at a time


class Operator(nn.Module):
    """Maps each row s [N] of attention scores of each head to the weights [N] of the values.

    With Phi(s)_p = sum_q phi_pq(s_q) of learnable functions, the form says by what (KArAt,
    arXiv 2503.10632, section 3):

    - 'w_phi': W Phi(s), with Phi of r x N functions and a matrix W [N, r].
    - 'phi_w': Phi(W s), with W [r, N] and Phi of N x r functions.
    - 'phi_phi': Phi2(Phi1(s)), of r x N and N x r functions.
    - 'phi': Phi(s), of N x N functions.

    Its start keeps the variance: for scores of N(0, 1) the weights have variance 1 / N, so that
    the sum over N values has the variance of one. With coefficients of N(0, 1) that is
    W ~ N(0, 1 / (r m N^2)) for 'w_phi', where m = E[phi(x)^2] (G for a Fourier basis); the other
    forms scale the coefficients themselves. The paper does not tell how its W starts.

    On a map of another size than it is made for, sums over tokens are multiplied by N0 / N. Within
    windows, the smaller ones at the right and bottom edges have those entries of parameters that
    belong to the places that they have; elsewhere entries are interpolated as `Tokens.resize`
    does.

    The table of function values, r N for each row, is never kept: rows are computed in chunks,
    and again for the backward pass.

    Args:
        num_heads: number of heads.
        tokens: what it is made for.
        basis: of the functions.
        rank: r.
        form: see above.
        base: name of a fixed function that each phi adds; see `UnitLayer`.
        basis_scales: each phi scales its basis too, as published parameter counts have it.
        simplex: projects the weights to those that are not negative and sum to 1.
        is_window: says which rule holds for smaller maps.
    """

    def __init__(
        self,
        num_heads: int,
        tokens: Tokens,
        basis: Basis,
        rank: int = 12,
        form: str = 'w_phi',
        base: str | None = None,
        basis_scales: bool = False,
        simplex: bool = False,
        is_window: bool = False,
    ):
        super().__init__()
        self.tokens, self.form, self.simplex = tokens, form, simplex
        self._fit = tokens.crop if is_window else tokens.resize
        count = tokens.count

        def layer(outputs: int, inputs: int, variance: float | None = None) -> UnitLayer:
            return UnitLayer(num_heads, outputs, inputs, basis, base, basis_scales, variance)

        self.weight = self.units2 = None
        if form == 'w_phi':
            self.units = layer(rank, count)
            self.weight = nn.Parameter(torch.empty(num_heads, count, rank))
            self._std = 1 / (count * math.sqrt(rank * self.units.mean_square()))
        elif form == 'phi_w':
            self.weight = nn.Parameter(torch.empty(num_heads, rank, count))
            self._std = 1 / math.sqrt(count)
            self.units = layer(count, rank, 1 / count)
        elif form == 'phi_phi':
            self.units = layer(rank, count, 1.0)
            self.units2 = layer(count, rank, 1 / count)
        else:
            self.units = layer(count, count, 1 / count)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        if self.weight is not None:
            nn.init.normal_(self.weight, std=self._std)
        for layer in (self.units, self.units2):
            if layer is not None:
                layer.reset_parameters()

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], mask: Tensor | None = None
    ) -> Tensor:
        """Computes the operator of the rows of q k^T / sqrt(d), times v.

        Arithmetic is fp32, or fp64 for fp64; where kernels serve, products of matrices are in the
        dtype of q.

        Args:
            q, k, v: [B, heads, N, d] each.
            grid: (h, w) of the map behind the prefix tokens.
            mask: [B, 1, 1, N], zero, or minus infinity for keys that are left out.

        Returns:
            [B, heads, N, d] in the dtype of v.
        """
        q, grid = q * q.shape[-1] ** -0.5, tuple(grid)
        dtype = torch.float64 if v.dtype is torch.float64 else torch.float32
        with _without_autocast(v.device.type):
            if mask is None and (y := self._by_kernels(q, k, v, grid)) is not None:
                return y
            return self._forward(q.to(dtype), k.to(dtype), v.to(dtype), grid, mask).to(v.dtype)

    def weights(self, scores: Tensor, grid: tuple[int, int]) -> Tensor:
        """Computes what `forward` multiplies the values by, of scores in fp32 or fp64.

        Args:
            scores: [B, heads, N, N], q k^T / sqrt(d).
            grid: (h, w) of the map behind the prefix tokens.

        Returns:
            The weights [B, heads, N, N].
        """
        with _without_autocast(scores.device.type):
            ratio = self.tokens.count / scores.shape[-1]
            fit = self._fitted_to(tuple(grid), scores.dtype)
            rows = self._rows(fit, None, ratio)
            if self.simplex:
                weights = self._projected(rows, None)
            elif self.form == 'w_phi':
                last = fit(self.weight, 1).mT * ratio
                weights = lambda s: rows(s) @ last  # noqa: E731
            else:
                weights = lambda s: rows(s) * ratio  # noqa: E731
            return self._in_chunks(lambda s, *_: weights(s), scores, scores, scores)

    def _by_kernels(self, q, k, v, grid) -> Tensor | None:
        """Computes the result by kernels that store no scores, where these serve.

        Products with W and with v are in the dtype of v.
        """
        units = self.units
        if self.form != 'w_phi' or self.simplex or units.base or is_transformed() or has_tangents():
            return None
        coefficients = units.units(self._fitted_to(grid, torch.float32), 2).coefficients
        z = units.basis.score_sums(q, k, coefficients)
        if z is None:
            return None
        ratio = self.tokens.count / k.shape[2]
        weight = self._fit(self.weight, 1, grid).mT.float() * ratio**2
        weight = F.pad(weight, (0, 0, 0, z.shape[-1] - weight.shape[1]))
        return z.to(v.dtype) @ (weight.to(v.dtype) @ v)

    def _forward(self, q, k, v, grid, mask):
        present, count = None, k.shape[2]
        if mask is not None:
            # Padding has the places that the whole window has.
            present = mask.isfinite().to(q.dtype)
            count, grid = present.sum(-1, keepdim=True), self.tokens.grid
            v = v * present.mT
        ratio = self.tokens.count / count  # of what sums over tokens are made for
        fit = self._fitted_to(grid, q.dtype)
        rows = self._rows(fit, present, ratio)
        if self.form == 'w_phi' and not self.simplex:
            # (W Phi(S)) V is Phi(S) (W^T V).
            values = fit(self.weight, 1).mT @ v * ratio
        elif self.simplex:
            rows, values = self._projected(rows, present), v
        else:
            values = v * ratio
        return self._in_chunks(lambda q, k, values: rows(q @ k.mT) @ values, q, k, values)

    def _fitted_to(
        self, grid: tuple[int, int], dtype: torch.dtype
    ) -> Callable[[Tensor, int], Tensor]:
        return lambda x, dim: self._fit(x.to(dtype), dim, grid)

    def _rows(self, fit, present, ratio) -> Callable[[Tensor], Tensor]:
        """Returns what maps scores [B, heads, n, N] to weights, or for 'w_phi' to Phi of them."""
        if self.form == 'w_phi':
            units = self.units.units(fit, 2)
            inner = lambda s: units.sums(s, present) * ratio  # noqa: E731
            if not self.simplex:
                return inner
            weight = fit(self.weight, 1)
            return lambda s: inner(s) @ weight.mT
        if self.form == 'phi_w':
            weight, units = fit(self.weight, 2), self.units.units(fit, 1)
            return lambda s: units.sums((s if present is None else s * present) @ weight.mT * ratio)
        if self.form == 'phi_phi':
            first, second = self.units.units(fit, 2), self.units2.units(fit, 1)
            return lambda s: second.sums(first.sums(s, present) * ratio)
        units = self.units.units(fit, 1, 2)
        return lambda s: units.sums(s, present) * ratio

    @staticmethod
    def _projected(rows, present) -> Callable[[Tensor], Tensor]:
        absent = None if present is None else present == 0

        def projected(s: Tensor) -> Tensor:
            y = rows(s)
            return project_on_simplex(y if absent is None else y.masked_fill(absent, -1e30))

        return projected

    def _in_chunks(self, attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Computes attend(q, k, v) for a few rows of q at a time, keeping nothing of each."""
        is_linear = isinstance(self.units.basis, LinearBasis)
        width = 1 if is_linear else min(self.units.coefficients.shape[1:3])
        values = q.shape[0] * q.shape[1] * k.shape[2] * width  # of one row
        if is_symbol(values) or q.shape[2] * values <= CHUNK:
            chunks = (q,)
        else:
            chunks = q.split(max(CHUNK // values, 1), 2)
        # What torch.func transforms takes no checkpoints, and a graph is captured without them.
        keeps_all = not torch.is_grad_enabled() or is_transformed() or is_symbol(values)
        parts = [
            attend(chunk, k, v)
            if keeps_all
            else checkpoint(attend, chunk, k, v, use_reentrant=False, preserve_rng_state=False)
            for chunk in chunks
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _without_autocast(device: str) -> AbstractContextManager:
    return nullcontext() if device == 'meta' else torch.autocast(device, enabled=False)


def project_on_simplex(x: Tensor) -> Tensor:
    """Computes the nearest point to x [..., N] that has no negative entry and sums to 1.

    It is max(x - t, 0), with t found from the sorted entries (Duchi et al., ICML 2008, figure 1).
    """
    descending = x.sort(-1, descending=True).values
    counts = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
    thresholds = (descending.cumsum(-1) - 1) / counts
    last = (descending > thresholds).sum(-1, keepdim=True) - 1
    return (x - thresholds.gather(-1, last)).clamp(min=0)

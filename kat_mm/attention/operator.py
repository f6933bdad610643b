"""The learnable operator of Kolmogorov-Arnold attention: what stands in the place of softmax."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..arithmetic import is_symbol
from ..errors import ConfigError
from ..rational.torch_internals import has_tangents, is_transformed
from .bases import Basis, LinearBasis
from .operator_attention import is_served, operator_attention
from .simplex import project_on_simplex
from .tokens import Tokens
from .units import UnitLayer

FORMS = ('w_phi', 'phi_w', 'phi_phi', 'phi')
FULL_RANK = 256  # tokens up to which functions for all pairs of them are worth their number
CHUNK = 2**22  # values of functions that are there at a time


class Operator(nn.Module):
    """Maps each row s [N] of attention scores of each head to the weights [N] of the values.

    With Phi(s)_p = sum_q phi_pq(s_q) of learnable functions, the form says by what (KArAt,
    arXiv 2503.10632, section 3):

    - 'w_phi': W Phi(s), with Phi of r x N functions and a matrix W [N, r].
    - 'phi_w': Phi(W s), with W [r, N] and Phi of N x r functions.
    - 'phi_phi': Phi2(Phi1(s)), of r x N and N x r functions.
    - 'phi': Phi(s), of N x N functions.

    What Phi or W sum over the N tokens is divided by sqrt(N), and the weights that result by N.
    So all parameters start with a size of about 1 for any N, and one learning rate suits them:
    undivided, the W that gives weights of the right size has entries below 1e-3, which an
    optimizer such as Adam, whose steps have the size of the learning rate, changes severalfold in
    each step. The paper does not tell how its W starts. Here weights start with a variance of
    1 / N^2 for scores of N(0, 1), as those of their softmax have, (e - 1) / N^2: with coefficients
    of N(0, 1) that is W ~ N(0, 1 / (r m)) for 'w_phi', where m = E[phi(x)^2] (G for a Fourier
    basis); the other forms scale the coefficients themselves.

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

    Raises:
        ConfigError: for more tokens than functions of all pairs are for.
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
        check_pairs(form, tokens.count)
        self.tokens, self.form, self.simplex = tokens, form, simplex
        self.is_window = is_window
        self._fit = tokens.crop if is_window else tokens.resize
        count = tokens.count

        def layer(outputs: int, inputs: int, variance: float | None = None) -> UnitLayer:
            return UnitLayer(num_heads, outputs, inputs, basis, base, basis_scales, variance)

        self.weight = self.units2 = None
        if form == 'w_phi':
            self.units = layer(rank, count)
            self.weight = nn.Parameter(torch.empty(num_heads, count, rank))
            self._std = 1 / math.sqrt(rank * self.units.mean_square())
        elif form == 'phi_w':
            self.weight = nn.Parameter(torch.empty(num_heads, rank, count))
            self._std = 1.0
            self.units = layer(count, rank, 1.0)
        elif form == 'phi_phi':
            self.units = layer(rank, count, count)
            self.units2 = layer(count, rank, 1.0)
        else:
            self.units = layer(count, count, count)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        if self.weight is not None:
            nn.init.normal_(self.weight, std=self._std)
        for layer in (self.units, self.units2):
            if layer is not None:
                layer.reset_parameters()

    def scales(self, count: int | Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Returns what sums over `count` tokens are multiplied by: those of Phi or W, of values."""
        made_for = self.tokens.count
        return math.sqrt(made_for) / count, 1 / count

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], mask: Tensor | None = None
    ) -> Tensor:
        """Computes the operator of the rows of q k^T / sqrt(d), times v.

        Arithmetic is fp32, or fp64 for fp64.

        Args:
            q, k, v: [B, heads, N, d] each.
            grid: (h, w) of the map behind the prefix tokens.
            mask: [B, 1, 1, N], zero, or minus infinity for keys that are left out.

        Returns:
            [B, heads, N, d] in the dtype of v.

        Raises:
            ConfigError: for a number of tokens that is not the grid's, and for a grid that the
                functions cannot be fitted to.
        """
        self._check(k.shape[2], grid, mask)
        dtype = torch.float64 if v.dtype is torch.float64 else torch.float32
        q, grid = q.to(dtype) * q.shape[-1] ** -0.5, tuple(grid)
        with _without_autocast(v.device.type):
            return self._forward(q, k.to(dtype), v.to(dtype), grid, mask).to(v.dtype)

    def weights(self, scores: Tensor, grid: tuple[int, int]) -> Tensor:
        """Computes what `forward` multiplies the values by, of scores in fp32 or fp64.

        Args:
            scores: [B, heads, N, N], q k^T / sqrt(d).
            grid: (h, w) of the map behind the prefix tokens.

        Returns:
            The weights [B, heads, N, N].

        Raises:
            ConfigError: as `forward`.
        """
        self._check(scores.shape[-1], grid, None)
        inner, outer = self.scales(scores.shape[-1])
        with _without_autocast(scores.device.type):
            fit = self._fitted_to(tuple(grid), scores.dtype)
            rows = self._rows(fit, None, inner)
            if self.simplex:
                weights = self._projected(rows, None, outer)
            elif self.form == 'w_phi':
                last = fit(self.weight, 1).mT * outer
                weights = lambda s: rows(s) @ last  # noqa: E731
            else:
                weights = lambda s: rows(s) * outer  # noqa: E731
            return self._in_chunks(lambda s, *_: weights(s), scores, scores, scores)

    def by_kernels(
        self, qkv: Tensor, grid: tuple[int, int], gate: Tensor | None = None
    ) -> Tensor | None:
        """Computes the same of qkv [B, N, 3 * heads * d] by kernels that store no scores.

        Products of matrices are in the dtype of qkv.

        Args:
            qkv: queries, keys and values of all heads.
            grid: (h, w) of the map behind the prefix tokens.
            gate: what to multiply the result of each head by, [heads].

        Returns:
            [B, N, heads * d]; None where no kernels serve.

        Raises:
            ConfigError: as `forward`.
        """
        units = self.units
        if self.form != 'w_phi' or self.simplex or units.base or is_transformed() or has_tangents():
            return None
        if getattr(units.basis, 'kernel', None) is None or not is_served(qkv, units.coefficients):
            return None
        self._check(qkv.shape[1], grid, None)
        dims = qkv.shape[2] // (3 * len(self.weight))
        with _without_autocast(qkv.device.type):
            fit = self._fitted_to(tuple(grid), torch.float32)
            coefficients, weight = units.units(fit, 2).coefficients, fit(self.weight, 1)
            if gate is not None:
                weight = weight * gate[:, None, None]
            scales = dims**-0.5, *self.scales(qkv.shape[1])
            return operator_attention(qkv, coefficients, weight, scales, units.basis)

    def _forward(self, q, k, v, grid, mask):
        present, count = None, k.shape[2]
        if mask is not None:
            # Padding has the places that the whole window has.
            present = mask.isfinite().to(q.dtype)
            count, grid = present.sum(-1, keepdim=True), self.tokens.grid
            v = v * present.mT
        inner, outer = self.scales(count)
        fit = self._fitted_to(grid, q.dtype)
        rows = self._rows(fit, present, inner)
        if self.form == 'w_phi' and not self.simplex:
            # (W Phi(S)) V is Phi(S) (W^T V).
            values = fit(self.weight, 1).mT @ v * outer
        elif self.simplex:
            rows, values = self._projected(rows, present, outer), v
        else:
            values = v * outer
        return self._in_chunks(lambda q, k, values: rows(q @ k.mT) @ values, q, k, values)

    def _fitted_to(
        self, grid: tuple[int, int], dtype: torch.dtype
    ) -> Callable[[Tensor, int], Tensor]:
        return lambda x, dim: self._fit(x.to(dtype), dim, grid)

    def _rows(self, fit, present, inner) -> Callable[[Tensor], Tensor]:
        """Returns what maps scores [B, heads, n, N] to weights, or for 'w_phi' to Phi of them."""
        if self.form == 'w_phi':
            units = self.units.units(fit, 2)
            z = lambda s: units.sums(s, present) * inner  # noqa: E731
            if not self.simplex:
                return z
            weight = fit(self.weight, 1)
            return lambda s: z(s) @ weight.mT
        if self.form == 'phi_w':
            weight, units = fit(self.weight, 2), self.units.units(fit, 1)
            return lambda s: units.sums((s if present is None else s * present) @ weight.mT * inner)
        if self.form == 'phi_phi':
            first, second = self.units.units(fit, 2), self.units2.units(fit, 1)
            return lambda s: second.sums(first.sums(s, present) * inner)
        units = self.units.units(fit, 1, 2)
        return lambda s: units.sums(s, present) * inner

    @staticmethod
    def _projected(rows, present, scale) -> Callable[[Tensor], Tensor]:
        absent = None if present is None else present == 0

        def projected(s: Tensor) -> Tensor:
            y = rows(s) * scale
            return project_on_simplex(y if absent is None else y.masked_fill(absent, -1e30))

        return projected

    def _check(self, count: int, grid: tuple[int, int], mask: Tensor | None) -> None:
        made = self.tokens
        if is_symbol(count) or is_symbol(sum(grid)):
            return
        size = f'{grid[0]} x {grid[1]}'
        if count != (made.count if mask is not None else made._replace(grid=grid).count):
            raise ConfigError(
                f'KArAt: {count} tokens are not those of a map of {size} and a prefix of '
                f'{made.prefix}: give the grid (h, w) of the map'
            )
        if self.is_window and (grid[0] > made.grid[0] or grid[1] > made.grid[1]):
            raise ConfigError(
                f'KArAt: a window of {size} tokens is larger than {made.grid[0]} x {made.grid[1]}, '
                'which its functions are made for'
            )
        check_pairs(self.form, count)

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


def check_pairs(form: str, count: int) -> None:
    """Checks that there are not too many pairs of tokens for functions of all of them.

    Raises:
        ConfigError: if there are.
    """
    if form == 'phi' and count > FULL_RANK:
        raise ConfigError(
            f"attention.form='phi' has functions for all pairs of {count} tokens; it is for at "
            f"most {FULL_RANK}: choose windows, or form='w_phi'"
        )


def _without_autocast(device: str) -> AbstractContextManager:
    # Where there is none, an exported program has no region of its own for this either.
    if device == 'meta' or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)

"""Kolmogorov-Arnold attention."""

import torch
from torch import Tensor, nn

from ..checks import check_bool, check_int
from ..errors import ConfigError
from ..registry import ATTENTIONS, BASES, Config
from .base import Matrices
from .operator import FORMS, Operator
from .projections import ProjectedAttention, join_heads, scaled_products, split_heads
from .softmax import softmax_attention
from .tokens import Tokens
from .units import BASE_FUNCTIONS


@ATTENTIONS.register('KArAt')
class KArAt(ProjectedAttention):
    """Computes Kolmogorov-Arnold attention: learnable functions of the scores, not their softmax.

    It is that of arXiv 2503.10632; `Operator` has the mathematics. Each block has operators of its
    own, one for each head (blockwise), unless `attention` says shared='operator' (universal).

    Args:
        embed_dims, num_heads, grid, window_size, prefix: as of `Attention`.
        basis: of the functions: a name in `BASES` or a dict of a type and its arguments.
        rank: r, the number of sums of functions.
        form: of the operator.
        base: 'softmax' adds what softmax attention computes, and scales the operator by a gate for
            each head that starts at zero: the network is that with softmax at the start, whose
            weights it takes. The name of a function, 'silu' or 'identity', adds that to each of
            the learnable functions, with a scale of its own.
        published_scales: functions have a scale of their basis and one of their base, which is
            then 'silu' if it is not given: the parameter counts that the paper has.
        simplex: projects attention weights to those that are not negative and sum to 1.
        qkv_bias, drop, mimetic: as of `ProjectedAttention`.

    Raises:
        ConfigError: for values of the wrong kind or range, and for a number of tokens that does
            not fit the form.
    """

    fresh = 'operator', 'gate'

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        grid: tuple[int, int],
        window_size: int = 0,
        prefix: int = 0,
        basis: Config = 'fourier',
        rank: int = 12,
        form: str = 'w_phi',
        base: str | None = None,
        published_scales: bool = False,
        simplex: bool = False,
        qkv_bias: bool = True,
        drop: float = 0.0,
        mimetic: bool = True,
    ):
        super().__init__(
            *(embed_dims, num_heads, grid, window_size, prefix), *(qkv_bias, drop, mimetic)
        )
        tokens = Tokens(prefix, tuple(grid))
        if form not in FORMS:
            raise ConfigError(f'attention.form={form!r} must be one of {", ".join(FORMS)}')
        names = (None, 'softmax', *BASE_FUNCTIONS)
        if base not in names:
            raise ConfigError(
                f'attention.base={base!r} must be one of {", ".join(map(repr, names))}'
            )
        self.gate = nn.Parameter(torch.zeros(num_heads)) if base == 'softmax' else None
        unit_base = None if base == 'softmax' else base
        if check_bool('attention.published_scales', published_scales):
            unit_base = unit_base or 'silu'
        self.operator = Operator(
            *(num_heads, tokens, BASES.build(basis), check_int('attention.rank', rank), form),
            *(unit_base, published_scales, check_bool('attention.simplex', simplex)),
            is_window=bool(window_size),
        )
        super().reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all weights anew."""
        super().reset_parameters()
        self.operator.reset_parameters()
        if self.gate is not None:
            nn.init.zeros_(self.gate)

    def attend(self, x: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        y = None if mask is not None else self.operator.by_kernels(x, grid, self.gate)
        if y is None:
            y = self.operator(*split_heads(x, self.num_heads), grid, mask)
            y = join_heads(y if self.gate is None else self.gate[:, None, None].to(y.dtype) * y)
        return y if self.gate is None else softmax_attention(x, self.num_heads, mask) + y

    def matrices(self, x: Tensor, grid: tuple[int, int]) -> Matrices:
        q, k, _ = split_heads(x, self.num_heads)
        scores = scaled_products(q, k)
        weights = self.operator.weights(scores, grid)
        if self.gate is not None:
            gate = self.gate[:, None, None].to(weights.dtype)
            weights = scores.softmax(-1) + gate * weights
        return Matrices(scores, weights)

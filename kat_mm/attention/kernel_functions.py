"""The functions of linear bases in Triton, one after the other, from a state that they share.

A basis with kernels has its name in `registry.BASES` in each function here.
"""

import triton
import triton.language as tl


@triton.jit
def first_state(
    s, parameter, BASIS: tl.constexpr, COUNT: tl.constexpr, APPROXIMATE: tl.constexpr
):  # fmt: skip
    """Returns what the functions of scores s are computed from, as the first of them needs it."""
    if BASIS == 'fourier':
        cos, sin = _cos_sin(s, APPROXIMATE)
        return cos, sin, cos, sin  # of the angle, and of its multiple
    elif BASIS == 'chebyshev':
        e = tl.exp(-2 * tl.abs(s))
        x = (1 - e) / (1 + e)
        x = tl.where(s < 0, -x, x)  # tanh(s)
        dx = 4 * e / ((1 + e) * (1 + e))
        zero, one = tl.zeros_like(x), tl.zeros_like(x) + 1
        return x, dx, one, x, zero, one  # T_0, T_-1 and their derivatives by x
    else:
        per_score = (COUNT - 3) / (2 * parameter)  # intervals
        return (s + parameter) * per_score, per_score


@triton.jit
def value_of(i: tl.constexpr, state, BASIS: tl.constexpr):
    """Computes function i of the scores."""
    if BASIS == 'fourier':
        return state[2 + i % 2]
    elif BASIS == 'chebyshev':
        return state[2]
    else:
        distance = tl.abs(state[0] - (i - 1))
        outer, inner = tl.maximum(2 - distance, 0.0), tl.maximum(1 - distance, 0.0)
        return (outer * outer * outer - 4 * inner * inner * inner) / 6


@triton.jit
def slope_of(i: tl.constexpr, state, BASIS: tl.constexpr):
    """Computes the derivative of function i by the scores."""
    if BASIS == 'fourier':
        if i % 2 == 0:
            return state[3] * -(i // 2 + 1)
        else:
            return state[2] * (i // 2 + 1)
    elif BASIS == 'chebyshev':
        return state[4] * state[1]
    else:
        x = state[0] - (i - 1)
        distance = tl.abs(x)
        outer, inner = tl.maximum(2 - distance, 0.0), tl.maximum(1 - distance, 0.0)
        slope = (outer * outer - 4 * inner * inner) * (0.5 * state[1])
        return tl.where(x < 0, slope, -slope)


@triton.jit
def next_state(i: tl.constexpr, state, BASIS: tl.constexpr):
    """Returns the state of function i + 1, given that of function i."""
    if BASIS == 'fourier':
        if i % 2 == 0:
            return state
        else:
            first_cos, first_sin, cos, sin = state
            next_cos = cos * first_cos - sin * first_sin
            return first_cos, first_sin, next_cos, sin * first_cos + cos * first_sin
    elif BASIS == 'chebyshev':
        x, dx, this, last, slope, last_slope = state
        return x, dx, 2 * x * this - last, this, 2 * (this + x * slope) - last_slope, slope
    else:
        return state


@triton.jit
def _cos_sin(x, APPROXIMATE: tl.constexpr):
    if APPROXIMATE:
        # The GPU's own functions keep 21 bits within [-pi, pi], to which x is brought. Adding and
        # taking away 1.5 * 2^23 rounds.
        turns = (x * 0.15915494309189535 + 12582912.0) - 12582912.0
        x = x - turns * 6.28125 - turns * 0.0019353071795864769
        cos = tl.inline_asm_elementwise(
            'cos.approx.f32 $0, $1;', '=f,f', [x], dtype=tl.float32, is_pure=True, pack=1
        )
        sin = tl.inline_asm_elementwise(
            'sin.approx.f32 $0, $1;', '=f,f', [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        cos = tl.cos(x)
        sin = tl.sin(x)
    return cos, sin

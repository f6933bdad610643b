"""What the arguments of the rational op must be, with an error for each mistake."""

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_arguments(x: Tensor, numerator: Tensor, denominator: Tensor, channel_dim: int) -> None:
    """Checks the arguments of `rational`.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as `rational`; each names what is wrong.
    """
    for name, tensor in (('x', x), ('numerator', numerator), ('denominator', denominator)):
        if tensor.dtype not in DTYPES:
            raise TypeError(
                f'rational: {name} has dtype {tensor.dtype}; '
                'supported are float16, bfloat16, float32 and float64'
            )
    if not x.device == numerator.device == denominator.device:
        raise RuntimeError(
            f'rational: x is on {x.device}, numerator on {numerator.device} and denominator on '
            f'{denominator.device}; move them to one device'
        )
    shapes = (
        f'numerator {tuple(numerator.shape)} and denominator {tuple(denominator.shape)} '
        f'for x {tuple(x.shape)}'
    )
    if numerator.dim() != 2 or denominator.dim() != 2:
        raise ValueError(f'rational: coefficients must be [1 or G, order], got {shapes}')
    if not (2 <= numerator.shape[1] <= 9 and 1 <= denominator.shape[1] <= 8):
        raise ValueError(
            'rational: numerator must be [1 or G, m + 1] and denominator [1 or G, n] '
            f'with m and n from 1 to 8, got {shapes}'
        )
    rows_a, rows_b = numerator.shape[0], denominator.shape[0]
    if rows_a == 0 or rows_b == 0 or (rows_a != rows_b and rows_a != 1 and rows_b != 1):
        raise ValueError(f'rational: both must have 1 row or the same number of rows, got {shapes}')
    if x.dim() == 0:
        raise ValueError('rational: x must have at least one dimension, got a scalar')
    if not -x.dim() <= channel_dim < x.dim():
        raise IndexError(f'rational: channel_dim={channel_dim} is out of range for x {x.dim()}-D')
    groups = max(rows_a, rows_b)
    channels = x.shape[channel_dim]
    if channels % groups:
        divisor = max(d for d in range(1, groups) if channels % d == 0)
        raise ValueError(
            f'rational: the {channels} channels at dimension {channel_dim} of x '
            f'{tuple(x.shape)} cannot be divided into the {groups} groups of {shapes}. Choose a '
            f'number of groups that divides {channels}, such as num_groups={divisor} of '
            'GroupRational, or another channel_dim if the channels are elsewhere'
        )

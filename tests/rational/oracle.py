"""What the op is compared with: its definition, and random coefficients."""

import torch


def formula(x, numerator, denominator, channel_dim=-1):
    """The definition, element by element and power by power, in the dtype of x.

    Its derivatives by PyTorch are those of the op, of |x| at 0 and of |b| at 0 too.
    """
    channel_dim %= x.dim()
    groups = max(len(numerator), len(denominator))
    channels = x.shape[channel_dim]
    group = torch.arange(channels) * groups // channels
    shape = [1] * x.dim()
    shape[channel_dim] = channels

    def coefficient(rows, column):
        rows = rows.expand(groups, -1)
        return rows[group.to(rows.device), column].to(x.dtype).view(shape)

    p = sum(coefficient(numerator, i) * x**i for i in range(numerator.shape[1]))
    b = torch.where(denominator < 0, -denominator, denominator)
    q = 1 + sum(coefficient(b, j) * x.abs() ** (j + 1) for j in range(b.shape[1]))
    return p / q


def coefficients(groups, m=5, n=4, shared=True, dtype=torch.float32, device='cpu'):
    numerator = torch.randn(1 if shared else groups, m + 1, dtype=torch.float64)
    denominator = torch.randn(groups, n, dtype=torch.float64)
    return numerator.to(device, dtype), denominator.to(device, dtype)

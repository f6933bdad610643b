"""The projection on the probability simplex."""

import torch
from torch import Tensor


def project_on_simplex(x: Tensor) -> Tensor:
    """Computes the nearest point to x [..., N] that has no negative entry and sums to 1.

    It is max(x - t, 0), with t found from the sorted entries (Duchi et al., ICML 2008, figure 1).
    """
    descending = x.sort(-1, descending=True).values
    counts = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
    thresholds = (descending.cumsum(-1) - 1) / counts
    last = (descending > thresholds).sum(-1, keepdim=True) - 1
    return (x - thresholds.gather(-1, last)).clamp(min=0)

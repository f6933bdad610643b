"""Softmax attention by flash attention's kernel, called with tokens as they lie in memory.

Flash attention (FlashAttention-2, arXiv 2307.08691) reads tokens [B, N, heads, dims], and also
sequences of any lengths one behind another, with their boundaries: all windows of a batch of maps
in one launch. PyTorch's function for it wants [B, heads, N, dims], and one length.
"""

import torch
from torch import Tensor

from ..rational.torch_internals import has_tangents, is_tracing, is_transformed
from .windows import Windows

HALF_DTYPES = (torch.float16, torch.bfloat16)
MAX_HEAD_DIMS = 192  # beyond, not every GPU has the gradients
MAX_KEPT = 1024  # boundaries, a few hundred bytes each

# As PyTorch's functions call it. Public for boundaries is torch.nn.attention.varlen (2.10), whose
# call takes longer than its kernel.
_flash_attention = torch.ops.aten._flash_attention_forward.default
_boundaries: dict[tuple, Tensor] = {}
_is_served: dict[torch.device, bool] = {}


def flash_attention(qkv: Tensor, num_heads: int, windows: Windows | None = None) -> Tensor | None:
    """Computes softmax attention of queries, keys and values, within windows or of all tokens.

    Args:
        qkv: [B, N, 3 * C]; of windows, in their order.
        num_heads: number of heads.
        windows: those of a map of N tokens.

    Returns:
        [B, N, C]; None where the kernel does not serve: it takes fp16 and bf16 on a GPU of compute
        capability 8.0 or later, in plain calls.
    """
    if not _serves(qkv):
        return None
    batch, tokens, channels = qkv.shape
    head_dims = channels // (3 * num_heads)
    if head_dims > MAX_HEAD_DIMS or head_dims % 8 or not batch or not tokens:
        return None
    if windows is None:
        shape, boundaries, longest = (batch, tokens), None, tokens
    else:
        shape, boundaries = (batch * tokens,), _boundaries_of(windows, batch, qkv.device)
        longest = windows.tiles[0].height * windows.tiles[0].width
        if boundaries is None:
            return None
    q, k, v = qkv.view(*shape, 3, num_heads, head_dims).unbind(-3)
    y = _flash_attention(q, k, v, boundaries, boundaries, longest, longest, 0.0, False, False)[0]
    return y.view(batch, tokens, channels // 3)


def _serves(x: Tensor) -> bool:
    if not (x.is_cuda and x.dtype in HALF_DTYPES and type(x) is Tensor):
        return False
    if torch.compiler.is_compiling() or is_tracing() or is_transformed() or has_tangents():
        return False
    served = _is_served.get(x.device)
    if served is None:
        served = _is_served[x.device] = (
            torch.backends.cuda.is_flash_attention_available()
            and torch.cuda.get_device_capability(x.device) >= (8, 0)
        )
    return served and torch.backends.cuda.flash_sdp_enabled()


def _boundaries_of(windows: Windows, batch: int, device: torch.device) -> Tensor | None:
    """Returns where windows begin and end in the tokens of a batch; None while it cannot."""
    key = *windows.key, batch, device
    boundaries = _boundaries.get(key)
    if boundaries is None:
        if torch.cuda.is_current_stream_capturing():
            return None  # a graph's memory is not for others
        if len(_boundaries) >= MAX_KEPT:
            _boundaries.clear()
        with torch.inference_mode(False):
            ends = torch.tensor([0, *windows.lengths * batch]).cumsum(0)
            boundaries = _boundaries[key] = ends.to(device, torch.int32)
    return boundaries

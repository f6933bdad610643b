"""Mimetic initialisation of self-attention: weights that start out like those of trained ViTs."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

_skipped = ContextVar('skipped', default=False)


@contextmanager
def skip_mimetic_init() -> Iterator[None]:
    """Leaves out the costly start of networks built meanwhile whose weights are loaded later."""
    token = _skipped.set(True)
    try:
        yield
    finally:
        _skipped.reset(token)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small decompositions gain nothing from threads, and wait long for them on shared cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
@_one_thread()
def mimetic_init_(
    qkv: nn.Linear,
    proj: nn.Linear,
    num_heads: int,
    alpha_qk: float = 0.7,
    beta_qk: float = 0.7,
    alpha_vo: float = 0.4,
    beta_vo: float = 0.4,
) -> None:
    """Draws attention weights with W_q W_k^T near the identity and W_v W_proj near its negative.

    With x a row vector, q = x W_q and so on, and Z a matrix of draws from N(0, 1 / d):
    W_q W_k^T of each head is the best approximation of rank d / num_heads to
    alpha_qk Z + beta_qk I, and W_v W_proj = alpha_vo Z - beta_vo I (Trockman and Kolter,
    arXiv 2305.09828, section 3). Each product is split evenly, by the square roots of its
    singular values. The values of alpha and beta are the paper's for ViTs. Biases become zero.
    On the meta device, and within `skip_mimetic_init`, nothing is drawn.

    Args:
        qkv: [3 d, d], the rows of all queries, then keys, then values, each sorted by head.
        proj: [d, d].
        num_heads: number of heads, a divisor of d.
    """
    for linear in (qkv, proj):
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
    if qkv.weight.is_meta or _skipped.get():
        return
    dims = proj.in_features
    head_dims = dims // num_heads
    queries, keys, values = qkv.weight.view(3, dims, dims)

    def near_identity(alpha: float, beta: float) -> Tensor:
        z = torch.randn(dims, dims, dtype=torch.float32, device=qkv.weight.device)
        return alpha / dims**0.5 * z + beta * torch.eye(dims, device=z.device)

    for head in range(num_heads):
        rows = slice(head * head_dims, (head + 1) * head_dims)
        product = near_identity(alpha_qk, beta_qk)
        # The leading singular triplets, from the eigenvectors of A^T A: several times faster
        # than a whole SVD, and accurate, as the leading singular values lie far from zero.
        squares, right = torch.linalg.eigh(product.T @ product)
        right, root = right[:, -head_dims:], squares[-head_dims:] ** 0.25
        queries[rows] = (product @ right / root).T.to(queries.dtype)
        keys[rows] = (right * root).T.to(keys.dtype)

    left, singular, right = torch.linalg.svd(near_identity(alpha_vo, -beta_vo))
    root = singular.sqrt()
    values.copy_((left * root).T)
    proj.weight.copy_((root[:, None] * right).T)

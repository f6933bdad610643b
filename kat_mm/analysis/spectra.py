"""Singular values of attention matrices before and after the activation."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .capture import Attended

# What is decomposed: what the activation takes, what it gives, and what softmax would give.
MATRICES = ('scores', 'weights', 'softmax')
BOUND = 0.999  # share of the scores within what is given as their range
DRAWN = 2**20  # scores for quantiles; torch sorts no more than 2^24


def effective_rank(singular_values: Tensor) -> Tensor:
    """Computes exp(-sum_i p_i log p_i), with p_i = s_i / sum_j s_j, of s [..., N].

    It is 1 for a matrix of rank 1 and N for an orthogonal one (Roy and Vetterli, The effective
    rank: a measure of effective dimensionality, EUSIPCO 2007). 0 where all s are zero.
    """
    s = singular_values.double()
    total = s.sum(-1, keepdim=True)
    p = s / total.clamp(min=torch.finfo(s.dtype).tiny)
    ranks = torch.special.entr(p).sum(-1).exp()
    return torch.where(total[..., 0] > 0, ranks, 0.0)


class BlockSpectra:
    """Gathers the spectra of one block over images.

    Of windows, the whole ones count: the smaller ones at edges have fewer singular values. Of maps
    of several sizes the curves are of the one that is met most.
    """

    def __init__(self):
        self._values: dict[int, dict[str, list[Tensor]]] = {}  # by N: [matrices, heads, N] each
        self._scores: list[Tensor] = []
        self._negative: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._about: dict[str, object] = {}

    def add(self, seen: Attended, on_matrices: Callable[[], object] = lambda: None) -> None:
        """Decomposes the matrices of a block on a batch of images.

        Args:
            seen: what the block took.
            on_matrices: called after each of three kinds, to show progress.
        """
        part = next(seen.parts())
        scores, weights = part.matrices
        softmax = scores.softmax(-1)
        values = self._values.setdefault(scores.shape[-1], {name: [] for name in MATRICES})
        done: dict[int, Tensor] = {}
        is_softmax = torch.equal(weights, softmax)
        for name, matrix in zip(MATRICES, (scores, weights, softmax), strict=True):
            if name == 'softmax' and is_softmax:
                s = done['weights']
            else:
                s = done[name] = _singular_values(matrix)
            values[name].append(s)
            on_matrices()
        flat = scores.abs().flatten()
        self._scores.append(flat[:: max(flat.numel() // DRAWN, 1)].cpu())
        self._negative.append((weights < 0).float().mean((2, 3)).double().cpu())
        self._sums.append(weights.sum(-1, dtype=torch.float64).transpose(0, 1).flatten(1).cpu())
        self._about = {
            'name': seen.name,
            'attention': seen.label,
            'window': None if seen.windows is None else list(part.size),
        }

    def _most_met(self) -> int:
        counts = {n: sum(len(s) for s in v['scores']) for n, v in self._values.items()}
        return max(counts, key=counts.get)

    def curves(self) -> dict[str, Tensor]:
        """Returns the singular values over the largest of each matrix, [matrices, heads, N]."""
        values = self._values[self._most_met()]
        curves = {name: torch.cat(parts) for name, parts in values.items()}
        return {k: s / s[..., :1].clamp(min=1e-300) for k, s in curves.items()}

    def scores_within(self) -> float:
        """Returns what 99.9% of the scores do not exceed in size."""
        return torch.cat(self._scores).double().quantile(BOUND).item()

    def summary(self) -> dict:
        """Returns the numbers of the block, for each head where they differ by head."""
        ranks = {
            name: torch.cat([effective_rank(s) for v in self._values.values() for s in v[name]])
            for name in MATRICES
        }
        sums = torch.cat(self._sums, 1)
        scores = torch.cat(self._scores)
        return {
            **self._about,
            'tokens': sorted(self._values),
            'matrices': len(ranks['scores']),
            'effective_rank': {name: rank.mean(0).tolist() for name, rank in ranks.items()},
            'negative_weights': torch.cat(self._negative).mean(0).tolist(),
            'row_sums': {'mean': sums.mean(1).tolist(), 'std': sums.std(1).tolist()},
            'scores': {
                'largest': scores.max().item(),
                'within_99.9%': self.scores_within(),
                'root_mean_square': scores.double().square().mean().sqrt().item(),
            },
            'singular_values': {
                name: curve.mean(0).tolist() for name, curve in self.curves().items()
            },
        }


def _singular_values(matrices: Tensor) -> Tensor:
    """Computes singular values [matrices, heads, N], those of one head at a time."""
    heads: Sequence[Tensor] = matrices.unbind(1)
    return torch.stack([torch.linalg.svdvals(head).double().cpu() for head in heads], 1)

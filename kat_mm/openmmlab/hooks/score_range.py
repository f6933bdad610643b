"""Watches the range of the attention scores that learnable functions are given."""

import logging
import math
from collections.abc import Iterator
from functools import partial

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ...attention.bases.fourier import Fourier
from ...attention.karat import KArAt
from ...attention.projections import split_heads
from ...attention.windows import windows_of
from ...checks import check_int, check_number

CHUNK = 2**24  # scores that are there at a time


@HOOKS.register_module()
class ScoreRangeHook(Hook):
    """Logs the largest attention score of KArAt, and warns where its angles lose their digits.

    Trigonometric functions take scores as angles: with queries and keys rounded to u of their
    size, u = 2^-9 in bf16, 2^-12 in fp16 and 2^-25 in fp32, the angle of the highest of G
    frequencies is off by about G |s| u radian, however well sine and cosine are computed. Once
    that is more than `limit`, the functions of such scores are noise.

    Every `interval` iterations the scores of one forward pass are computed once more, and their
    largest absolute value is logged as `largest_score`; info `largest_scores` of the message hub
    has that of each attention. In between nothing runs. Attention that a CUDA graph runs is not
    seen, which is told once.

    Use it as `custom_hooks=[dict(type='ScoreRangeHook')]`.

    Args:
        interval: iterations from one look to the next.
        limit: error of an angle, in radian, from which on an attention is warned of, once.

    Raises:
        ConfigError: for an interval below 1.
    """

    priority = 'ABOVE_NORMAL'  # so that the same iteration's log has it

    def __init__(self, interval: int = 200, limit: float = 0.3):
        self.interval = check_int('ScoreRangeHook: interval', interval)
        self.limit = check_number('ScoreRangeHook: limit', limit)
        self._found: dict[str, list[tuple[Tensor, torch.dtype]]] = {}
        self._handles: list = []
        self._warned: set[str] = set()
        self._watched: list[str] = []
        self._told_of_unseen = False

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if not self.every_n_train_iters(runner, self.interval):
            return
        self._found, self._watched = {}, []
        for name, module in runner.model.named_modules():
            if isinstance(module, KArAt):
                self._watched.append(name)
                hook = partial(self._look, name)
                self._handles.append(module.register_forward_pre_hook(hook))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        largest = {
            name: (max(score.item() for score, _ in found), found[-1][1])
            for name, found in self._found.items()
        }
        self._found = {}
        self._tell_of([name for name in self._watched if name not in largest])
        if not largest:
            return
        scores = {name: score for name, (score, _) in largest.items()}
        runner.message_hub.update_info('largest_scores', scores)
        runner.message_hub.update_scalar('train/largest_score', max(scores.values()))
        modules = dict(runner.model.named_modules())
        for name, (score, dtype) in largest.items():
            self._warn(name, modules[name], score, dtype)

    @torch.no_grad()
    def _look(self, name: str, module: KArAt, args: tuple) -> None:
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            return  # the graph would compute scores in each of its runs
        # A tensor, and no number: the host goes on while a GPU computes it.
        for tokens in _attended(module, *args):
            q, k, _ = split_heads(module.project(tokens), module.num_heads)
            self._found.setdefault(name, []).append((largest_score(q, k), q.dtype))

    def _tell_of(self, unseen: list[str]) -> None:
        if not unseen or self._told_of_unseen:
            return
        self._told_of_unseen = True
        print_log(
            f'ScoreRangeHook: iterations pass by {len(unseen)} attentions, such as {unseen[0]}, '
            'whose scores are not watched: CUDA graphs run them, or nothing does. To watch '
            'scores, take CUDAGraphHook out of custom_hooks, or give it parts=[...] without the '
            'backbone',
            'current',
            logging.WARNING,
        )

    def _warn(self, name: str, module: KArAt, score: float, dtype: torch.dtype) -> None:
        basis = module.operator.units.basis
        if name in self._warned or not isinstance(basis, Fourier) or not math.isfinite(score):
            return
        error = angle_error(score, basis.grid_size, dtype)
        if error <= self.limit:
            return
        self._warned.add(name)
        print_log(
            f'{name}: attention scores reach {score:.3g}, so that in {str(dtype)[6:]} the angles '
            f'of its {basis.grid_size} frequencies are off by up to {error:.2g} radian: its '
            'functions are noise there. Lower the learning rate of attn.qkv, or raise its weight '
            'decay (paramwise_cfg.custom_keys), take a smaller grid_size, or train in fp32',
            'current',
            logging.WARNING,
        )


def angle_error(score: float, frequencies: int, dtype: torch.dtype) -> float:
    """Computes by how much the angle of the highest frequency is off, in radian, for a score.

    Queries and keys are rounded to dtype.
    """
    return frequencies * score * torch.finfo(dtype).eps / 4


def largest_score(q: Tensor, k: Tensor) -> Tensor:
    """Computes the largest |q k^T| / sqrt(d) of q, k [B, heads, N, d], a few at a time."""
    scale, (q, k) = q.shape[-1] ** -0.5, (x.flatten(0, 1) for x in (q, k))
    heads = max(CHUNK // (q.shape[1] * k.shape[1]), 1)
    rows = max(CHUNK // k.shape[1], 1)
    largest = [
        (some @ part_k.mT).abs().amax()
        for part_q, part_k in zip(q.split(heads), k.split(heads), strict=True)
        for some in part_q.split(rows, 1)
    ]
    return torch.stack(largest).amax().float() * scale


def _attended(module: nn.Module, x: Tensor, grid, windows=None) -> Iterator[Tensor]:
    """Yields the tokens [B, N, C] that attend to each other."""
    if not module.window_size:
        yield x
        return
    if windows is None:
        windows = windows_of(grid, module.window_size)
        if windows is None:  # for sizes that are symbols
            return
        x = windows.order(x)
    for part, tile in zip(windows.split(x), windows.tiles, strict=True):
        yield part.reshape(-1, tile.height * tile.width, x.shape[-1])

"""Fits learnable attention to the softmax attention of a trained model."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..attention.karat import KArAt
from ..attention.operator import Operator
from ..attention.projections import split_heads
from ..attention.softmax import SoftmaxAttention
from ..attention.windows import windows_of
from ..errors import ConfigError, DataError
from .operators import RIDGES, Moments, Solution, check_fittable, fit_operator
from .runs import Samples, run

BUDGET = 2 * 2**30  # bytes of moments that are kept at a time
Visit = Callable[[str, Tensor, Tensor, Tensor], None]  # (block, q, k, v [B, heads, N, d])


@dataclass(frozen=True)
class BlockFit:
    """How well the operator of one attention was fitted.

    Attributes:
        name: of the attention in the model.
        errors: of each head's output on images that were not fitted: the root of
            sum |W Phi(S) V - softmax(S) V|^2 / sum |softmax(S) V|^2.
        uniform: the same of attention that weighs all tokens alike, for comparison.
        solution: ridges, conditions and errors of the fit; of all blocks that share an operator.
        largest_score: |q k^T| / sqrt(d) on those images.
        rows: rows of scores that were fitted.
    """

    name: str
    errors: list[float]
    uniform: list[float]
    solution: Solution
    largest_score: float
    rows: int


def softmax_twin(model: nn.Module) -> nn.Module:
    """Returns a copy of a model with softmax attention in the place of KArAt, same weights."""
    twin = copy.deepcopy(model)
    for name, module in list(twin.named_modules(remove_duplicate=False)):
        if isinstance(module, KArAt):
            softmax = SoftmaxAttention(
                module.qkv.in_features,
                module.num_heads,
                *(module.grid, module.window_size, module.prefix),
                qkv_bias=module.qkv.bias is not None,
            )
            softmax.qkv, softmax.proj, softmax.drop = module.qkv, module.proj, module.drop
            parent, _, child = name.rpartition('.')
            setattr(twin.get_submodule(parent), child, softmax.train(module.training))
    return twin


def check_models(model: nn.Module, teacher: nn.Module) -> dict[str, tuple[KArAt, SoftmaxAttention]]:
    """Returns the learnable attentions of a model and those of the teacher in the same places.

    Raises:
        ConfigError: where there is none, where one cannot be fitted, and where the teacher has
            none of the same heads and windows.
    """
    pairs = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, KArAt) or module in [known for known, _ in pairs.values()]:
            continue
        if module.gate is not None:
            raise ConfigError(
                f"{name}: base='softmax' starts as the softmax model exactly: nothing to fit. Load "
                'its weights as they are'
            )
        check_fittable(module.operator, name)
        other = dict(teacher.named_modules(remove_duplicate=False)).get(name)
        alike = isinstance(other, SoftmaxAttention) and all(
            getattr(module, key) == getattr(other, key)
            for key in ('num_heads', 'window_size', 'prefix')
        )
        if not alike:
            raise ConfigError(
                f'{name}: the softmax model has no softmax attention of {module.num_heads} heads, '
                f'window_size={module.window_size} and {module.prefix} prefix tokens there'
            )
        if other.rel_pos_h is not None:
            raise ConfigError(
                f'{name}: the softmax model adds relative positions to its scores, which KArAt '
                'does not: train it without rel_pos'
            )
        pairs[name] = module, other
    if not pairs:
        raise ConfigError("the model has no attention of type 'KArAt': nothing to fit")
    by_teacher: dict[nn.Module, nn.Module] = {}
    for name, (module, other) in pairs.items():
        if by_teacher.setdefault(other, module) is not module:
            raise ConfigError(
                f'{name}: the softmax model has one attention in several blocks, the other one does '
                'not: give both the same attention.shared'
            )
    return pairs


def fit_attention(
    model: nn.Module,
    teacher: nn.Module,
    fitted: Sequence[Samples],
    held_out: Sequence[Samples],
    test: Sequence[Samples],
    ridges: Sequence[float] = RIDGES,
) -> list[BlockFit]:
    """Fits the operators of KArAt in a model to the softmax attention of a teacher, in place.

    Each learns the map from rows of scores to their softmax that `fit_operator` states, from the
    queries, keys and values of the teacher on samples. An operator that several blocks share is
    fitted to all of them. Attention on maps or windows that are not of the operator's size is
    left out.

    Args:
        model: with KArAt of form 'w_phi' or 'phi' and a basis that is linear in its coefficients.
            All else in it stays.
        teacher: of the same structure; see `softmax_twin`.
        fitted: inputs of the teacher, each a tensor, or a tuple or dict of arguments.
        held_out: others, by which the ridge is chosen.
        test: others again, of which errors are told.
        ridges: see `fit_operator`.

    Raises:
        ConfigError: as `check_models`.
        DataError: for samples in which a block sees no map of its operator's size.
    """
    pairs = check_models(model, teacher)
    users: dict[Operator, list[str]] = {}
    for name, (module, _) in pairs.items():
        users.setdefault(module.operator, []).append(name)
    solutions: dict[Operator, tuple[Solution, int]] = {}
    for group in _groups(users):
        moments = {op: (Moments(op), Moments(op)) for op in group}
        for part, samples in enumerate((fitted, held_out)):

            def add(name, q, k, v, part=part, moments=moments):
                scores = q @ k.mT * q.shape[-1] ** -0.5
                operator = pairs[name][0].operator
                moments[operator][part].add(scores, scores.softmax(-1), v)

            _visit(pairs, teacher, samples, [name for op in group for name in users[op]], add)
        for operator, (first, second) in moments.items():
            solution = fit_operator(operator, first, second, ridges)
            solutions[operator] = solution, first.rows
    errors = measure(pairs, teacher, test)
    return [
        BlockFit(name, *errors[name][:2], solutions[m.operator][0], errors[name][2],
                 solutions[m.operator][1])
        for name, (m, _) in pairs.items()
    ]  # fmt: skip


@torch.no_grad()
def measure(
    pairs: dict[str, tuple[KArAt, SoftmaxAttention]], teacher: nn.Module, samples: Iterable[Samples]
) -> dict[str, tuple[list[float], list[float], float]]:
    """Computes errors of each block: those of its heads, those of uniform attention, largest |s|.

    What operators compute is compared with softmax attention of the same queries, keys, values.
    """
    sums: dict[str, list[Tensor]] = {}
    largest = dict.fromkeys(pairs, 0.0)

    def compare(name, q, k, v):
        module = pairs[name][0]
        scores = q @ k.mT * q.shape[-1] ** -0.5
        wanted = scores.softmax(-1) @ v
        found = module.operator(*(x.to(module.qkv.weight) for x in (q, k, v)), module.grid)
        uniform = v.mean(2, keepdim=True)
        squares = [
            x.square().sum((0, 2, 3)) for x in (found.double() - wanted, uniform - wanted, wanted)
        ]
        old = sums.get(name)
        sums[name] = squares if old is None else [a + b for a, b in zip(old, squares, strict=True)]
        largest[name] = max(largest[name], scores.abs().max().item())

    _visit(pairs, teacher, samples, list(pairs), compare)
    return {
        name: (
            (ours / total).sqrt().tolist(),
            (uniform / total).sqrt().tolist(),
            largest[name],
        )
        for name, (ours, uniform, total) in sums.items()
    }


def _groups(users: dict[Operator, list[str]]) -> Iterator[list[Operator]]:
    """Yields operators, as many at a time as their moments leave memory for."""
    group, taken = [], 0
    for operator in users:
        size = 2 * Moments.size(operator)
        if group and taken + size > BUDGET:
            yield group
            group, taken = [], 0
        group.append(operator)
        taken += size
    yield group


def _visit(pairs, teacher, samples, names: list[str], visit: Visit) -> None:
    """Runs the teacher, and calls `visit` with what each attention named attends to, in fp64."""
    seen: set[str] = set()
    grids: dict[str, tuple[int, int]] = {}

    def look(name, module, args):
        x, grid, *rest = args
        grids[name] = tuple(grid)
        for tokens in _whole(module, pairs[name][0].grid, x, grid, *rest):
            seen.add(name)
            visit(
                name, *(t.double() for t in split_heads(module.project(tokens), module.num_heads))
            )

    by_module = {pairs[name][1]: name for name in reversed(names)}
    with _hooks(by_module, look):
        for sample in samples:
            run(teacher, sample)
    for name in by_module.values():
        if name not in seen:
            made = pairs[name][0].grid
            raise DataError(
                f'{name}: its operator is made for {made[0]} x {made[1]} tokens, and no map or '
                f'window of samples has as many (the last map: {grids.get(name)}): give images of '
                'the size that the network is made for'
            )


@contextmanager
def _hooks(by_module: dict[nn.Module, str], look: Callable) -> Iterator[None]:
    hooks = [
        module.register_forward_pre_hook(lambda m, args, look=partial(look, name): look(m, args))
        for module, name in by_module.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _whole(module, made_for, x, grid, windows=None) -> Iterator[Tensor]:
    """Yields tokens [B, N, C], row by row, of each map or window of the size wanted."""
    if not module.window_size:
        if tuple(grid) == tuple(made_for):
            yield x if windows is None else windows.restore(x)
        return
    if windows is None:
        windows = windows_of(grid, module.window_size)
        x = windows.order(x)
    for part, tile in zip(windows.split(x), windows.tiles, strict=True):
        if tile.window == tuple(made_for):
            yield part.reshape(-1, tile.height * tile.width, x.shape[-1])

"""Fits learnable attention to the softmax attention of a trained model."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attention.karat import KArAt
from ..attention.operator import Operator
from ..attention.softmax import SoftmaxAttention
from ..errors import ConfigError
from .attention_inputs import visit
from .operators import RIDGES, Moments, Solution, check_fittable, fit_operator
from .refitting import OutputMoments, can_refit, refit_weight
from .runs import Samples

BUDGET = 2 * 2**30  # bytes of moments that are kept at a time
# Root mean squares that scores are brought to; None leaves them.
SPREADS = (None, 1.0, 1 / 3)


@dataclass(frozen=True)
class BlockFit:
    """How well the operator of one attention was fitted.

    Attributes:
        name: of the attention in the model.
        errors: of each head's output on images that were not fitted: the root of
            sum |W Phi(S) V - softmax(S) V|^2 / sum |softmax(S) V|^2.
        uniform: the same of attention that weighs all tokens alike, for comparison.
        solution: ridges, conditions and errors of the fit; of all blocks that share an operator.
        scales: what the queries of each head were multiplied by.
        largest_score: |q k^T| / sqrt(d) of the softmax model on those images.
        rows: rows of scores that were fitted.
    """

    name: str
    errors: list[float]
    uniform: list[float]
    solution: Solution
    scales: list[float]
    largest_score: float
    rows: int


def softmax_twin(model: nn.Module) -> nn.Module:
    """Returns a copy of a model with softmax attention in the place of KArAt, same weights."""
    twin = copy.deepcopy(model)
    made: dict[KArAt, SoftmaxAttention] = {}  # blocks may share one
    for name, module in list(twin.named_modules(remove_duplicate=False)):
        if not isinstance(module, KArAt):
            continue
        if module not in made:
            softmax = SoftmaxAttention(
                module.qkv.in_features,
                module.num_heads,
                *(module.grid, module.window_size, module.prefix),
                qkv_bias=module.qkv.bias is not None,
            )
            softmax.qkv, softmax.proj, softmax.drop = module.qkv, module.proj, module.drop
            made[module] = softmax.train(module.training)
        parent, _, child = name.rpartition('.')
        setattr(twin.get_submodule(parent), child, made[module])
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
                f'{name}: the softmax model has one attention in several blocks, the other one has '
                'not: give both the same shared'
            )
    return pairs


def fit_attention(
    model: nn.Module,
    teacher: nn.Module,
    fitted: Iterable[Samples],
    held_out: Iterable[Samples],
    test: Iterable[Samples],
    ridges: Sequence[float] = RIDGES,
    spreads: Sequence[float | None] = SPREADS,
) -> list[BlockFit]:
    """Fits the operators of KArAt in a model to the softmax attention of a teacher, in place.

    Each learns the map from rows of scores to their softmax that `fit_operator` states, from the
    queries, keys and values of the teacher on samples. An operator that several blocks share is
    fitted to all of them. Attention on maps or windows that are not of the operator's size is
    left out.

    Where W is small enough, it is fitted once more, to the outputs themselves: see `refit_weight`.

    Softmax grows with scores without end, and trained scores leave the range in which functions
    are fit for use, as trigonometric ones are within a period. So the queries' projection of each
    head is scaled, to the root mean square of its scores among `spreads` that serves best.

    Args:
        model: with KArAt of form 'w_phi' or 'phi' and a basis that is linear in its coefficients,
            and with the weights of the teacher. All but operators and queries stays.
        teacher: of the same structure; see `softmax_twin`.
        fitted: inputs of the teacher, each a tensor, or a tuple or dict of arguments; gone through
            several times.
        held_out: others, by which ridge and spread are chosen.
        test: others again, of which errors are told.
        ridges: see `fit_operator`.
        spreads: see above; None leaves scores as they are. Where blocks share their projections,
            it is the only one.

    Raises:
        ConfigError: as `check_models`.
        DataError: for samples in which a block sees no map of its operator's size.
    """
    pairs = check_models(model, teacher)
    users: dict[Operator, list[str]] = {}
    for name, (module, _) in pairs.items():
        users.setdefault(module.operator, []).append(name)
    if len({module.qkv for module, _ in pairs.values()}) < len(pairs):
        spreads = (None,)
    sizes = _score_sizes(pairs, teacher, fitted)

    def scale(name: str, spread: float | None) -> Tensor:
        return torch.ones_like(sizes[name]) if spread is None else spread / sizes[name]

    solutions: dict[Operator, tuple[Solution, int]] = {}
    for group in _groups(users, len(spreads)):
        moments = {op: [(Moments(op), Moments(op)) for _ in spreads] for op in group}
        for part, samples in enumerate((fitted, held_out)):

            def add(name, q, k, v, part=part, moments=moments):
                scores = q @ k.mT * q.shape[-1] ** -0.5
                weights = scores.softmax(-1)
                for pair, spread in zip(moments[pairs[name][0].operator], spreads, strict=True):
                    pair[part].add(scores * scale(name, spread)[:, None, None], weights, v)

            visit(pairs, teacher, samples, [name for op in group for name in users[op]], add)
        for operator, found in moments.items():
            solutions[operator] = fit_operator(operator, found, ridges), found[0][0].rows
    scales = {}
    for name, (module, _) in pairs.items():
        choices = solutions[module.operator][0].choices
        scales[name] = torch.stack([scale(name, spreads[c])[h] for h, c in enumerate(choices)])
        _scale_queries(module, scales[name])
    for operator, names in users.items():
        if can_refit(operator):
            _refit(operator, names, pairs, teacher, (fitted, held_out), scales)
    errors = measure(pairs, teacher, test, scales)
    return [
        BlockFit(
            *(name, *errors[name][:2], solutions[module.operator][0]),
            *(scales[name].tolist(), errors[name][2], solutions[module.operator][1]),
        )
        for name, (module, _) in pairs.items()
    ]


def _refit(operator, names, pairs, teacher, parts, scales) -> None:
    moments = OutputMoments(operator), OutputMoments(operator)
    for part, samples in zip(moments, parts, strict=True):

        def add(name, q, k, v, part=part):
            scores = q @ k.mT * q.shape[-1] ** -0.5
            part.add(scores * scales[name][:, None, None], v, scores.softmax(-1) @ v)

        visit(pairs, teacher, samples, names, add)
    refit_weight(operator, *moments)


@torch.no_grad()
def _scale_queries(module: KArAt, scales: Tensor) -> None:
    for parameter in (module.qkv.weight, module.qkv.bias):
        if parameter is not None:
            queries = parameter[: len(parameter) // 3]
            queries.unflatten(0, (len(scales), -1)).transpose(0, -1).mul_(scales.to(parameter))


def _score_sizes(pairs, teacher, samples) -> dict[str, Tensor]:
    """Computes the root mean square of the scores of each block's heads."""
    sums: dict[str, list[Tensor]] = {}

    def add(name, q, k, v):
        squares = (q @ k.mT * q.shape[-1] ** -0.5).square()
        sums.setdefault(name, []).append(squares.mean((0, 2, 3)))

    visit(pairs, teacher, samples, list(pairs), add)
    return {name: torch.stack(means).mean(0).sqrt().clamp(min=1e-6) for name, means in sums.items()}


@torch.no_grad()
def measure(
    pairs: dict[str, tuple[KArAt, SoftmaxAttention]],
    teacher: nn.Module,
    samples: Iterable[Samples],
    scales: dict[str, Tensor] | None = None,
) -> dict[str, tuple[list[float], list[float], float]]:
    """Computes errors of each block: those of its heads, those of uniform attention, largest |s|.

    What operators compute is compared with softmax attention of the same queries, keys, values,
    the teacher's; with scales, operators have their queries multiplied by those of each head.
    """
    sums: dict[str, list[Tensor]] = {}
    largest = dict.fromkeys(pairs, 0.0)

    def compare(name, q, k, v):
        module = pairs[name][0]
        scores = q @ k.mT * q.shape[-1] ** -0.5
        wanted = scores.softmax(-1) @ v
        scaled = q if scales is None else q * scales[name][:, None, None]
        found = module.operator(*(x.to(module.qkv.weight) for x in (scaled, k, v)), module.grid)
        uniform = v.mean(2, keepdim=True)
        squares = [
            x.square().sum((0, 2, 3)) for x in (found.double() - wanted, uniform - wanted, wanted)
        ]
        old = sums.get(name)
        sums[name] = squares if old is None else [a + b for a, b in zip(old, squares, strict=True)]
        largest[name] = max(largest[name], scores.abs().max().item())

    visit(pairs, teacher, samples, list(pairs), compare)
    return {
        name: (
            (ours / total).sqrt().tolist(),
            (uniform / total).sqrt().tolist(),
            largest[name],
        )
        for name, (ours, uniform, total) in sums.items()
    }


def _groups(users: dict[Operator, list[str]], alternatives: int) -> Iterator[list[Operator]]:
    """Yields operators, as many at a time as their moments leave memory for."""
    group, taken = [], 0
    for operator in users:
        size = 2 * alternatives * Moments.size(operator)
        if group and taken + size > BUDGET:
            yield group
            group, taken = [], 0
        group.append(operator)
        taken += size
    yield group

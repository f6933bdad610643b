"""The parameters of a network by their kind, and the numbers that describe them."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..attention import Attention
from ..attention.operator import Operator
from ..attention.units import UnitLayer
from ..models.block import LayerScale
from ..norms import NORMS
from ..rational import GroupRational

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
MOST = 2**24  # entries that torch sorts for quantiles
# Of modules: what the names of their own parameters are called.
NAMED: tuple[tuple[type | tuple[type, ...], dict[str, str]], ...] = (
    (
        UnitLayer,
        {
            'coefficients': 'KArAt: coefficients',
            'base_scale': 'KArAt: scales',
            'basis_scale': 'KArAt: scales',
        },
    ),
    (Operator, {'weight': 'KArAt: W'}),
    (
        Attention,
        {
            'gate': 'KArAt: gates',
            'rel_pos_h': 'attention: relative positions',
            'rel_pos_w': 'attention: relative positions',
        },
    ),
    (
        GroupRational,
        {
            'weight_numerator': 'rational: numerators',
            'weight_denominator': 'rational: denominators',
        },
    ),
    (LayerScale, {'gamma': 'layer scales'}),
    (NORMS, {'weight': 'norms: scales', 'bias': 'norms: offsets'}),
)
IN_ATTENTION = {'qkv': 'attention: q, k, v', 'proj': 'attention: output'}


def kinds(model: nn.Module) -> dict[str, list[str]]:
    """Returns the names of a model's parameters by their kind; shared parameters are there once.

    Parts of the network have kinds of their own; weights elsewhere are called by the outermost part
    of the model that they are in, such as 'neck: weights'.
    """
    owners = dict(model.named_modules())
    result: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        result.setdefault(_kind(name, owners), []).append(name)
    return dict(sorted(result.items(), key=lambda item: _place(item[0])))


def _kind(name: str, owners: Mapping[str, nn.Module]) -> str:
    path, _, last = name.rpartition('.')
    owner = owners[path]
    for module, names in NAMED:
        if isinstance(owner, module) and last in names:
            return names[last]
    if last == 'bias':
        return 'biases'
    above, _, part = path.rpartition('.')
    if isinstance(owners.get(above), Attention):
        return IN_ATTENTION.get(part, 'attention: weights')
    if '.mlp.' in f'{path}.' and last == 'weight':
        return 'feed-forward: weights'
    if last in ('pos_embed', 'cls_token', 'reg_token') or '.patch_embed.' in f'.{path}.':
        return 'embeddings'
    return f'{name.partition(".")[0]}: weights' if path else 'other weights'


def _place(kind: str) -> tuple[int, str]:
    """Sorts learnable functions in front, then other parts of the network, then all else."""
    first = ('KArAt', 'rational', 'attention', 'feed-forward', 'embeddings')
    group = kind.partition(':')[0]
    return (first.index(group) if group in first else len(first), kind)


def gather(weights: Mapping[str, Tensor], names: list[str]) -> Tensor:
    """Returns all entries of some parameters as one vector in fp64 on the CPU."""
    return torch.cat([weights[name].detach().double().flatten().cpu() for name in names])


def describe(values: Tensor) -> dict:
    """Returns the number, moments, range and quantiles of entries [n]."""
    step = max(len(values) // MOST, 1)
    levels = torch.tensor(QUANTILES, dtype=values.dtype)
    quantiles = values[::step][:MOST].quantile(levels).tolist()
    return {
        'count': len(values),
        'mean': values.mean().item(),
        'std': values.std(correction=0).item(),
        'least': values.min().item(),
        'most': values.max().item(),
        'quantiles': {f'{level:g}': q for level, q in zip(QUANTILES, quantiles, strict=True)},
    }


def by_kind(
    model: nn.Module, weights: Mapping[str, Tensor], start: Mapping[str, Tensor] | None = None
) -> Iterator[tuple[str, Tensor, Tensor | None, dict]]:
    """Yields each kind of parameter, its entries, those of a start, and the numbers.

    A start may know some kinds alone. The numbers then have its own, and 'relative_change': the
    root mean square of the differences over that of the start; None where that is zero.
    """
    for kind, names in kinds(model).items():
        values, before = gather(weights, names), None
        numbers = {'parameters': len(names), **describe(values)}
        if start and all(name in start for name in names):
            before = gather(start, names)
            size = before.norm().item()
            change = (values - before).norm().item()
            numbers['start'] = describe(before)
            numbers['relative_change'] = change / size if size else None
        yield kind, values, before, numbers

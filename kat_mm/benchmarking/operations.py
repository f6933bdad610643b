"""Counts the operations of a model's forward pass, and its parameters, part by part.

A multiply-add counts as one, as in published tables. So does each operation of a rational
activation, 2m + 2n + 3 an element by Horner's scheme, as in KAT's (arXiv 2409.10594, section 4).
Norms count 5 an element and batch norms 2, as in fvcore, by which those tables were made. What
else works on single elements (softmax, other activations, pooling, resizing) counts nothing.
"""

import re
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..attention import flops as attention_flops
from ..norms import NORMS
from ..rational.flops import FORMULAS
from ..rational.layer import GroupRational

aten = torch.ops.aten
RATIONALS = {f'kat_mm.{name}' for name in FORMULAS}
SUMS = {f'kat_mm.{name}' for name in attention_flops.FORMULAS}
NORM_OPERATIONS = {
    'aten.native_layer_norm': 5,
    'aten.native_group_norm': 5,
    'aten.native_batch_norm': 2,
}
# The parts of a component, such as a backbone, in the order of the table; '' is the rest.
ATTENTION_PRODUCTS, RATIONAL_ACTIVATIONS = 'attention, products', 'rational activations'
PARTS = (
    *('', 'embeddings', 'attention, linear layers', ATTENTION_PRODUCTS, 'attention, functions'),
    *('MLP, linear layers', RATIONAL_ACTIVATIONS, 'norms', 'pyramid', 'other products'),
)
NAMES = (  # what modules are called in a part
    ('patch_embed|pos_embed|cls_token|reg_token', 'embeddings'),
    (r'\b(attn|attention)\.(operator|gate)\b', 'attention, functions'),  # learnable ones of KArAt
    ('attn|attention', 'attention, linear layers'),
    (r'\b(mlp|ffns?)\b', 'MLP, linear layers'),
    (r'\bpyramid\b', 'pyramid'),
)


class OperationCounter(TorchDispatchMode):
    """Adds up the operations of a model while active: `counts[module path, op]`.

    The formulas are torch's. Unlike its FlopCounterMode, it attributes an op to one module, the
    innermost that runs it, wherever that one is in the model.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.counts: Counter[tuple[str, str]] = Counter()
        self._paths = {module: path for path, module in model.named_modules()}
        self._running = ['']

    def __enter__(self):
        self._hooks = (
            register_module_forward_pre_hook(self._start),
            register_module_forward_hook(self._end, always_call=True),
        )
        return super().__enter__()

    def __exit__(self, *args):
        super().__exit__(*args)
        for hook in self._hooks:
            hook.remove()

    def _start(self, module, *args) -> None:
        self._running.append(self._paths.get(module, self._running[-1]))

    def _end(self, *args) -> None:
        self._running.pop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        op = func._overloadpacket
        if operations := _operations(op, args, kwargs, out):
            self.counts[self._running[-1], str(op)] += operations
        return out


def _operations(op, args: tuple, kwargs: dict, out) -> int:
    name = str(op)
    if name in NORM_OPERATIONS:
        return NORM_OPERATIONS[name] * args[0].numel()
    if name == 'torchvision.deform_conv2d':
        return out.numel() * args[1][0].numel()
    if name == 'aten._scaled_dot_product_flash_attention_for_cpu':  # torch has no formula for it
        op = aten._scaled_dot_product_flash_attention
    if op not in flop_registry:
        return 0
    flops = flop_registry[op](*args, **kwargs, out_val=out)
    return flops if name in RATIONALS else flops // 2


@dataclass
class Part:
    """What one part of a model amounts to."""

    parameters: int = 0
    operations: int = 0


def count_parts(model: nn.Module, *args, **kwargs) -> dict[tuple[str, str], Part]:
    """Runs model(*args, **kwargs) and counts, for each (component, part of it).

    Components are modules, such as 'backbone' or 'roi_head.mask_head', in the model's order, and
    their parts are those in `PARTS`, told apart by what the modules are called and compute.
    """
    modules = dict(model.named_modules())
    parts: dict[tuple[str, str], Part] = {}
    with torch.no_grad(), OperationCounter(model) as counter:
        model(*args, **kwargs)
    for (path, op), operations in counter.counts.items():
        part = _part_of_operation(path, op, modules[path])
        parts.setdefault((_component(path), part), Part()).operations += operations
    for name, parameter in model.named_parameters():  # shared ones once
        path = name.rpartition('.')[0]
        part = _part_of_parameter(name, modules[path])
        parts.setdefault((_component(path), part), Part()).parameters += parameter.numel()
    components = list(dict.fromkeys(map(_component, modules)))
    order = sorted(parts, key=lambda key: (components.index(key[0]), PARTS.index(key[1])))
    return {key: parts[key] for key in order}


def _component(path: str) -> str:
    names = path.split('.')
    return '.'.join(names[: 2 if names[0] == 'roi_head' else 1])


def _part_of_operation(path: str, op: str, module: nn.Module) -> str:
    if op in NORM_OPERATIONS:
        return 'norms'
    if op in RATIONALS:
        return RATIONAL_ACTIVATIONS
    # A product has activations on both sides, but torch computes linear layers as products of
    # batches where the input is not contiguous.
    is_product = op in ('aten.bmm', 'aten.baddbmm', *SUMS) or 'attention' in op
    if is_product and not isinstance(module, nn.Linear):
        return ATTENTION_PRODUCTS if re.search('attn|attention', path) else 'other products'
    return _part_by_name(path)


def _part_of_parameter(name: str, owner: nn.Module) -> str:
    if isinstance(owner, NORMS):
        return 'norms'
    return RATIONAL_ACTIVATIONS if isinstance(owner, GroupRational) else _part_by_name(name)


def _part_by_name(path: str) -> str:
    return next((part for pattern, part in NAMES if re.search(pattern, path)), '')

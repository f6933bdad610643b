"""Adapts the optimizer, its schedule, the precision and the imports to KAT."""

from collections.abc import Collection

from ..optimizer import OPTIONS
from .edits import Edits
from .probe import CannotSwap, kind

# The recipe of configs/_base_/schedule_36e.py, for a total batch of 16.
OPTIMIZER = {
    'type': 'AdamW',
    'lr': 1e-4,
    'betas': (0.9, 0.999),
    'weight_decay': 0.05,
    'fused': True,
}
BATCH = 16
WARMUP = {'type': 'LinearLR', 'start_factor': 0.001, 'by_epoch': False, 'begin': 0, 'end': 1000}
# Their losses write fp32 values into tensors of autocast's dtype, which PyTorch refuses.
FULL_PRECISION = ('AutoAssign', 'DDQDETR', 'VFNet')
WARMUPS = ('LinearLR', 'ConstantLR', 'QuadraticWarmupLR')


def fit_optimizer(edits: Edits, parameters: Collection[str], layer_decay: float | None) -> None:
    """Trains with AdamW, in the parameter groups of KATOptimWrapperConstructor.

    Args:
        edits: config of the new model.
        parameters: names of that model's parameters.
        layer_decay: rate of layer-wise learning rate decay; None for that of the config, if any.

    Raises:
        CannotSwap: if the config has no optimizer, or several.
    """
    optimizer = edits.get('optim_wrapper.optimizer')
    if not isinstance(optimizer, dict):
        raise CannotSwap('the config has no optim_wrapper.optimizer, or several of them')
    if kind(optimizer) == 'SGD':
        edits.set('optim_wrapper.optimizer', dict(OPTIMIZER), 'transformers are trained with AdamW')
        _fit_schedule(edits, OPTIMIZER['lr'] / optimizer['lr'])
    elif kind(optimizer) in ('Adam', 'AdamW') and not {'fused', 'foreach'} & set(optimizer):
        reason = 'one kernel for all parameters of a group'
        edits.set('optim_wrapper.optimizer.fused', True, reason)
    edits.set(
        'optim_wrapper.constructor',
        'KATOptimWrapperConstructor',
        "knows KAT's blocks and what in them takes no weight decay",
    )
    key = 'optim_wrapper.paramwise_cfg'
    options = dict(edits.get(key) or {})
    if layer_decay is None and options.get('decay_type') == 'layer_wise':
        layer_decay = options['decay_rate']
    for name in sorted(set(options) - set(OPTIONS)):
        edits.remove(f'{key}.{name}', 'an option of the old constructor')
    custom = options.get('custom_keys') or {}
    idle = [part for part in custom if not any(part in name for name in parameters)]
    if idle:
        kept = {part: value for part, value in custom.items() if part not in idle}
        edits.set(f'{key}.custom_keys', kept, f'no parameter has {", ".join(idle)} in its name')
    if layer_decay is not None:
        edits.set(f'{key}.layer_decay_rate', layer_decay, "learning rates decay by KAT's blocks")


def fit_precision(edits: Edits) -> None:
    """Trains in bf16 mixed precision, which needs no scaling of the loss, where that works."""
    wrapped = kind(edits.get('optim_wrapper')) in ('OptimWrapper', 'AmpOptimWrapper')
    if not wrapped or kind(edits.get('model')) in FULL_PRECISION:
        return
    if any(kind(node) == 'MMSyncBN' for _, node in edits.dicts('model')):  # takes no bf16
        return
    reason = 'bf16 mixed precision; tools/train.py turns it off where there is no GPU'
    edits.set('optim_wrapper.type', 'AmpOptimWrapper', reason)
    edits.set('optim_wrapper.dtype', 'bfloat16', reason)
    edits.set('optim_wrapper.loss_scale', {'enabled': False}, 'bf16 has the range of fp32')
    for key, node in edits.dicts('model'):
        if kind(node) == 'SingleRoIExtractor':
            reason = 'bf16 would round the coordinates of RoIs'
            edits.set(f'{key}.type', 'FullPrecisionRoIExtractor', reason)


def fit_hooks(edits: Edits) -> None:
    """Reads losses of a GPU with the log, and not in each iteration."""
    hook = {'type': 'DeferredRuntimeInfoHook'}
    edits.set('default_hooks.runtime_info', hook, 'the host waits for the GPU for the log alone')


def fit_imports(edits: Edits) -> None:
    """Imports kat_mm, and mmpretrain no more if only the old backbone was its."""
    modules = edits.get('custom_imports.imports') or []
    modules = [modules] if isinstance(modules, str) else list(modules)
    types = [str(node.get('type')) for _, node in edits.dicts('model')]
    if not any(name.startswith('mmpretrain.') for name in types):
        modules = [name for name in modules if name.partition('.')[0] != 'mmpretrain']
    modules.append('kat_mm.openmmlab')
    edits.set('custom_imports.imports', modules, 'registers KAT and its parts')


def _fit_schedule(edits: Edits, ratio: float) -> None:
    """Scales what a schedule tells in absolute learning rates, and adds a missing warm-up."""
    if 'base_batch_size' in (edits.get('auto_scale_lr') or {}):
        edits.set('auto_scale_lr.base_batch_size', BATCH, 'that of the new learning rate')
    schedules = edits.get('param_scheduler') or []
    if isinstance(schedules, dict):
        edits.set('param_scheduler', [schedules], 'a list, to hold a warm-up')
        schedules = edits.get('param_scheduler')
    for i, schedule in enumerate(schedules):
        if schedule.get('eta_min'):
            scaled = float(f'{schedule["eta_min"] * ratio:.3g}')
            reason = 'the same share of the learning rate as before'
            edits.set(f'param_scheduler.{i}.eta_min', scaled, reason)
    if not any(kind(schedule) in WARMUPS for schedule in schedules):
        reason = 'transformers need a warm-up'
        edits.set('param_scheduler', [dict(WARMUP), *schedules], reason)

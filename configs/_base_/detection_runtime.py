# What all detection runs share: safe checkpoints, runs that resume exactly, a stop at divergence.
_base_ = 'mmdet::_base_/default_runtime.py'

default_hooks = dict(
    runtime_info=dict(type='DeferredRuntimeInfoHook'),
    checkpoint=dict(type='SafeCheckpointHook', interval=1, max_keep_ckpts=3),
)
custom_hooks = [dict(type='EpochSeedHook'), dict(type='FiniteLossHook')]
log_processor = dict(type='MemoryLogProcessor')
randomness = dict(seed=0)

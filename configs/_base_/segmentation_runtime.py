# What segmentation runs share: safe checkpoints, runs that resume exactly, a stop at divergence.
_base_ = 'mmseg::_base_/default_runtime.py'

default_hooks = dict(
    runtime_info=dict(type='DeferredRuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=16000, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
custom_hooks = [
    dict(type='EpochSeedHook'),
    dict(type='FiniteLossHook'),
    dict(type='CUDAGraphHook'),  # all crops have one size, and so one graph
]
log_processor = dict(type='MemoryLogProcessor')
randomness = dict(seed=0)

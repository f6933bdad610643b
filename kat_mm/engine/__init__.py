"""Training: parameter groups, hooks and what the command-line tools share. Needs mmengine."""

from .checkpoint_hook import SafeCheckpointHook, latest_checkpoint
from .epoch_seed_hook import EpochSeedHook
from .finite_loss_hook import FiniteLossHook
from .layer_decay import KATOptimWrapperConstructor
from .log_processor import MemoryLogProcessor

__all__ = [
    'EpochSeedHook',
    'FiniteLossHook',
    'KATOptimWrapperConstructor',
    'MemoryLogProcessor',
    'SafeCheckpointHook',
    'latest_checkpoint',
]

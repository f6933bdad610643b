"""Which assigners and samplers of mmdet's the heads for a whole batch take."""

from mmdet.models.task_modules.assigners import BaseAssigner, BboxOverlaps2D, MaxIoUAssigner
from mmdet.models.task_modules.samplers import BaseSampler, RandomSampler


def unsupported_choice(assigner: BaseAssigner, sampler: BaseSampler) -> str | None:
    """Names the setting for which `assign` and `sample` give other results than mmdet, if any."""
    if type(assigner) is not MaxIoUAssigner:
        return f'train_cfg.assigner must be a MaxIoUAssigner, got {type(assigner).__name__}'
    if type(sampler) is not RandomSampler:
        return f'train_cfg.sampler must be a RandomSampler, got {type(sampler).__name__}'
    calculator, low = assigner.iou_calculator, assigner.neg_iou_thr
    if type(calculator) is not BboxOverlaps2D or calculator.dtype is not None:
        wanted = 'iou_calculator must be BboxOverlaps2D without a dtype'
        return f'train_cfg.assigner.{wanted}, got {calculator}'
    if assigner.perm_repeat_gt_cfg is not None:
        wanted = 'perm_repeat_gt_cfg must be None'
        return f'train_cfg.assigner.{wanted}, got {assigner.perm_repeat_gt_cfg}'
    if not isinstance(low, float | tuple):  # with others mmdet has no negative boxes
        return f'train_cfg.assigner.neg_iou_thr must be a float or a tuple, got {low!r}'
    return None

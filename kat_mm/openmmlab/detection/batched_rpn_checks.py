"""Which settings of mmdet's RPNHead BatchedRPNHead takes."""

from mmdet.models import losses
from mmdet.models.task_modules.assigners import BboxOverlaps2D, MaxIoUAssigner
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmdet.models.task_modules.samplers import RandomSampler

from ...errors import ConfigError

# Those that add up over anchors, so that anchors of no weight can be left out.
CLASSIFICATION = ('CrossEntropyLoss', 'FocalLoss')
BOX = ('L1Loss', 'SmoothL1Loss', 'BalancedL1Loss', 'IoULoss', 'BoundedIoULoss', 'GIoULoss')
BOX += ('DIoULoss', 'CIoULoss')


def check_head(head) -> None:
    """Raises ConfigError for settings of a head, just built, that it does not take."""

    def check(is_right: bool, name: str, wanted: str, got) -> None:
        if not is_right:
            raise ConfigError(
                f'{type(head).__name__}: {name} must be {wanted}, got {got}; or use RPNHead'
            )

    for name, known in (('loss_cls', CLASSIFICATION), ('loss_bbox', BOX)):
        loss = getattr(head, name)
        is_known = any(type(loss) is getattr(losses, each) for each in known)
        check(is_known, name, ', '.join(known[:-1]) + f' or {known[-1]}', type(loss).__name__)
        check(loss.reduction == 'mean', f'{name}.reduction', "'mean'", repr(loss.reduction))
    generator = head.prior_generator
    is_grid = isinstance(generator, AnchorGenerator) and not generator.use_box_type
    check(is_grid, 'anchor_generator', 'an AnchorGenerator without use_box_type', generator)
    check(not head.bbox_coder.use_box_type, 'bbox_coder.use_box_type', 'False', 'True')
    if not head.train_cfg:
        return
    assigner, sampler = head.assigner, head.sampler
    name = 'train_cfg.assigner'
    check(type(assigner) is MaxIoUAssigner, name, 'a MaxIoUAssigner', type(assigner).__name__)
    calculator = assigner.iou_calculator
    is_plain = type(calculator) is BboxOverlaps2D and calculator.dtype is None
    check(is_plain, f'{name}.iou_calculator', 'BboxOverlaps2D without a dtype', calculator)
    repeated = assigner.perm_repeat_gt_cfg
    check(repeated is None, f'{name}.perm_repeat_gt_cfg', 'None', repeated)
    low = assigner.neg_iou_thr
    check(isinstance(low, (float, tuple)), f'{name}.neg_iou_thr', 'a float or a tuple', repr(low))
    name = 'train_cfg.sampler'
    check(type(sampler) is RandomSampler, name, 'a RandomSampler', type(sampler).__name__)
    adds = sampler.add_gt_as_proposals
    check(not adds, f'{name}.add_gt_as_proposals', 'False', adds)


def takes_cfg(cfg, coder) -> bool:
    """Tells whether proposals with a test_cfg and a box coder are ones that a batch has at once."""
    nms = dict(cfg.get('nms') or {'type': None})
    return (
        type(coder) is DeltaXYWHBBoxCoder
        and coder.clip_border
        and not coder.add_ctr_clamp
        and cfg.max_per_img >= 0
        and nms.get('type', 'nms') == 'nms'
        and not nms.get('class_agnostic', False)
        and nms.get('iou_threshold', -1) >= 0
        and not set(nms) - {'type', 'iou_threshold', 'split_thr', 'max_num', 'class_agnostic'}
    )

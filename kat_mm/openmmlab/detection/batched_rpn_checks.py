"""Which settings of mmdet's RPNHead BatchedRPNHead takes."""

from mmdet.models import losses
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.prior_generators import AnchorGenerator

from ...errors import ConfigError
from .choice_checks import unsupported_choice

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
    if reason := unsupported_choice(assigner, sampler):
        raise ConfigError(f'{type(head).__name__}: {reason}; or use RPNHead')
    adds = sampler.add_gt_as_proposals
    check(not adds, 'train_cfg.sampler.add_gt_as_proposals', 'False', adds)


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

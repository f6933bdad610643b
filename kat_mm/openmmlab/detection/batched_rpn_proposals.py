"""The proposals of mmdet's RPNHead, which are mmcv's batched_nms's, for a whole batch at once."""

from torch import Tensor

from ...detection import decode_boxes, merge_levels, nms, top_k
from .anchor_grid import Grid
from .proposals import Proposals


def propose(
    scores: Tensor,
    deltas: Tensor,
    grid: Grid,
    coder,
    cfg,
    limits: Tensor,
    factors: Tensor | None = None,
) -> Proposals:
    """Computes the proposals of a batch.

    Args:
        scores: [B, N], probabilities.
        deltas: [B, N, 4], in any floating dtype.
        coder: a DeltaXYWHBBoxCoder.
        cfg: `nms_pre`, `min_bbox_size`, `nms` and `max_per_img`.
        limits: [B, 4], the width and the height of each image, twice.
        factors: [B, 4], by which the coordinates are multiplied; None for 1.
    """
    most = cfg.get('nms_pre', -1)
    scores, indices = top_k(scores, grid.counts, most if most > 0 else max(grid.counts))
    boxes, shifted, valid = decode_boxes(
        grid.anchors,
        deltas,
        indices,
        grid.counts,
        limits,
        factors,
        coder.means,
        coder.stds,
        cfg.get('min_bbox_size', -1),
    )
    limit = cfg.max_per_img
    if cfg.nms.get('max_num', -1) > 0:
        limit = min(limit, cfg.nms['max_num'])
    # mmcv suppresses the shifted boxes of all levels at once: the same boxes, rounded alike.
    kept, counts = nms(
        shifted.flatten(0, 1),
        scores.flatten(0, 1),
        cfg.nms['iou_threshold'],
        valid.flatten(0, 1),
        min(limit, scores.shape[2]),
    )
    kept, counts = kept.view(*scores.shape[:2], -1), counts.view(scores.shape[:2])
    return Proposals(*merge_levels(boxes, scores, kept, counts, limit))

"""The torch ops that compiled libraries register kernels for, and the mark of this set of them.

A kernel takes its arguments by their places: one built for another schema would read the wrong
ones. So the name of a library ends with the mark of the schemas that it was built for, and any
other is left alone. `setup.py` runs this file by itself.
"""

import zlib

SCHEMAS = {
    'rational': (
        '(Tensor x, Tensor numerator, Tensor denominator, int channel_dim=-1, '
        'ScalarType? out_dtype=None) -> Tensor'
    ),
    'rational_backward': (
        '(Tensor grad, Tensor x, Tensor numerator, Tensor denominator, int channel_dim=-1, '
        'bool coefficient_grads=True) -> (Tensor, Tensor, Tensor)'
    ),
    'layer_norm_rational': (
        '(Tensor x, Tensor weight, Tensor bias, Tensor numerator, Tensor denominator, float eps, '
        'ScalarType? out_dtype=None) -> (Tensor, Tensor)'
    ),
    'layer_norm_rational_backward': (
        '(Tensor grad, Tensor x, Tensor statistics, Tensor weight, Tensor bias, Tensor numerator, '
        'Tensor denominator) -> (Tensor, Tensor, Tensor, Tensor, Tensor)'
    ),
    'upsample_bilinear': (
        '(Tensor input, int height, int width, bool align_corners=False) -> Tensor'
    ),
    'upsample_bilinear_backward': (
        '(Tensor grad, int height, int width, bool align_corners=False) -> Tensor'
    ),
    'upsample_cross_entropy': (
        '(Tensor logits, Tensor labels, Tensor? class_weight=None, int ignore_index=-100, '
        'bool align_corners=False) -> (Tensor, Tensor, Tensor)'
    ),
    'upsample_cross_entropy_backward': (
        '(Tensor grad, Tensor logits, Tensor labels, Tensor partition, Tensor? class_weight, '
        'int ignore_index, bool align_corners) -> Tensor'
    ),
    'multilevel_roi_align': (
        '(Tensor[] maps, Tensor rois, Tensor? levels, float finest_scale, int[] output_size, '
        'float[] scales, int sampling_ratio, bool aligned, bool channels_last) '
        '-> Tensor'
    ),
    'multilevel_roi_align_backward': (
        '(Tensor grad, Tensor rois, Tensor? levels, int[] sizes, float finest_scale, '
        'float[] scales, int sampling_ratio, bool aligned) -> Tensor[]'
    ),
    'paste_masks': (
        '(Tensor masks, Tensor boxes, int height, int width, float threshold) -> Tensor'
    ),
    'nms': (
        '(Tensor boxes, Tensor order, Tensor? valid, float iou_threshold, int max_keep) '
        '-> (Tensor, Tensor)'
    ),
    'max_iou_assign': (
        '(Tensor boxes, Tensor? valid, Tensor gt_boxes, Tensor gt_counts, float pos_iou, '
        'float neg_low, float neg_high, float min_pos_iou, bool match_low_quality, '
        'bool gt_max_assign_all) -> (Tensor, Tensor)'
    ),
    'bitmap_targets': (
        '(Tensor starts, Tensor table, Tensor words, Tensor boxes, Tensor images, '
        'Tensor instances, int height, int width, bool binarize=True) -> Tensor'
    ),
    'polygon_targets': (
        '(Tensor starts, Tensor table, Tensor polygons, Tensor vertices, Tensor boxes, '
        'Tensor images, Tensor instances, int height, int width) -> Tensor'
    ),
    'upsample_argmax': (
        '(Tensor logits, int via_height, int via_width, int top, int left, int window_height, '
        'int window_width, int height, int width, bool align_corners=False) -> Tensor'
    ),
}
# To be raised where a kernel computes something else under the same schema.
REVISION = 1
MARK = f'{zlib.crc32(repr((REVISION, SCHEMAS)).encode()):08x}'

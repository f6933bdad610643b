"""mmcv.ops.RoIAlign against loops over its bins and points."""

import math

import numpy as np
import pytest
import torch
from compat_sampling import rounding, sample_edge_padded
from mmcv.ops import RoIAlign
from mmcv.ops.roi_align import roi_align
from mmdet.structures.mask import BitmapMasks

ROIS = [
    [0, 1.0, 2.0, 15.0, 9.0],
    [1, 0.0, 0.0, 23.0, 19.0],
    [1, -9.0, 4.0, 12.0, 30.0],  # reaches outside
    [0, 7.0, 7.0, 7.5, 7.25],  # smaller than a pixel
    [0, 60.0, 60.0, 70.0, 70.0],  # wholly outside
]


def reference(feature, rois, size, scale, sampling_ratio, pool_mode, aligned):
    rows = []
    for index, *corners in rois.tolist():
        x1, y1, x2, y2 = (corner * scale - 0.5 * aligned for corner in corners)
        height, width = y2 - y1, x2 - x1
        if not aligned:
            height, width = max(height, 1), max(width, 1)
        bin_h, bin_w = height / size[0], width / size[1]
        grid_h = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_h)
        grid_w = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_w)
        bins = []
        for ph in range(size[0]):
            for pw in range(size[1]):
                points = torch.stack(
                    [
                        sample_edge_padded(
                            feature[int(index)],
                            y1 + (ph + (iy + 0.5) / grid_h) * bin_h,
                            x1 + (pw + (ix + 0.5) / grid_w) * bin_w,
                        )
                        for iy in range(grid_h)
                        for ix in range(grid_w)
                    ]
                )
                bins.append(points.mean(0) if pool_mode == 'avg' else points.amax(0))
        rows.append(torch.stack(bins, 1).unflatten(1, size))
    return torch.stack(rows)


def some_feature(device='cpu', dtype=torch.float64):
    return torch.randn(2, 3, 10, 12, dtype=torch.float64).to(dtype).to(device)


@pytest.mark.parametrize('pool_mode', ['avg', 'max'])
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_value_and_gradient(device, pool_mode, aligned, sampling_ratio, dtype):
    args = ((2, 3), 0.5, sampling_ratio, pool_mode, aligned)
    feature = some_feature().requires_grad_()
    rois = torch.tensor(ROIS, dtype=torch.float64)
    expected = reference(feature, rois, *args)
    grad = torch.randn_like(expected)
    (expected_grad,) = torch.autograd.grad(expected, feature, grad)

    own = feature.detach().to(device, dtype).requires_grad_()
    output = RoIAlign(*args)(own, rois.to(device, dtype))
    # Not contiguous, as a head's gradient can be.
    output.backward(grad.to(device, dtype).mT.contiguous().mT)
    assert output.dtype == own.grad.dtype == dtype
    torch.testing.assert_close(output.double().cpu(), expected.detach(), **rounding(dtype))
    torch.testing.assert_close(own.grad.double().cpu(), expected_grad, **rounding(dtype))


@pytest.mark.parametrize('pool_mode', ['avg', 'max'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_16_bits(device, pool_mode, dtype):
    args = ((2, 2), 0.5, 0, pool_mode, True)
    feature = some_feature(device, dtype).requires_grad_()
    # fp32 boxes beside a 16-bit feature, as autocast can leave them.
    rois = torch.tensor(ROIS, device=device)
    output = roi_align(feature, rois, *args)
    output.sum().backward()
    wide = feature.detach().double().requires_grad_()
    expected = roi_align(wide, rois.double(), *args)
    expected.sum().backward()
    assert output.dtype == feature.grad.dtype == dtype
    torch.testing.assert_close(output.double(), expected, **rounding(dtype))
    torch.testing.assert_close(feature.grad.double(), wide.grad, **rounding(dtype))


def test_autocast(device):
    feature = some_feature(device, torch.float32).requires_grad_()
    layer = RoIAlign((2, 2), 0.5)
    rois = torch.tensor(ROIS, device=device)
    plain = layer(feature, rois)
    with torch.autocast(device, torch.bfloat16):
        output = layer(feature, rois)
        output.sum().backward()
    assert output.dtype == torch.float32
    assert torch.equal(output, plain)


@pytest.mark.parametrize('pool_mode', ['avg', 'max'])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_no_rois(device, pool_mode, sampling_ratio):
    feature = some_feature(device).requires_grad_()
    layer = RoIAlign((4, 5), 1.0, sampling_ratio, pool_mode)
    output = layer(feature, feature.new_zeros(0, 5))
    assert output.shape == (0, 3, 4, 5)
    output.sum().backward()
    assert not feature.grad.any()


@pytest.mark.parametrize('pool_mode', ['avg', 'max'])
def test_boxes_without_points_give_zero(device, pool_mode):
    feature = some_feature(device).requires_grad_()
    rois = feature.new_tensor([[0, 5, 5, 5, 5], [0, 8, 8, 5, 5]])  # empty; inside out
    output = roi_align(feature, rois, (2, 2), 1.0, 0, pool_mode, True)
    output.sum().backward()
    assert not output.any()
    assert not feature.grad.any()


def test_mask_targets(device):
    """Mask R-CNN's targets: the ground-truth masks, cropped to boxes."""
    masks = np.zeros((2, 8, 10), np.uint8)
    masks[0, 2:6, 3:7] = 1
    masks[1, :, :5] = 1
    boxes = np.array([[3, 2, 7, 6], [0, 0, 10, 8], [0, 0, 10, 8]], np.float32)
    crops = BitmapMasks(masks, 8, 10).crop_and_resize(
        boxes, (4, 4), np.array([0, 1, 0]), device=device
    )
    assert crops.masks[0].all()
    assert crops.masks[1].tolist() == [[True, True, False, False]] * 4
    rois = torch.tensor([[0, 0, 0, 10, 8]], dtype=torch.float64)
    mask = torch.tensor(masks[:1, None], dtype=torch.float64)
    exact = reference(mask, rois, (4, 4), 1.0, 0, 'avg', True)[0, 0]
    assert crops.masks[2].tolist() == (exact >= 0.5).tolist()

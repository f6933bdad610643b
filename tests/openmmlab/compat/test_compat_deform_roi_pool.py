"""mmcv.ops.DeformRoIPool against its mean over samples, bin by bin."""

import pytest
import torch
from compat_sampling import rounding, sample_edge_padded
from mmcv.ops import DeformRoIPool, DeformRoIPoolPack, ModulatedDeformRoIPoolPack, RoIAlign

GAMMA = 0.3
SCALE = 0.5
ROIS = [  # inside, across the border, outside, and too small to have a point
    [0, 1.0, 2.0, 9.0, 12.0],
    [1, -3.0, 4.0, 6.0, 18.0],
    [1, 5.0, -4.0, 15.0, 3.0],
    [0, 40.0, 40.0, 50.0, 50.0],
    [0, 3.0, 3.0, 3.0, 9.0],
]


def reference(image, rois, offset, size, sampling_ratio):
    height, width = size
    rows = []
    for k, (n, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (corner * SCALE - 0.5 for corner in corners)
        box_height, box_width = y2 - y1, x2 - x1
        count_y = sampling_ratio or -int(-box_height // height)
        count_x = sampling_ratio or -int(-box_width // width)
        bins = []
        for i in range(height):
            for j in range(width):
                dx, dy = (0, 0) if offset is None else GAMMA * offset[k, :, i, j]
                total = image.new_zeros(image.shape[1])
                for iy in range(count_y):
                    for ix in range(count_x):
                        y = y1 + box_height * (dy + (i + (iy + 0.5) / count_y) / height)
                        x = x1 + box_width * (dx + (j + (ix + 0.5) / count_x) / width)
                        total = total + sample_edge_padded(image[int(n)], y, x)
                bins.append(total / max(count_y * count_x, 1))
        rows.append(torch.stack(bins, 1).unflatten(1, size))
    return torch.stack(rows)


@pytest.mark.parametrize('size', [(2, 3), (1, 1)])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_values_and_gradients(device, size, sampling_ratio, dtype):
    image = torch.randn(2, 3, 8, 7, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor(ROIS, dtype=torch.float64)
    offset = torch.randn(len(rois), 2, *size, dtype=torch.float64, requires_grad=True)
    expected = reference(image, rois, offset, size, sampling_ratio)
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, (image, offset), grad)

    own_inputs = [x.detach().to(device, dtype).requires_grad_() for x in (image, offset)]
    pool = DeformRoIPool(size, SCALE, sampling_ratio, GAMMA)
    own = pool(own_inputs[0], rois.to(device, dtype), own_inputs[1])
    grads = torch.autograd.grad(own, own_inputs, grad.to(device, dtype))
    tolerance = {key: 10 * size for key, size in rounding(dtype).items()}
    torch.testing.assert_close(own.double().cpu(), expected.detach(), **tolerance)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad.double().cpu(), expected_grad, **tolerance)


@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_without_offsets_it_is_roi_align(device, sampling_ratio):
    image = torch.randn(2, 3, 8, 7, device=device, requires_grad=True)
    rois = torch.tensor(ROIS, device=device)
    own = DeformRoIPool((2, 3), SCALE, sampling_ratio)(image, rois)
    expected = RoIAlign((2, 3), SCALE, sampling_ratio)(image, rois)
    torch.testing.assert_close(own, expected)
    grad = torch.randn_like(own)
    by_own, by_expected = (torch.autograd.grad(y, image, grad)[0] for y in (own, expected))
    torch.testing.assert_close(by_own, by_expected)


def test_no_rois(device):
    image = torch.randn(1, 3, 8, 7, device=device, requires_grad=True)
    own = DeformRoIPool((2, 3))(image, image.new_zeros(0, 5))
    assert own.shape == (0, 3, 2, 3)
    own.sum().backward()
    assert not image.grad.any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_16_bits(device, dtype):
    image = torch.randn(2, 3, 8, 7, device=device).to(dtype)
    rois = torch.tensor(ROIS, device=device)  # in fp32, as autocast leaves them
    offset = torch.randn(len(rois), 2, 2, 3, device=device).to(dtype).requires_grad_()
    own = DeformRoIPool((2, 3), SCALE)(image, rois, offset)
    expected = DeformRoIPool((2, 3), SCALE)(image.float(), rois, offset.float())
    assert own.dtype == dtype
    torch.testing.assert_close(own, expected.to(dtype))
    own.sum().backward()
    assert offset.grad.isfinite().all()


@pytest.mark.parametrize('pack', [DeformRoIPoolPack, ModulatedDeformRoIPoolPack])
def test_packs_train_their_offsets(device, pack):
    layer = pack((2, 3), output_channels=3, deform_fc_channels=8, spatial_scale=SCALE).to(device)
    rois = torch.tensor(ROIS, device=device)
    layer(torch.randn(2, 3, 8, 7, device=device), rois).square().sum().backward()
    assert layer.offset_fc[-1].bias.grad.abs().sum() > 0

"""mmcv.ops deformable convolutions against samples moved by the offsets, then multiplied."""

import pytest
import torch
from compat_sampling import rounding, sample_zero_padded
from mmcv.ops import DeformConv2d, DeformConv2dPack, ModulatedDeformConv2d
from mmcv.ops.deform_conv import deform_conv2d
from mmcv.ops.modulated_deform_conv import modulated_deform_conv2d

# kernel, stride, padding, dilation, groups, deform groups
CASES = [
    ((3, 3), (1, 1), (1, 1), (1, 1), 1, 1),
    ((3, 2), (2, 1), (1, 0), (1, 2), 2, 1),
    ((1, 1), (1, 2), (0, 0), (1, 1), 1, 2),
    ((2, 3), (1, 1), (2, 1), (2, 1), 2, 4),
]


def reference(x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups):
    channels = x.shape[1] // deform_groups
    kernel = weight.shape[2:]
    out_h, out_w = offset.shape[2:]
    grid_y = torch.arange(out_h)[:, None] * stride[0] - padding[0]
    grid_x = torch.arange(out_w)[None, :] * stride[1] - padding[1]
    images = []
    for n in range(len(x)):
        columns = []
        for g in range(deform_groups):
            for k in range(kernel[0] * kernel[1]):
                point = g * kernel[0] * kernel[1] + k
                y = grid_y + k // kernel[1] * dilation[0] + offset[n, 2 * point]
                x_ = grid_x + k % kernel[1] * dilation[1] + offset[n, 2 * point + 1]
                moved = sample_zero_padded(x[n, g * channels : (g + 1) * channels], y, x_)
                columns.append(moved if mask is None else moved * mask[n, point])
        # [deform groups, points, channels, ...] -> [in, kH, kW, ...]
        columns = torch.stack(columns).unflatten(0, (deform_groups, -1)).transpose(1, 2)
        columns = columns.reshape(groups, -1, *kernel, out_h, out_w)
        kernels = weight.unflatten(0, (groups, -1))
        images.append(torch.einsum('gockl,gcklhw->gohw', kernels, columns).flatten(0, 1))
    output = torch.stack(images)
    return output if bias is None else output + bias[:, None, None]


def some_inputs(case):
    (kh, kw), stride, padding, dilation, groups, deform_groups = case
    batch = 4
    x = torch.randn(batch, 8, 7, 6, dtype=torch.float64)
    out_h, out_w = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip((7, 6), padding, dilation, (kh, kw), stride, strict=True)
    )
    points = deform_groups * kh * kw
    offset = 2 * torch.randn(batch, 2 * points, out_h, out_w, dtype=torch.float64)
    mask = torch.rand(batch, points, out_h, out_w, dtype=torch.float64)
    weight = torch.randn(4, 8 // groups, kh, kw, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64)
    return x, offset, mask, weight, bias


def compare(own, expected, inputs, own_inputs, dtype):
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, inputs, grad)
    grads = torch.autograd.grad(own, own_inputs, grad.to(own.device, dtype))
    torch.testing.assert_close(own.double().cpu(), expected.detach(), **loose(dtype))
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad.double().cpu(), expected_grad, **loose(dtype))


def loose(dtype):
    # Sums of some hundred products.
    return {key: 10 * value for key, value in rounding(dtype).items()}


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_deform_conv(device, case, dtype):
    x, offset, _, weight, _ = some_inputs(case)
    inputs = [tensor.requires_grad_() for tensor in (x, offset, weight)]
    expected = reference(x, offset, None, weight, None, *case[1:])
    own_inputs = [tensor.detach().to(device, dtype).requires_grad_() for tensor in inputs]
    own = deform_conv2d(*own_inputs, *case[1:], False, 2)  # two steps of two images
    compare(own, expected, inputs, own_inputs, dtype)


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('with_bias', [True, False])
def test_modulated_deform_conv(device, case, dtype, with_bias):
    x, offset, mask, weight, bias = some_inputs(case)
    inputs = [x, offset, mask, weight, bias][: 5 if with_bias else 4]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    expected = reference(x, offset, mask, weight, bias if with_bias else None, *case[1:])
    own_inputs = [tensor.detach().to(device, dtype).requires_grad_() for tensor in inputs]
    args = own_inputs if with_bias else [*own_inputs, None]
    own = modulated_deform_conv2d(*args, *case[1:])
    compare(own, expected, inputs, own_inputs, dtype)


@pytest.mark.parametrize('with_mask', [True, False])
def test_whole_offsets(device, with_mask):
    """Points lie on pixels, and on -1, the height and the width, where mmcv's gradients are 0."""
    case = CASES[0]
    x, offset, mask, weight, _ = some_inputs(case)
    offset = offset.round()
    tensors = (x, offset, mask, weight) if with_mask else (x, offset, weight)
    inputs = [tensor.requires_grad_() for tensor in tensors]
    expected = reference(x, offset, mask if with_mask else None, weight, None, *case[1:])
    own_inputs = [tensor.detach().to(device).requires_grad_() for tensor in inputs]
    if with_mask:
        own = modulated_deform_conv2d(*own_inputs, None, *case[1:])
    else:
        own = deform_conv2d(*own_inputs, *case[1:])
    compare(own, expected, inputs, own_inputs, x.dtype)


def test_a_sample_exactly_one_pixel_outside_gets_no_gradient(device):
    x = torch.ones(1, 1, 2, 2, device=device)
    offset = torch.tensor([-1.0, 0.0], device=device).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    offset = offset.clone().requires_grad_()
    deform_conv2d(x, offset, x.new_ones(1, 1, 1, 1)).sum().backward()
    assert offset.grad[0, 0].tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_16_bits(device, dtype):
    """An offset in 16 bits beside fp32 tensors, as autocast leaves it; mmcv casts to it."""
    case = CASES[0]
    x, offset, mask, weight, bias = (tensor.to(dtype).double() for tensor in some_inputs(case))
    inputs = [tensor.float().to(device).requires_grad_() for tensor in (x, weight, mask, bias)]
    own_offset = offset.to(device, dtype).requires_grad_()
    v1 = deform_conv2d(inputs[0], own_offset, inputs[1], *case[1:])
    v2 = modulated_deform_conv2d(inputs[0], own_offset, inputs[2], inputs[1], inputs[3], *case[1:])
    assert v1.dtype == v2.dtype == dtype
    expected = reference(x, offset, None, weight, None, *case[1:])
    torch.testing.assert_close(v1.double().cpu(), expected, **loose(dtype))
    expected = reference(x, offset, mask, weight, bias, *case[1:])
    torch.testing.assert_close(v2.double().cpu(), expected, **loose(dtype))
    (v1.sum() + v2.sum()).backward()
    assert own_offset.grad.dtype == dtype
    assert all(tensor.grad.isfinite().all() for tensor in inputs)


def test_layers_without_movement_are_convolutions(device):
    x = torch.randn(2, 4, 6, 6, device=device)
    points = 9
    for layer, extra in (
        (DeformConv2d(4, 6, 3, padding=1), ()),
        (ModulatedDeformConv2d(4, 6, 3, padding=1), (x.new_ones(2, points, 6, 6),)),
    ):
        layer = layer.to(device)
        output = layer(x, x.new_zeros(2, 2 * points, 6, 6), *extra)
        bias = getattr(layer, 'bias', None)
        expected = torch.nn.functional.conv2d(x, layer.weight, bias, padding=1)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


def test_pack_trains_its_offsets(device):
    layer = DeformConv2dPack(4, 4, 3, padding=1).to(device)
    layer(torch.randn(2, 4, 5, 5, device=device)).square().sum().backward()
    assert layer.conv_offset.weight.grad.abs().sum() > 0


def test_input_smaller_than_the_kernel(device):
    layer = DeformConv2d(2, 3, 3, padding=1).to(device)
    output = layer(torch.randn(1, 2, 2, 5, device=device), torch.zeros(1, 18, 2, 5, device=device))
    assert output.shape == (1, 3, 2, 5)


def test_of_larger_offsets_the_first_values_count(device):
    case = CASES[1]
    x, offset, mask, weight, bias = some_inputs(case)
    large = [torch.randn(*t.shape[:2], 7, 5, dtype=t.dtype) for t in (offset, mask)]
    inputs = [tensor.requires_grad_() for tensor in (x, *large, weight, bias)]
    first = [
        t.flatten(1)[:, : s[0].numel()].view(s.shape)
        for t, s in zip(large, (offset, mask), strict=True)
    ]
    expected = reference(x, *first, weight, bias, *case[1:])
    own_inputs = [tensor.detach().to(device).requires_grad_() for tensor in inputs]
    compare(modulated_deform_conv2d(*own_inputs, *case[1:]), expected, inputs, own_inputs, x.dtype)

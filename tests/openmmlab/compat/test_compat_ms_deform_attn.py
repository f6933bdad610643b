"""mmcv.ops multi-scale deformable attention against its sum over heads, levels and points."""

import pytest
import torch
from compat_sampling import rounding, sample_zero_padded
from mmcv.ops import MultiScaleDeformableAttention
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

SHAPES = [(4, 5), (3, 2), (1, 1)]


def some_inputs(batch=2, queries=3, heads=2, dim=4, points=3):
    keys = sum(height * width for height, width in SHAPES)
    value = torch.randn(batch, keys, heads, dim, dtype=torch.float64)
    # Some of them outside the map.
    location = torch.rand(batch, queries, heads, len(SHAPES), points, 2, dtype=torch.float64)
    location = 1.6 * location - 0.3
    weight = torch.rand(batch, queries, heads, len(SHAPES), points, dtype=torch.float64)
    return value, location, weight


def levels(device):
    shapes = torch.tensor(SHAPES, device=device)
    sizes = shapes.prod(1)
    return shapes, sizes.cumsum(0) - sizes


def reference(value, location, weight):
    batch, queries, heads = location.shape[:3]
    rows = []
    for n in range(batch):
        for h in range(heads):
            total, start = 0, 0
            for level, (height, width) in enumerate(SHAPES):
                part = value[n, start : start + height * width, h]
                start += height * width
                image = part.T.unflatten(1, (height, width))
                x = location[n, :, h, level, :, 0] * width - 0.5
                y = location[n, :, h, level, :, 1] * height - 0.5
                total = total + (sample_zero_padded(image, y, x) * weight[n, :, h, level]).sum(-1)
            rows.append(total.T)  # [queries, dim]
    return (
        torch.stack(rows).unflatten(0, (batch, heads)).transpose(1, 2).reshape(batch, queries, -1)
    )


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_value_and_gradients(device, dtype):
    value, location, weight = some_inputs()
    # In the first level, of height 4, row -1, where mmcv's gradients are 0, row 1 and row 4.
    location[0, 0, 0, 0, :, 0] = 0.4
    location[0, 0, 0, 0, :, 1] = torch.tensor([-0.125, 0.375, 1.125])
    inputs = [tensor.requires_grad_() for tensor in (value, location, weight)]
    expected = reference(*inputs)
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, inputs, grad)

    value, location, weight = own = [
        tensor.detach().to(device, dtype).requires_grad_() for tensor in inputs
    ]
    output = MultiScaleDeformableAttnFunction.apply(value, *levels(device), location, weight, 64)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double().cpu(), expected.detach(), **rounding(dtype))
    grads = torch.autograd.grad(output, own, grad.to(device, dtype))
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == dtype
        tolerance = {key: 10 * size for key, size in rounding(dtype).items()}
        torch.testing.assert_close(grad.double().cpu(), expected_grad, **tolerance)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_16_bits(device, dtype):
    """A value in 16 bits beside fp32 locations, as autocast leaves it; mmcv casts to it."""
    value, location, weight = (tensor.to(dtype).double() for tensor in some_inputs())
    own = [
        value.to(device, dtype).requires_grad_(),
        location.float().to(device).requires_grad_(),
        weight.float().to(device).requires_grad_(),
    ]
    output = MultiScaleDeformableAttnFunction.apply(own[0], *levels(device), *own[1:], 64)
    assert output.dtype == dtype
    torch.testing.assert_close(
        output.double().cpu(), reference(value, location, weight), **rounding(dtype)
    )
    output.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in own)


@pytest.mark.parametrize(('batch', 'queries'), [(0, 3), (2, 0)])
def test_nothing_to_attend(device, batch, queries):
    inputs = [tensor.to(device).requires_grad_() for tensor in some_inputs(batch, queries)]
    output = MultiScaleDeformableAttnFunction.apply(inputs[0], *levels(device), *inputs[1:], 64)
    assert output.shape == (batch, queries, 8)
    output.sum().backward()
    assert not inputs[0].grad.any()


def test_layer_agrees_with_the_function(device):
    """On a CPU, mmcv's layer has its own formula; on a GPU it calls the function."""
    layer = MultiScaleDeformableAttention(8, 2, len(SHAPES), 3, dropout=0, batch_first=True)
    layer = layer.to(device)
    shapes, starts = levels(device)
    query = torch.randn(2, 27, 8, device=device)
    reference_points = torch.rand(2, 27, len(SHAPES), 2, device=device)
    output = layer(
        query,
        reference_points=reference_points,
        spatial_shapes=shapes,
        level_start_index=starts,
    )
    value = layer.value_proj(query).view(2, 27, 2, 4)
    offsets = layer.sampling_offsets(query).view(2, 27, 2, len(SHAPES), 3, 2)
    weight = layer.attention_weights(query).view(2, 27, 2, -1).softmax(-1)
    location = reference_points[:, :, None, :, None] + offsets / shapes.flip(1)[:, None]
    attended = MultiScaleDeformableAttnFunction.apply(
        value, shapes, starts, location, weight.view(2, 27, 2, len(SHAPES), 3), 64
    )
    torch.testing.assert_close(output, layer.output_proj(attended) + query)

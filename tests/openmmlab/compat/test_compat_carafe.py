"""mmcv.ops.CARAFE against its sum over the points of each output pixel's kernel."""

import sys

import pytest
import torch
from compat_sampling import rounding
from mmcv.ops import CARAFE, CARAFENaive
from mmcv.ops.carafe import CARAFEPack

# kernel, groups, scale
CASES = [(3, 1, 2), (5, 2, 1), (1, 4, 3)]


def some_inputs(case):
    kernel, groups, scale = case
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    mask = torch.rand(2, groups * kernel**2, 3 * scale, 5 * scale, dtype=torch.float64)
    return x, mask


def reference(x, mask, case):
    kernel, groups, scale = case
    batch, channels, height, width = x.shape
    output = x.new_zeros(batch, channels, height * scale, width * scale)
    for c in range(channels):
        first = c // (channels // groups) * kernel**2
        for y in range(height * scale):
            for x_ in range(width * scale):
                for point in range(kernel**2):
                    yi = y // scale + point // kernel - kernel // 2
                    xi = x_ // scale + point % kernel - kernel // 2
                    if 0 <= yi < height and 0 <= xi < width:
                        term = x[:, c, yi, xi] * mask[:, first + point, y, x_]
                        output[:, c, y, x_] = output[:, c, y, x_] + term
    return output


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_values_and_gradients(device, case, dtype):
    inputs = [tensor.to(dtype).double().requires_grad_() for tensor in some_inputs(case)]
    expected = reference(*inputs, case)
    grad = torch.randn_like(expected).to(dtype).double()
    expected_grads = torch.autograd.grad(expected, inputs, grad)
    own_inputs = [tensor.detach().to(device, dtype).requires_grad_() for tensor in inputs]
    own = CARAFE(*case)(*own_inputs)
    assert torch.equal(own, CARAFENaive(*case)(*own_inputs))
    grads = torch.autograd.grad(own, own_inputs, grad.to(device, dtype))
    torch.testing.assert_close(own.double().cpu(), expected.detach(), **rounding(dtype))
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad.double().cpu(), expected_grad, **rounding(dtype))


def test_gradients_of_the_naive_op(device):
    """Called directly: mmcv lets it run backward on a GPU alone."""
    kernel, groups, scale = case = CASES[0]
    x, mask = (tensor.to(device).requires_grad_() for tensor in some_inputs(case))
    grad = torch.randn(2, 4, 6, 10, dtype=torch.float64, device=device)
    expected = torch.autograd.grad(CARAFE(*case)(x, mask), (x, mask), grad)
    own = torch.zeros_like(x), torch.zeros_like(mask)
    ext = sys.modules['mmcv._ext']
    ext.carafe_naive_backward(
        grad, x, mask, *own, kernel_size=kernel, group_size=groups, scale_factor=scale
    )
    assert all(map(torch.equal, own, expected))


def test_pack_trains_its_kernels(device):
    layer = CARAFEPack(channels=8, scale_factor=2).to(device)
    with torch.autocast(device, torch.bfloat16):
        output = layer(torch.randn(1, 8, 5, 4, device=device))
    assert output.shape == (1, 8, 10, 8)
    output.float().square().sum().backward()
    assert layer.content_encoder.weight.grad.abs().sum() > 0

"""mmcv.ops.MaskedConv2d against the whole convolution, kept where the mask is set."""

import pytest
import torch
from compat_sampling import rounding
from mmcv.ops import MaskedConv2d

# kernel, padding
CASES = [((3, 3), (1, 1)), ((1, 1), (0, 0)), ((3, 5), (1, 2)), ((3, 1), (2, 0))]


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_values(device, case, dtype):
    kernel, padding = case
    layer = MaskedConv2d(3, 4, kernel, padding=padding).to(device, dtype)
    x = torch.randn(1, 3, 6, 5, device=device, dtype=dtype)
    mask = torch.rand(1, 6, 5, device=device) > 0.6
    weight, bias, wide = (t.detach().double() for t in (layer.weight, layer.bias, x))
    whole = torch.nn.functional.conv2d(wide, weight, bias, padding=padding)
    expected = torch.zeros_like(whole)
    rows, columns = mask[0].nonzero().unbind(1)
    expected[:, :, rows, columns] = whole[:, :, rows, columns]
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        tolerance = {key: 4 * size for key, size in rounding(dtype).items()}
        torch.testing.assert_close(layer(x, mask).double(), expected, **tolerance)
        torch.testing.assert_close(layer(x).double(), whole, **tolerance)
        assert not layer(x, torch.zeros_like(mask)).any()


def test_under_autocast(device):
    layer = MaskedConv2d(3, 4, 3, padding=1).to(device)
    x = torch.randn(1, 3, 6, 5, device=device)
    mask = torch.rand(1, 6, 5, device=device) > 0.6
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        output = layer(x, mask)
    expected = layer(x) * mask[:, None]
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)

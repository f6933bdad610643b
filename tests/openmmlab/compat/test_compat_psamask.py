"""mmcv.ops.PSAMask against its definition, one pair of positions at a time."""

import pytest
import torch
from mmcv.ops import PSAMask


def reference(x, psa_type, mask_size):
    n, _, height, width = x.shape
    windows = x.unflatten(1, mask_size)
    half = [(size - 1) // 2 for size in mask_size]
    rows = []
    for h, w in torch.cartesian_prod(torch.arange(height), torch.arange(width)).tolist():
        for h2, w2 in torch.cartesian_prod(torch.arange(height), torch.arange(width)).tolist():
            i, j = h2 - h + half[0], w2 - w + half[1]
            inside = 0 <= i < mask_size[0] and 0 <= j < mask_size[1]
            rows.append(windows[:, i, j, h, w] if inside else x.new_zeros(n))
    by_pair = torch.stack(rows, 1).view(n, height * width, height * width)  # p, then q
    return (by_pair if psa_type == 'distribute' else by_pair.mT).reshape(n, -1, height, width)


@pytest.mark.parametrize('psa_type', ['collect', 'distribute'])
@pytest.mark.parametrize('mask_size', [(5, 7), (3, 3), (9, 2)])
def test_values_and_gradients(device, psa_type, mask_size):
    x = torch.randn(2, mask_size[0] * mask_size[1], 3, 4, requires_grad=True)
    expected = reference(x, psa_type, mask_size)
    own_x = x.detach().to(device).requires_grad_()
    own = PSAMask(psa_type, mask_size)(own_x)
    grad = torch.randn_like(expected)
    own.backward(grad.to(device))
    expected.backward(grad)
    torch.testing.assert_close(own.cpu(), expected)
    torch.testing.assert_close(own_x.grad.cpu(), x.grad)

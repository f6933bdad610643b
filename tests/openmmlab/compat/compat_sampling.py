"""Bilinear sampling in plain, differentiable PyTorch: what the ops are tested against."""

import torch


def sample_zero_padded(image, y, x):
    """Values of `image` [C, H, W] at pixel positions (y, x) of any equal shape; 0 around it.

    From one pixel outside on, -1 and the size included, gradients are 0; at the other whole
    positions the slope is that towards the next pixel.
    """
    height, width = image.shape[1:]
    y0, x0 = y.detach().floor().long(), x.detach().floor().long()
    near = (y > -1) & (y < height) & (x > -1) & (x < width)
    total = 0
    for yi, y_share in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
        for xi, x_share in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
            inside = near & (yi >= 0) & (yi < height) & (xi >= 0) & (xi < width)
            value = image[:, yi.clamp(0, height - 1), xi.clamp(0, width - 1)]
            total = total + value * y_share * x_share * inside
    return total


def sample_edge_padded(image, y, x):
    """One value per channel of `image` [C, H, W] at the numbers (y, x).

    As RoIAlign samples: up to one pixel outside, the nearest pixel's value; 0 beyond.
    """
    height, width = image.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return image.new_zeros(len(image))
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    top = image[:, y0, x0] * (1 - (x - x0)) + image[:, y0, x1] * (x - x0)
    bottom = image[:, y1, x0] * (1 - (x - x0)) + image[:, y1, x1] * (x - x0)
    return top * (1 - (y - y0)) + bottom * (y - y0)


def rounding(dtype):
    """Tolerances for a result computed in fp32 (or fp64) from inputs of `dtype` and rounded once.

    Both inputs and reference are exact in `dtype`, so one rounding of the output remains.
    """
    if dtype in (torch.float16, torch.bfloat16):
        eps = torch.finfo(dtype).eps
        return {'rtol': eps, 'atol': eps}
    return {'rtol': 1e-5, 'atol': 1e-5} if dtype == torch.float32 else {'rtol': 1e-9, 'atol': 1e-9}

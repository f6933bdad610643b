"""Random boxes, with many ties among their overlaps and scores."""

import torch


def random_boxes(*shape, size=64, grid=4):
    """Returns boxes [*shape, 4] with corners on a grid, some of them empty."""
    first = torch.randint(size // grid, (*shape, 2))
    extent = torch.randint(size // grid // 2, (*shape, 2))
    return torch.cat([first, first + extent], -1).float() * grid

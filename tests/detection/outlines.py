"""Random instances as polygons, and boxes around and beside them."""

import torch
from torch import Tensor


def outline(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Returns a polygon of up to 40 corners in an image, x0, y0, x1, y1, ... with two decimals."""

    def draw(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    corners = int(3 + 38 * draw(1))
    angle = (2 * torch.pi * draw(corners)).sort().values
    radius = max(height, width) * 0.6 * draw(1) * (0.2 + draw(corners))
    centre = draw(2)
    x = (width * centre[0] + radius * angle.cos()).clamp(0, width)
    y = (height * centre[1] + radius * angle.sin()).clamp(0, height)
    return torch.stack([x, y], 1).mul(100).round().div(100).flatten()


def scene(seed: int, boxes: int = 24) -> tuple[list[list[Tensor]], tuple[int, int], Tensor, Tensor]:
    """Returns the polygons of some instances, an image's size, boxes and the instance of each."""
    generator = torch.Generator().manual_seed(seed)

    def integer(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    size = integer(12, 200), integer(12, 200)
    instances = [
        [outline(*size, generator) for _ in range(integer(1, 4))] for _ in range(integer(1, 6))
    ]
    which = torch.randint(len(instances), (boxes,), generator=generator)
    corners = torch.stack([_bounds(instances[i]) for i in which])
    noise = torch.randn(boxes, 4, generator=generator)
    extent = (corners[:, 2:] - corners[:, :2]).repeat(1, 2)
    chosen = corners + 0.15 * noise * extent
    chosen[::4] = chosen[::4].round()  # along whole pixels, where averages of a half are common
    chosen[1] = torch.tensor([0, 0, size[1], size[0]])
    chosen[2] = torch.tensor([3.0, 3, 3, 3])
    chosen[3] = torch.tensor([-9.0, -9, size[1] + 9, size[0] + 9])
    return instances, size, chosen.float(), which


def _bounds(polygons: list[Tensor]) -> Tensor:
    vertices = torch.cat(polygons).view(-1, 2)
    return torch.cat([vertices.min(0).values, vertices.max(0).values])

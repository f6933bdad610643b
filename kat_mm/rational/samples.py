"""What torch.vmap makes of the op: one call for all samples, whose groups are those of each."""

import math

from torch import Tensor

from .arguments import check_arguments


class Samples:
    """The samples of `torch.vmap`, which may each have coefficients of their own.

    Args:
        size: number of samples.
        in_dims: where the samples are in x, numerator and denominator; None if they share one.
        x, numerator, denominator: of all samples.
        channel_dim: as one sample has it.
    """

    def __init__(
        self,
        size: int,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        numerator: Tensor,
        denominator: Tensor,
        channel_dim: int,
    ):
        self.size = size
        tensors = x, numerator, denominator
        stacks = [self.stack(t, d) for t, d in zip(tensors, in_dims, strict=True)]
        sample = [stack.new_empty(()).expand(stack.shape[1:]) for stack in stacks]
        check_arguments(*sample, channel_dim)
        self.share_coefficients = in_dims[1:] == (None, None)
        self.channel_dim = channel_dim % sample[0].dim()
        self.channels = sample[0].shape[self.channel_dim]
        self.shapes = [coefficients.shape for coefficients in sample[1:]]
        self.groups = max(rows for rows, _ in self.shapes)
        self.coefficients = [  # at least one row for each group, which the op asks for
            t.expand(-1, self.groups, -1).flatten(0, 1) if size else t.new_zeros(self.groups, n)
            for t, (_, n) in zip(stacks[1:], self.shapes, strict=True)
        ]

    def stack(self, tensor: Tensor, dim: int | None) -> Tensor:
        """Returns `tensor` with the samples in the first dimension."""
        return tensor.expand(self.size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

    def join(self, x: Tensor, dim: int | None) -> Tensor:
        """Returns `x` with the channels of all samples at `channel_dim`."""
        joined = self.stack(x, dim).movedim(0, self.channel_dim)
        return joined.flatten(self.channel_dim, self.channel_dim + 1)

    def split(self, x: Tensor) -> Tensor:
        """Undoes `join`: the samples are at `channel_dim`, their channels behind."""
        return x.unflatten(self.channel_dim, (self.size, self.channels))

    def split_coefficients(self, grads: list[Tensor]) -> list[Tensor]:
        """Returns the gradients of the coefficients of each sample, the samples first."""
        rows = self.size, self.groups
        return [
            grad[: math.prod(rows)].unflatten(0, rows).sum_to_size(self.size, *shape)
            for grad, shape in zip(grads, self.shapes, strict=True)
        ]

"""Batch normalisation over several processes, in steps between which mmcv sums over them.

`input` is [N, C, L], its statistics are fp32 [C]: the mean, the variance (biased) and the standard
deviation, sqrt(var + eps); `norm` [N, C, L], in fp32, is the input without mean and scale.

Source: Ioffe and Szegedy, arXiv 1502.03167.
"""

from torch import Tensor

from .kernel import kernel, to_float


@kernel
def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Set `mean` to the mean of each channel."""
    (input,) = to_float(input)
    mean.copy_(input.mean((0, 2)))


@kernel
def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Set `var` to the mean square of each channel's distance from `mean`."""
    input, mean = to_float(input, mean)
    var.copy_((input - mean[:, None]).square().mean((0, 2)))


@kernel
def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float | Tensor,
    group_size: int,
) -> None:
    """Set `norm`, `std` and `output` = norm * weight + bias, and update the running statistics.

    These move by `momentum` towards the mean and the unbiased variance of `group_size` inputs.
    """
    input, mean, var = to_float(input, mean, var)
    std.copy_((var + eps).sqrt())
    norm.copy_((input - mean[:, None]) / std[:, None])
    if weight is None:
        output.copy_(norm)
    else:
        weight, bias = to_float(weight, bias)
        output.copy_(norm * weight[:, None] + bias[:, None])
    if running_mean is not None:
        count = len(input) * input.shape[2] * group_size
        unbiased = var * count / (count - 1) if count > 1 else var
        for running, value in ((running_mean, mean), (running_var, unbiased)):
            running.copy_(momentum * value + (1 - momentum) * running)


@kernel
def sync_bn_backward_param(
    grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor
) -> None:
    """Set the gradients by weight and bias."""
    grad, norm = to_float(grad_output, norm)
    grad_weight.copy_((grad * norm).sum((0, 2)))
    grad_bias.copy_(grad.sum((0, 2)))


@kernel
def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Set the gradient by the input; those by weight and bias are means over the processes."""
    grad, weight, by_weight, by_bias, norm, std = to_float(
        *(grad_output, weight, grad_weight, grad_bias, norm, std)
    )
    count = len(grad) * grad.shape[2]
    through_statistics = (by_weight[:, None] * norm + by_bias[:, None]) / count
    grad_input.copy_((weight / std)[:, None] * (grad - through_statistics))

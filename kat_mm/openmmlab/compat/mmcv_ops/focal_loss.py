"""Focal losses: cross-entropy that fades for examples that are already right.

    loss = -alpha_t (1 - p_t)^gamma log(p_t),   p_t: probability given to the truth

Source: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, equation 5. Logarithms
are never taken of a rounded probability, so logits of any size give finite losses and gradients.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernel import kernel, to_float


@kernel
def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Set `output` [N, C] to the binary focal loss of each class.

    `input` [N, C] are logits, `target` int64 [N] the classes; a target outside [0, C) is
    background, negative for every class. alpha_t is alpha for the true class and 1 - alpha for the
    others. `weight` [C], or empty for none, multiplies the row of an example by the weight of its
    class; background has weight 1.
    """
    logits, weight = to_float(input, weight)
    sign, alpha_t = _true_class(logits, target, alpha)
    margin = sign * logits
    loss = -alpha_t * torch.sigmoid(-margin) ** gamma * F.logsigmoid(margin)
    output.copy_(loss * _row_weight(weight, target)[:, None])


@kernel
def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Set `grad_input` [N, C] to the derivative of `sigmoid_focal_loss_forward` by its logits."""
    logits, weight = to_float(input, weight)
    sign, alpha_t = _true_class(logits, target, alpha)
    margin = sign * logits
    wrong = torch.sigmoid(-margin)  # 1 - p_t
    log_p = F.logsigmoid(margin)
    slope = -alpha_t * wrong**gamma * (wrong - gamma * log_p.exp() * log_p)
    grad_input.copy_(sign * slope * _row_weight(weight, target)[:, None])


@kernel
def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Set `output` [N] to the focal loss of the true class.

    `input` [N, C] are probabilities (after softmax), `target` int64 [N] the classes; an example
    with a negative target is ignored. `weight` [C], or empty for none, multiplies by class.
    """
    softmax, weight = to_float(input, weight)
    p = _true_probability(softmax, target)
    loss = -alpha * (1 - p) ** gamma * _log(p) * _row_weight(weight, target)
    output.copy_(loss.where(target >= 0, 0))


@kernel
def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Set `grad_input` [N, C] to the derivative of the loss by the logits before the softmax.

    `input` [N, C] are again the probabilities. `buff` [N] is set to p_t times the derivative by
    the probability p_t, the factor that all classes share.
    """
    softmax, weight = to_float(input, weight)
    p = _true_probability(softmax, target)
    # At p = 1 and gamma < 1 this power is infinite, and its factor log(p) is 0: the limit is 0.
    wrong = (1 - p).clamp(min=torch.finfo(p.dtype).tiny)
    factor = alpha * wrong ** (gamma - 1) * (gamma * p * _log(p) - wrong)
    factor = (factor * _row_weight(weight, target)).where(target >= 0, 0)
    buff.copy_(factor)
    classes = torch.arange(softmax.shape[1], device=softmax.device)
    grad_input.copy_(factor[:, None] * ((target[:, None] == classes).to(p.dtype) - softmax))


def _true_class(logits: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """For each class, +1 if it is the truth, else -1; and its alpha_t. Both [N, C]."""
    true = target[:, None] == torch.arange(logits.shape[1], device=logits.device)
    one = logits.new_ones(())
    return torch.where(true, one, -one), torch.where(true, alpha * one, (1 - alpha) * one)


def _row_weight(weight: Tensor, target: Tensor) -> Tensor:
    """The weight of each example's class [N]; 1 without weights and for no class."""
    if weight.numel() == 0:
        return weight.new_ones(target.shape)
    known = (target >= 0) & (target < len(weight))
    return weight[target.where(known, 0)].where(known, 1)


def _true_probability(softmax: Tensor, target: Tensor) -> Tensor:
    """The probability of the true class [N]; of class 0 where the example is ignored."""
    return softmax.gather(1, target.clamp(min=0)[:, None]).squeeze(1)


def _log(p: Tensor) -> Tensor:
    """log(p), finite where the softmax underflowed to 0."""
    return p.clamp(min=torch.finfo(p.dtype).tiny).log()

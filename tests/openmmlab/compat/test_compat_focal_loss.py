"""mmcv.ops focal losses against the formula of arXiv 1708.02002, differentiated by autograd."""

import pytest
import torch
from compat_sampling import rounding
from mmcv.ops import SigmoidFocalLoss, SoftmaxFocalLoss
from mmcv.ops.focal_loss import sigmoid_focal_loss, softmax_focal_loss


def sigmoid_reference(logits, target, gamma, alpha, weight):
    rows = []
    for row, label in zip(logits, target.tolist(), strict=True):
        p = row.sigmoid()
        terms = []
        for c in range(len(row)):
            if c == label:
                terms.append(-alpha * (1 - p[c]) ** gamma * p[c].log())
            else:
                terms.append(-(1 - alpha) * p[c] ** gamma * (1 - p[c]).log())
        scale = weight[label] if weight is not None and label < len(weight) else 1
        rows.append(torch.stack(terms) * scale)
    return torch.stack(rows)


def softmax_reference(logits, target, gamma, alpha, weight):
    losses = []
    for row, label in zip(logits, target.tolist(), strict=True):
        p = row.softmax(0)[label]
        scale = weight[label] if weight is not None else 1
        loss = -alpha * (1 - p) ** gamma * p.log() * scale
        losses.append(loss if label >= 0 else loss * 0)
    return torch.stack(losses)


def check(layer_type, reference, target, device, dtype, gamma, weighted, reduction):
    logits = (2 * torch.randn(7, 4)).to(dtype).double().requires_grad_()
    weight = torch.tensor([0.5, 2.0, 1.0, 0.25], dtype=torch.float64) if weighted else None
    expected = reference(logits, target, gamma, 0.25, weight)
    expected = expected.sum() / (7 if reduction == 'mean' else 1)
    expected.backward()

    own = logits.detach().to(device, dtype).requires_grad_()
    layer = layer_type(gamma, 0.25, weight, reduction).to(device, dtype)
    loss = layer(own, target.to(device))
    loss.backward()
    assert loss.dtype == own.grad.dtype == dtype
    # The sum over examples is mmcv's, in the input's dtype; so is the softmax.
    tolerance = {key: 4 * value for key, value in rounding(dtype).items()}
    torch.testing.assert_close(loss.double().cpu(), expected.detach(), **tolerance)
    torch.testing.assert_close(own.grad.double().cpu(), logits.grad, **tolerance)


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('gamma', [0.0, 1.5, 2.0])
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_sigmoid(device, dtype, gamma, weighted, reduction):
    target = torch.tensor([0, 1, 2, 3, 4, 4, 1])  # 4 is background
    check(SigmoidFocalLoss, sigmoid_reference, target, device, dtype, gamma, weighted, reduction)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('gamma', [0.0, 1.5, 2.0])
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_softmax(device, dtype, gamma, weighted, reduction):
    target = torch.tensor([0, 1, 2, 3, -1, -1, 1])  # -1 is ignored
    check(SoftmaxFocalLoss, softmax_reference, target, device, dtype, gamma, weighted, reduction)


def test_sigmoid_without_reduction(device):
    logits, target = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    loss = sigmoid_focal_loss(logits.to(device), target.to(device), 2.0, 0.25, None, 'none')
    torch.testing.assert_close(loss.cpu(), sigmoid_reference(logits, target, 2.0, 0.25, None))


def test_gradcheck(device):
    logits = torch.randn(4, 3, dtype=torch.float64, device=device, requires_grad=True)
    target = torch.tensor([0, 1, 2, 2], device=device)
    for function in (sigmoid_focal_loss, softmax_focal_loss):
        assert torch.autograd.gradcheck(
            lambda x, function=function: function(x, target, 2.0, 0.25, None, 'sum'), logits
        )


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
def test_huge_logits_stay_finite(device, gamma):
    sizes = torch.tensor([20.0, 100.0, 1e4, -20.0, -100.0, -1e4], device=device)
    logits = torch.stack([sizes, -sizes], 1).requires_grad_()
    target = torch.zeros(6, dtype=torch.long, device=device)
    for function in (sigmoid_focal_loss, softmax_focal_loss):
        loss = function(logits, target, gamma, 0.25, None, 'sum')
        (grad,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert grad.isfinite().all()
    # The cost of a hopeless miss grows linearly: 0.25 * 1e4 for class 0, 0.75 * 1e4 for class 1.
    loss = sigmoid_focal_loss(logits, target, gamma, 0.25, None, 'none')
    torch.testing.assert_close(loss[-1].cpu(), torch.tensor([0.25e4, 0.75e4]))


def test_no_examples(device):
    logits = torch.zeros(0, 4, device=device, requires_grad=True)
    target = torch.zeros(0, dtype=torch.long, device=device)
    for layer in (
        SigmoidFocalLoss(2.0, 0.25, None, 'sum'),
        SoftmaxFocalLoss(2.0, 0.25, None, 'sum'),
    ):
        loss = layer(logits, target)
        loss.backward()
        assert loss.item() == 0
        assert logits.grad.shape == (0, 4)

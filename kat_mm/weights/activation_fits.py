"""Fits of the activations of trained ViTs by the rational functions that take their place: data."""

from dataclasses import dataclass

import torch

ACTIVATIONS = {
    'gelu': torch.nn.functional.gelu,
    'quick_gelu': lambda x: x * torch.sigmoid(1.702 * x),  # OpenAI's CLIP
}
INTERVAL = 6.0  # inputs of a trained ViT's activations are rarely farther from zero


@dataclass(frozen=True)
class ActivationFit:
    """A rational P(x) / Q(x) near an activation.

    Attributes:
        numerator: a0..am.
        denominator: b1..bn.
        error: the largest |P(x) / Q(x) - activation(x)| on the interval of the fit.
    """

    numerator: tuple[float, ...]
    denominator: tuple[float, ...]
    error: float


# On [-INTERVAL, INTERVAL], as `kat_mm.fitting.fit.fit_rational` computes them, which takes scipy.
FITS = {
    'gelu': ActivationFit(
        (-0.00308437007, 0.5, 0.417518973, 0.12293652, 0.0149353655, 0.000616541865),
        (0.0, 0.24587304, 0.0, 0.00123308373),
        error=0.00308488524,
    ),
    'quick_gelu': ActivationFit(
        (0.00109808271, 0.5, 0.419318712, 0.139284237, 0.0211500651, 0.00121403677),
        (0.0, 0.278568475, 0.0, 0.00242807354),
        error=0.00109848977,
    ),
}

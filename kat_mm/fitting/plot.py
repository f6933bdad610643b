"""A picture of a function, its fit and the error."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from ..rational.coefficients import evaluate
from .fit import Fit, Function


def plot_fit(name: str, function: Function, fit: Fit, low: float, high: float, png: Path) -> None:
    """Draws the function and its fit, also beside the interval, and the error."""
    beside = (high - low) / 4
    x = torch.linspace(low - beside, high + beside, 4001, dtype=torch.float64)
    inside = torch.linspace(low, high, 4001, dtype=torch.float64)
    coefficients = torch.tensor(fit.numerator), torch.tensor(fit.denominator)
    figure = Figure(figsize=(11, 4.5), layout='constrained')
    curves, errors = figure.subplots(1, 2)
    curves.axvspan(low, high, color='0.93', label=f'fitted on [{low:g}, {high:g}]')
    curves.plot(x, function(x), label=name, linewidth=5, color='tab:blue', alpha=0.4)
    limits = curves.get_ylim()  # the fit may leave them beside the interval
    order = len(fit.numerator) - 1, len(fit.denominator)
    curves.plot(x, evaluate(x, *coefficients), label=f'fit of order {order}', color='black')
    curves.set(title=f'{name} and its fit', ylim=limits)
    error = evaluate(inside, *coefficients) - function(inside)
    errors.plot(inside, error, label=f'fit - {name}, at most {fit.error:.3g}', color='tab:red')
    for bound in {-fit.bound, fit.bound}:
        label = f'least possible at this order, {fit.bound:.3g}' if bound >= 0 else None
        errors.axhline(bound, color='0.4', linestyle='--', label=label)
    errors.set(title=f'error on [{low:g}, {high:g}]')
    errors.ticklabel_format(axis='y', scilimits=(-3, 4))
    for axes in (curves, errors):
        axes.set_xlabel('x')
        axes.margins(x=0)
        axes.grid(alpha=0.3)
    curves.legend()
    figure.legend(*errors.get_legend_handles_labels(), loc='outside lower right', ncols=2)
    figure.savefig(png, dpi=120)

"""Puts rational activations into the MLPs of a model."""

import copy
import math
from collections import Counter
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from ..checks import check_number
from ..errors import ConfigError, one_line
from ..rational.layer import GroupRational
from .activated import ActivatedLayer
from .activation import evaluate_activation, fit_module
from .fit import Fit, largest_error, rms_error
from .report import ConversionReport, ConvertedMLP, LeftMLP
from .runs import Samples, calls, run, small_input
from .samples import Histogram, input_histograms
from .search import MLP, find_mlps

NOT_CALLED = (
    'its first layer or its activation is not called, such as where code reads the weight of the '
    'layer, so that rational ones would be skipped'
)


def to_kat(
    model: nn.Module,
    num_groups: int = 8,
    order: tuple[int, int] = (5, 4),
    interval: float = 6.0,
    samples: Samples | None = None,
) -> ConversionReport:
    """Turns the MLPs fc2(act(fc1(x))) of a model into GR-KAN layers, in place.

    A GR-KAN layer is fc2(act2(fc1(act1(x)))) with rational activations (KAT, arXiv 2409.10594,
    section 4). The weights stay, act1 starts as the identity and act2 as the function that is
    fitted to act: the model computes what it did, up to the error of the fit, which the report
    states. To keep the model as it is, convert a `copy.deepcopy` of it.

    With samples, such as a batch of images, each act2 is fitted to what its layer sees of them:
    close where most inputs are, rough where there are few. Without, act2 has the smallest largest
    error on [-interval, interval]. Either way a higher order comes closer. Beyond the range of the
    fit errors grow: no P/Q follows GELU, ReLU or SiLU to both sides, as its growth at -x is that
    at x but for the sign.

    An MLP is a module of any class with two linear layers, or two 1x1 convolutions, and one
    activation without parameters, recognised by its values. Dropout, norms and, between
    convolutions, a depthwise one may be there too. An activation that is called as a function,
    such as torch.nn.functional.gelu in a forward method, is not seen.

    The module keeps its class. act2 takes the place of act and its name; hooks of act go with act.
    An `ActivatedLayer`, which computes layer(act1(x)), takes that of the first layer: whatever
    reads its weight, and so would skip act1, is an error. The keys of timm's ViT are then
    `blocks.0.mlp.fc1.layer.weight`, `blocks.0.mlp.fc1.act1.*` and `blocks.0.mlp.act.*`, where *
    stands for weight_numerator and weight_denominator; a new model must be converted before it
    loads them. Checkpoints from before the conversion, with `fc1.weight`, load with strict=False.
    Coefficients have the device, dtype, training mode and requires_grad of the first layer.

    What is converted is run: on the samples, or a copy of each MLP alone on a small input. An MLP
    that does not call its first layer is left as it was, and the report names those that did not
    run, or not alone, so that nothing shows whether they call both activations.

    Args:
        model: a model, or an MLP itself.
        num_groups: groups of each activation, as in `GroupRational`.
        order: degrees of its numerator and denominator. On a GPU all that are above (5, 4) take
            the time of (8, 8).
        interval: largest |x| that activations are fitted for, where samples do not tell.
        samples: what the model is called with in evaluation mode: a tensor, or a tuple or dict of
            several arguments, on the device of the model.

    Returns:
        A report of the MLPs that were converted and of those that were left, and why.

    Raises:
        ValueError: for num_groups or an order that `GroupRational` refuses, and an interval that
            is no positive number.
        DataError: for samples that give inputs that are not finite.
        In each case, and for what the model raises about samples, it is unchanged.
    """
    GroupRational(num_groups, 'identity', order)  # refuses wrong arguments
    if not 0 < check_number('interval', interval) < math.inf:
        raise ConfigError(f'interval={interval!r} must be a positive number')
    mlps = find_mlps(model)
    histograms, layers = {}, set()
    if samples is not None:
        parts = [mlp for _, mlp in mlps.values() if isinstance(mlp, MLP)]
        acts = {mlp.act for mlp in parts}
        with calls({mlp.first for mlp in parts}) as layers:
            histograms = input_histograms(model, acts, samples)
    changes, converted, left = [], [], []
    for module, (name, mlp) in mlps.items():
        name, kind = name or '(the model)', type(module).__name__
        obstacle = _obstacle(model, module, mlp, num_groups) if isinstance(mlp, MLP) else mlp
        ran = False
        if not obstacle:
            histogram = histograms.get(mlp.act)
            try:
                fit = fit_module(mlp.act, tuple(order), float(interval), histogram)
                entry = _entry(name, kind, mlp, fit, histogram, float(interval))
            except ValueError as error:
                obstacle = f'no rational function can be fitted to its activation: {error}'
        if not obstacle:
            acts = [
                GroupRational(num_groups, init, order, channel_dim=mlp.channel_dim)
                .to(mlp.first.weight)
                .train(mlp.first.training)
                .requires_grad_(mlp.first.weight.requires_grad)
                for init in ('identity', (fit.numerator, fit.denominator))
            ]
            if samples is None:
                ran, obstacle = _try(module, mlp, *acts)
            elif mlp.act in histograms and mlp.first not in layers:
                obstacle = NOT_CALLED
        if obstacle:
            left.append(LeftMLP(name, kind, obstacle))
            continue
        changes.append((module, mlp, *acts))
        converted.append(replace(entry, ran=ran))
    undo = [place for change in changes for place in _convert(*change)]
    if samples is not None:
        try:
            with calls({act for _, _, *acts in changes for act in acts}) as ran:
                run(model, samples)
        except BaseException:
            for parent, name, child in reversed(undo):
                setattr(parent, name, child)
            raise
        converted = [
            replace(entry, ran=ran.issuperset(acts))
            for entry, (_, _, *acts) in zip(converted, changes, strict=True)
        ]
    return ConversionReport(converted, left)


def _try(
    module: nn.Module, mlp: MLP, act1: GroupRational, act2: GroupRational
) -> tuple[bool, str | None]:
    """Converts a copy of an MLP and runs it alone on a small input.

    Returns:
        Whether both activations ran, and what keeps the MLP from being converted, if anything.
        What cannot run alone, as it takes other inputs, is not known to have any such obstacle.
    """
    try:
        memo: dict = {}
        twin = copy.deepcopy(module, memo)
        parts = MLP(*(memo[id(part)] for part in (mlp.first, mlp.act, mlp.last)))
        for part in twin.modules():
            part._forward_hooks.clear()
            part._forward_pre_hooks.clear()
        run(twin, x := small_input(mlp))
    except Exception:  # whatever a module may raise about an input that is not its own
        return False, None
    acts = copy.deepcopy((act1, act2))
    _convert(twin, parts, *acts)
    try:
        with calls(set(acts)) as ran:
            run(twin, x)
    except Exception as error:
        return False, f'it does not run so: {one_line(error)}'
    return (True, None) if ran.issuperset(acts) else (False, NOT_CALLED)


def _obstacle(model: nn.Module, module: nn.Module, mlp: MLP, num_groups: int) -> str | None:
    """What keeps the MLP `module` of `model` from being converted, if anything."""
    if _owners(model)[mlp.first] > _owners(module)[mlp.first]:
        return 'its first layer is shared with another module'
    for channels in mlp.channels[:2]:
        if channels % num_groups:
            return f'num_groups={num_groups} does not divide its {channels} channels'
    return None


def _owners(model: nn.Module) -> Counter[nn.Module]:
    """How many modules have each module as a child."""
    return Counter(child for parent in model.modules() for child in parent._modules.values())


def _entry(
    name: str, kind: str, mlp: MLP, fit: Fit, histogram: Histogram | None, interval: float
) -> ConvertedMLP:
    """Makes the line of the report, with the errors of coefficients in the dtype of the weights.

    Raises:
        ValueError: if that dtype does not hold them.
    """
    act, dtype = partial(evaluate_activation, mlp.act), mlp.first.weight.dtype
    act2 = [torch.tensor(c).to(dtype).tolist() for c in (fit.numerator, fit.denominator)]
    ends, rms = (-interval, interval), None
    if histogram is not None:
        ends, rms = tuple(histogram[0][[0, -1]].tolist()), rms_error(act, *act2, *histogram)
    error, _ = largest_error(act, *act2, *ends)
    if not math.isfinite(error):
        raise ValueError(f'the coefficients are beyond the range of {dtype}')
    return ConvertedMLP(name, kind, mlp.channels, type(mlp.act).__name__, ends, float(error), rms)


def _convert(module: nn.Module, mlp: MLP, act1: GroupRational, act2: GroupRational) -> list[tuple]:
    """Puts both activations into an MLP; returns what was where: (parent, name, child)."""
    new = {mlp.act: act2, mlp.first: ActivatedLayer(act1, mlp.first)}
    changed = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent._modules.items()
        if child in new
    ]
    for parent, name, child in changed:
        setattr(parent, name, new[child])
    return changed

"""Puts rational activations into the MLPs of a model."""

from collections import Counter

import torch
from torch import nn

from ..rational.coefficients import evaluate, initial_coefficients
from ..rational.layer import GroupRational
from .activation import evaluate_activation
from .report import ConversionReport, ConvertedMLP, LeftMLP
from .search import MLP, find_mlps


def to_kat(
    model: nn.Module, num_groups: int = 8, order: tuple[int, int] = (5, 4)
) -> ConversionReport:
    """Turns the MLPs fc2(act(fc1(x))) of a model into GR-KAN layers, in place.

    A GR-KAN layer is fc2(act2(fc1(act1(x)))) with rational activations (KAT, arXiv 2409.10594,
    section 4). The weights stay, act1 starts as the identity and act2 as the function that is
    fitted to act: the model computes what it did, up to the error of the fit, which the report
    states. To keep the model as it is, convert a `copy.deepcopy` of it.

    An MLP is a module of any class with two linear layers, or two 1x1 convolutions, and one
    activation of which `kat_mm.rational.coefficients.FITS` has a fit, recognised by its values.
    Dropout, norms and, between convolutions, a depthwise one may be there too. An activation that
    is called as a function, such as torch.nn.functional.gelu in a forward method, is not seen.

    The module keeps its class and its layers. act2 takes the place of act and its name; hooks of
    act go with act. act1 becomes a child of the first layer, which calls it by a forward pre-hook.
    So no key of the state dict goes, and earlier checkpoints load with strict=False. The new keys
    of timm's ViT are `blocks.0.mlp.fc1.act1.*` and `blocks.0.mlp.act.*`, where * stands for
    weight_numerator and weight_denominator; a new model must be converted before it loads them.
    Coefficients have the device, dtype, training mode and requires_grad of the first layer.

    Args:
        model: a model, or an MLP itself.
        num_groups: groups of each activation, as in `GroupRational`.
        order: degrees of its numerator and denominator.

    Returns:
        A report of the MLPs that were converted and of those that were left, and why.

    Raises:
        ValueError: for num_groups or an order that `GroupRational` refuses, and then the model
            is unchanged.
    """
    GroupRational(num_groups, 'identity', order)  # refuses wrong arguments
    changes, converted, left = [], [], []
    for module, (name, mlp) in find_mlps(model).items():
        name, kind = name or '(the model)', type(module).__name__
        obstacle = _obstacle(model, module, mlp, num_groups) if isinstance(mlp, MLP) else mlp
        if obstacle:
            left.append(LeftMLP(name, kind, obstacle))
            continue
        acts = [
            GroupRational(num_groups, init, order, channel_dim=mlp.channel_dim)
            .to(mlp.first.weight)
            .train(mlp.first.training)
            .requires_grad_(mlp.first.weight.requires_grad)
            for init in ('identity', mlp.init)
        ]
        changes.append((module, mlp, *acts))
        errors = (_largest_error(mlp, order, end) for end in (3, 6))
        converted.append(
            ConvertedMLP(name, kind, mlp.channels, type(mlp.act).__name__, mlp.init, *errors)
        )
    for change in changes:
        _convert(*change)
    return ConversionReport(converted, left)


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


def _largest_error(mlp: MLP, order: tuple[int, int], end: float) -> float:
    """The largest error of act2 on [-end, end], with coefficients in the dtype of the weights."""
    x = torch.linspace(-end, end, 10_001, dtype=torch.float64)
    dtype = mlp.first.weight.dtype
    coefficients = (c.to(dtype).double() for c in initial_coefficients(mlp.init, order))
    return (evaluate(x, *coefficients) - evaluate_activation(mlp.act, x)).abs().max().item()


def _convert(module: nn.Module, mlp: MLP, act1: GroupRational, act2: GroupRational) -> None:
    mlp.first.act1 = act1
    mlp.first.register_forward_pre_hook(_apply_act1)
    for parent in module.modules():
        for name, child in parent._modules.items():
            if child is mlp.act:
                parent._modules[name] = act2


def _apply_act1(layer: nn.Module, args: tuple) -> tuple:
    return layer.act1(args[0]), *args[1:]

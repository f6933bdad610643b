"""The outputs of mmdet's RPNHead for all anchors of a batch, by two layers in one."""

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn

ALIGNMENT = 8  # channels, without which a GPU's matrix units read 16-bit numbers one by one


def flatten(cls_scores: list[Tensor], bbox_preds: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns scores [B, N, C] and deltas [B, N, 4] of RPNHead's maps, in the order of anchors."""
    anchors = bbox_preds[0].shape[1] // 4
    return tuple(
        _cells(maps).reshape(len(maps[0]), -1, maps[0].shape[1] // anchors)
        for maps in (cls_scores, bbox_preds)
    )


def outputs(head, maps: tuple[Tensor]) -> tuple[Tensor, Tensor]:
    """Computes scores [B, N, C] and deltas [B, N, 4] of a head with the layers of RPNHead.

    They are the outputs of one layer with the weights of both, which reads its input once.
    """
    scores = head.rpn_cls.out_channels
    weight, bias = _joint_weights(head.rpn_cls, head.rpn_reg, maps[0].device.type)
    joint = [F.conv2d(_activated(head.rpn_conv, x), weight, bias) for x in maps]
    cells = _cells(joint)
    deltas = cells[..., scores : scores + head.rpn_reg.out_channels]
    batch = len(cells)
    return (
        cells[..., :scores].reshape(batch, -1, head.cls_out_channels),
        deltas.reshape(batch, -1, head.bbox_coder.encode_size),
    )


def _cells(maps: list[Tensor]) -> Tensor:
    """Returns maps [B, C, h, w] of all levels as [B, all cells, C]."""
    return torch.cat([x.permute(0, 2, 3, 1).flatten(1, 2) for x in maps], 1)


def _joint_weights(first: nn.Conv2d, second: nn.Conv2d, device: str) -> tuple[Tensor, Tensor]:
    padding = -(first.out_channels + second.out_channels) % ALIGNMENT if device == 'cuda' else 0
    weight, bias = (
        F.pad(torch.cat(each), (0, 0) * (each[0].dim() - 1) + (0, padding))
        for each in ((first.weight, second.weight), (first.bias, second.bias))
    )
    if torch.is_autocast_enabled(device):  # which would cast them for each level
        dtype = torch.get_autocast_dtype(device)
        weight, bias = weight.to(dtype), bias.to(dtype)
    return weight, bias


def _activated(conv: nn.Module, x: Tensor) -> Tensor:
    """Returns relu(conv(x)), without a second one where the last of several layers has its own."""
    if isinstance(conv, nn.Conv2d):
        return F.relu(conv(x), inplace=True)
    last = conv[-1]
    has_relu = isinstance(last, ConvModule) and last.with_activation
    x = conv(x)
    return x if has_relu and isinstance(last.activate, nn.ReLU) else F.relu(x)

"""Builds the model of a config, and what it takes to run it, without data or weights.

On the meta device, which computes shapes alone, that holds no memory and takes no time, whatever
the size of model and image.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn


@contextmanager
def meta_parameters() -> Iterator[None]:
    """Lets modules be built with their parameters on the meta device, which no init has to fill.

    All other tensors keep their values, which many models compute with while they are built;
    `torch.device('meta')` would take these away too.
    """
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to('meta'), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def prepare(
    config: Config, size: tuple[int, int], device: str = 'meta'
) -> tuple[nn.Module, dict[str, object]]:
    """Returns the model of a config in evaluation mode, and the arguments that run it once.

    They are one image of `size` (H, W), which the model's data preprocessor has normalised and
    may have padded, and mode 'tensor': backbone, neck and heads without post-processing. Which
    proposals a two-stage detector makes depends on values, so it gets the number of them that
    test_cfg.rpn.max_per_img allows, and features of the right shape for each.
    """
    scope = DefaultScope.overwrite_default_scope(config.get('default_scope'))
    with scope, meta_parameters() if device == 'meta' else nullcontext():
        model = MODELS.build(config.model)
    if hasattr(getattr(model, 'rpn_head', None), 'predict_by_feat'):
        _fix_proposals(model, device)
    sample = BaseDataElement(
        metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
    )
    sample.gt_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0))
    image = torch.zeros(3, *size, dtype=torch.uint8)
    data = model.data_preprocessor(dict(inputs=[image], data_samples=[sample]))
    call = dict(inputs=data['inputs'].to(device), data_samples=data['data_samples'], mode='tensor')
    return model.eval().to(device), call


def _fix_proposals(model: nn.Module, device: str) -> None:
    """Has the RPN propose empty boxes, and RoI extractors return features without pooling."""
    from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor

    proposals = torch.zeros(model.rpn_head.test_cfg.get('max_per_img', 1000), 4, device=device)

    def propose(*maps: Tensor, batch_img_metas: list[dict], **options) -> list[InstanceData]:
        return [InstanceData(bboxes=proposals) for _ in batch_img_metas]

    def without_pooling(extractor: BaseRoIExtractor):
        shape = extractor.out_channels, *extractor.roi_layers[0].output_size
        return lambda maps, rois, *args, **options: maps[0].new_zeros(len(rois), *shape)

    model.rpn_head.predict_by_feat = propose
    for module in model.modules():
        if isinstance(module, BaseRoIExtractor):
            module.forward = without_pooling(module)

import pytest
import torch
from mmengine.registry import MODELS

import kat_mm.openmmlab.detection.roi_extractor  # noqa: F401


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_coordinates_are_exact_in_half_precision(dtype):
    config = dict(
        type='FullPrecisionRoIExtractor',
        roi_layer=dict(type='RoIAlign', output_size=2, sampling_ratio=2),
        out_channels=1,
        featmap_strides=[8],
    )
    extractor = MODELS.build(config)
    # A map that rises by one a cell: RoI features are coordinates of sample points.
    ramp = torch.arange(256, dtype=torch.float32).expand(1, 1, 4, 256)
    rois = torch.tensor([[0, 1001.0, 4.0, 1017.0, 20.0]])
    exact = extractor((ramp,), rois)
    pooled = extractor(((ramp - 126).to(dtype),), rois).float() + 126  # small values, exact in bf16
    assert extractor((ramp.to(dtype),), rois).dtype == dtype
    torch.testing.assert_close(pooled, exact, rtol=0, atol=2**-7)


def built(kind, strides=(4, 8, 16, 32), **layer):
    layer = dict(type='RoIAlign', output_size=7, sampling_ratio=0) | layer
    settings = dict(out_channels=6, featmap_strides=list(strides), roi_layer=layer)
    return MODELS.build(dict(type=kind, **settings))


def random_rois(device, count=50):
    """RoIs of an image of 96 x 128 pixels, of all sizes, some beyond its border."""
    centre = torch.rand(count, 2) * torch.tensor([128.0, 96.0])
    half = torch.exp(torch.rand(count, 2) * 5) / 2
    images = torch.randint(2, (count, 1)).float()
    return torch.cat([images, centre - half, centre + half], 1).to(device)


@pytest.mark.parametrize('strides', [(4, 8, 16, 32), (8,)])
@pytest.mark.parametrize('scale', [None, 1.5])
@pytest.mark.parametrize(
    'layer', [{}, dict(sampling_ratio=2), dict(aligned=False), dict(pool_mode='max')], ids=str
)
def test_features_and_gradients_are_those_of_mmdet(device, strides, scale, layer):
    extractors = [
        built(kind, strides, **layer)
        for kind in ('mmdet.SingleRoIExtractor', 'FullPrecisionRoIExtractor')
    ]
    maps = [torch.randn(2, 6, 96 // s, 128 // s, device=device) for s in strides]
    rois, results = random_rois(device), []
    for extractor in extractors:
        inputs = [x.clone().requires_grad_() for x in maps]
        features = extractor(inputs, rois, scale)
        grads = torch.autograd.grad(features.square().sum(), inputs)
        results.append((features, *grads))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

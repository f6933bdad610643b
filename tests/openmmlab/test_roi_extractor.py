import pytest
import torch
from mmengine.registry import MODELS

import kat_mm.openmmlab.roi_extractor  # noqa: F401


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

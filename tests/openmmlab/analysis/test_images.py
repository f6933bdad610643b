"""Images as a model takes them, and the pixels that tokens stand for."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kats import ARCH, Detector
from mmengine.config import Config
from torch import nn

from kat_mm.attention import Attention
from kat_mm.errors import ConfigError
from kat_mm.openmmlab.analysis.images import Image, look_at, validation_images


class Silent(Attention):
    """An attention that only computes."""

    def attend(self, x, grid, mask=None):
        return x


@pytest.mark.parametrize(
    ('size', 'grid', 'side'), [((130, 64), (17, 8), 8), ((800, 1344), (50, 84), 16)]
)
def test_tokens_stand_for_squares(size, grid, side):
    assert Image('', np.zeros((1, 1, 3)), size, []).token_size(grid) == side


def test_an_image_as_the_backbone_sees_it():
    model = Detector().eval()
    pixels = torch.randint(256, (3, 64, 80), dtype=torch.uint8)

    class Preprocessor(nn.Module):
        def forward(self, data, training):
            assert not training
            padded = nn.functional.pad(data['inputs'][0].float(), (0, 16))
            return {'inputs': padded[None] / 255}

    model.data_preprocessor = Preprocessor()
    sample = dict(inputs=pixels, data_samples=SimpleNamespace(img_path='folder/name.png'))
    image = look_at(model, sample)
    assert image.name == 'name.png'
    assert image.size == (64, 96)
    assert (image.picture == pixels.numpy()[::-1].transpose(1, 2, 0)).all()
    assert len(image.seen) == ARCH['num_layers']
    assert image.seen[0].grid == (4, 6)
    model.backbone.blocks[1].attn = Silent(48, 2, (4, 4))
    with pytest.raises(
        ConfigError, match=r'attention Silent cannot be looked at: .* matrices\(x, '
    ):
        look_at(model, sample)
    model.backbone = nn.Identity()
    with pytest.raises(ConfigError, match='backbone Identity has no attention of kat_mm'):
        look_at(model, sample)
    del model.backbone
    with pytest.raises(ConfigError, match='Detector has no backbone'):
        look_at(model, sample)


def test_a_config_without_test_data():
    with pytest.raises(ConfigError, match=r'has no test_dataloader\.dataset'):
        validation_images(Config({}), '0', 1)

"""The ffn='mlp' twin is timm's ViT, and loads its weights."""

import pytest
import torch

from kat_mm.models import KAT

timm = pytest.importorskip('timm')


def test_twin_computes_what_timms_vit_computes():
    torch.manual_seed(0)
    vit = timm.create_model('vit_tiny_patch16_224', num_classes=0).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    kat = KAT('tiny', ffn='mlp').eval()
    kat.load_state_dict(vit.state_dict(), strict=True)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        tokens = vit.forward_features(images)[:, 1:]
        (y,) = kat(images)
    torch.testing.assert_close(y.flatten(2).transpose(1, 2), tokens, rtol=1e-5, atol=1e-5)


def test_twin_resizes_position_embeddings_as_timm_does():
    torch.manual_seed(0)
    vit = timm.create_model(
        'vit_tiny_patch16_224', num_classes=0, dynamic_img_size=True, depth=2
    ).eval()
    arch = {'embed_dims': 192, 'num_layers': 2, 'num_heads': 3}
    kat = KAT(arch, ffn='mlp').eval()
    kat.load_state_dict(vit.state_dict(), strict=True)
    images = torch.randn(1, 3, 160, 336)
    with torch.no_grad():
        tokens = vit.forward_features(images)[:, 1:]
        (y,) = kat(images)
    torch.testing.assert_close(y.flatten(2).transpose(1, 2), tokens, rtol=1e-5, atol=1e-5)

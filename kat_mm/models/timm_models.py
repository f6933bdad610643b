"""KAT in timm: `timm.create_model('kat_small_patch16_224', pretrained=True)`."""

import inspect
import logging
from collections.abc import Mapping

from huggingface_hub.errors import LocalEntryNotFoundError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from ..attention.mimetic import mimetic_init_
from ..errors import ConfigError, DataError
from ..weights.layout import left_out, rename_coefficients, to_kat_keys
from ..weights.reading import read_checkpoint, unreachable
from .block import feed_forward
from .ffn.gr_kan import GRKAN
from .sizes import ARCHS

__all__ = []  # timm's registry adds the models
_logger = logging.getLogger(__name__)
# What timm's ViT does with MLPs, and GR-KAN layers have no place for.
WITHOUT_EFFECT = {
    'act_layer': 'a GR-KAN layer has learnable activations',
    'scale_mlp_norm': 'a GR-KAN layer has no norm',
    'proj_bias': 'the linear layers of a GR-KAN layer have biases',
    'fix_init': 'weights are drawn variance-preserving',
}
HEAD = ('head.', 'fc_norm.', 'attn_pool.')  # what depends on the classes and the pooling


class KATBlock(Block):
    """timm's ViT block with a GR-KAN layer, which computes the layer norm in front of it too."""

    def forward(self, x: Tensor, **attention) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), **attention)))
        return x + self.drop_path2(self.ls2(feed_forward(self.mlp, self.norm2, x)))


class KATTransformer(VisionTransformer):
    """timm's VisionTransformer with GR-KAN layers in the place of MLPs (KAT, arXiv 2409.10594).

    It has all of timm's interface. Parameters are named as in the published checkpoints.

    Raises:
        ConfigError: for an argument of timm's that has no effect here.
    """

    def __init__(self, *args, **kwargs):
        if 'mlp_layer' not in kwargs:
            refuse_without_effect(kwargs)
        super().__init__(*args, **{'block_fn': KATBlock, 'mlp_layer': _mlp, **kwargs})

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args, **kwargs):
        """Loads weights, in which coefficients may have FlashKAT's names."""
        return super().load_state_dict(rename_coefficients(state_dict), *args, **kwargs)

    def init_weights(self, *args, **kwargs) -> None:
        """Draws the weights: those of GR-KAN layers variance-preserving, of attention mimetic."""
        super().init_weights(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, GRKAN):
                module.reset_parameters()
            elif isinstance(module, Block):
                mimetic_init_(module.attn.qkv, module.attn.proj, module.attn.num_heads)


def refuse_without_effect(
    arguments: Mapping, reasons: Mapping[str, str] = WITHOUT_EFFECT, model: str = 'KAT'
) -> None:
    """Refuses arguments of timm's ViT that a model would ignore, where they are not the default.

    Args:
        arguments: those given.
        reasons: why an argument has no effect, by its name.
        model: what the error calls the model.

    Raises:
        ConfigError: names the first of them, its value and the reason.
    """
    known = inspect.signature(VisionTransformer).parameters
    for name, reason in reasons.items():
        value = arguments.get(name)
        if value is not None and value != known[name].default:
            raise ConfigError(f'{model}: {name}={value!r} has no effect, as {reason}: leave it out')


def _mlp(in_features: int, hidden_features: int, drop: float = 0.0, device=None, dtype=None, **_):
    """Builds a GR-KAN layer from what timm's blocks give a layer of theirs."""
    layer = GRKAN(in_features, hidden_features, drop=drop)
    return layer.to(device=device, dtype=dtype)


def _adapt(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Gives a checkpoint this layout, and its embeddings the model's sizes.

    Raises:
        DataError: for weights that are missing, which timm accepts where the head is another.
    """
    weights = to_kat_keys(state_dict)
    if unused := left_out(state_dict, weights):
        _logger.warning('not in the model, so not used: %s', ', '.join(unused))
    own = {key: value for key, value in model.state_dict().items() if not key.startswith(HEAD)}
    drawn = [key for key in own if key not in weights and _is_fresh(model, key)]
    if missing := [key for key in own if key not in weights and key not in drawn]:
        raise DataError(f'the checkpoint is of another architecture: it has no {missing[0]}')
    if drawn:
        _logger.info('not in the checkpoint, so drawn anew: %s', ', '.join(drawn))
    return checkpoint_filter_fn({**weights, **{key: own[key] for key in drawn}}, model)


def _is_fresh(model: nn.Module, key: str) -> bool:
    """Tells whether a key is of what an attention has and the weights of a plain ViT lack."""
    block, _, part = key.partition('.attn.')
    if not part or not block.startswith('blocks.'):
        return False
    return part.partition('.')[0] in getattr(model.get_submodule(f'{block}.attn'), 'fresh', ())


def create(
    variant: str, pretrained: bool, model_class: type[VisionTransformer] | None = None, **kwargs
) -> VisionTransformer:
    """Builds a model of timm's registry, of KATTransformer if no other class is given.

    Raises:
        DataError: for pretrained weights that cannot be had or read, or do not fit.
    """
    if pretrained:  # what is loaded need not be drawn first, which takes seconds
        kwargs.setdefault('weight_init', 'skip')
        if file := (kwargs.get('pretrained_cfg_overlay') or {}).get('file'):
            read_checkpoint(file)  # timm reads it too, but does not tell what is wrong with it
    try:
        return build_model_with_cfg(
            model_class or KATTransformer,
            variant,
            pretrained,
            pretrained_filter_fn=_adapt,
            feature_cfg=dict(out_indices=kwargs.pop('out_indices', 3), feature_cls='getter'),
            **kwargs,
        )
    except LocalEntryNotFoundError as error:
        path = "path: create_model(..., pretrained=True, pretrained_cfg_overlay=dict(file='...'))"
        raise unreachable(f'{variant} of Hugging Face', error, path) from error


def config_of(**source) -> dict:
    """Returns timm's config of a model, with where its weights are."""
    return dict(
        **source,
        num_classes=1000,
        input_size=(3, 224, 224),
        pool_size=None,
        crop_pct=0.875,
        interpolation='bicubic',
        fixed_input_size=True,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        first_conv='patch_embed.proj',
        classifier='head',
        license='mit',
    )


# Two sets of weights of each size: trained from scratch, and with ViT weights as the start.
default_cfgs = generate_default_cfgs(
    {
        tag: config_of(hf_hub_id=f'adamdad/{tag}')
        for size in ARCHS
        for tag in (f'kat_{size}_patch16_224', f'kat_{size}_patch16_224.vitft')
    }
)


def sizes(arch: str) -> dict:
    """Returns a row of `ARCHS` by timm's names."""
    row = ARCHS[arch]
    return dict(embed_dim=row['embed_dims'], depth=row['num_layers'], num_heads=row['num_heads'])


@register_model
def kat_tiny_patch16_224(pretrained: bool = False, **kwargs) -> KATTransformer:
    """KAT-T: 5.7 M parameters."""
    return create('kat_tiny_patch16_224', pretrained, **{**sizes('tiny'), **kwargs})


@register_model
def kat_small_patch16_224(pretrained: bool = False, **kwargs) -> KATTransformer:
    """KAT-S: 22.1 M parameters."""
    return create('kat_small_patch16_224', pretrained, **{**sizes('small'), **kwargs})


@register_model
def kat_base_patch16_224(pretrained: bool = False, **kwargs) -> KATTransformer:
    """KAT-B: 86.6 M parameters."""
    return create('kat_base_patch16_224', pretrained, **{**sizes('base'), **kwargs})

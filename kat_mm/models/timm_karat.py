"""Vision transformers with Kolmogorov-Arnold attention in timm: `karat_small_patch16_224`."""

from functools import partial

from timm.layers import Mlp
from timm.models import generate_default_cfgs, register_model, register_notrace_module
from timm.models.vision_transformer import Block
from torch import Tensor, fx

from ..attention.karat import KArAt
from ..attention.mimetic import skip_mimetic_init
from ..attention.plan import OPTIONS, build_attentions, plan_attention
from ..errors import ConfigError, DataError
from ..registry import FFNS, Config
from .block import feed_forward
from .ffn.gr_kan import GRKAN
from .sizes import ARCHS
from .timm_models import KATTransformer, config_of, create, refuse_without_effect, sizes

__all__ = []  # timm's registry adds the models
# What timm's ViT does, and attention whose functions belong to tokens has no place for.
WITHOUT_EFFECT = {
    'qk_norm': 'the learnable functions take scores as they are',
    'scale_attn_norm': 'attention has no norm',
    'attn_drop_rate': 'attention=dict(drop=...) is what may be dropped',
    'attn_layer': 'attention=... says which attention it is',
    'block_fn': 'blocks pass the grid of the tokens on',
    'proj_bias': 'the projection of an attention has a bias',
    'fix_init': 'attention draws its weights itself',
    'patch_drop_rate': 'the learnable functions belong to the places of all tokens',
}
GRID_SIZES = {'tiny': 3, 'small': 3, 'base': 1}  # the best G of the paper

register_notrace_module(KArAt)  # its chunks depend on shapes, so that torch.fx takes it whole


@fx.wrap  # torch.fx traces all arguments of a model, and knows only later that there is no mask
def _refuse_mask(attn_mask: Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise ConfigError('KArAt takes neither attn_mask nor is_causal: its sums are of all tokens')


class KArAtBlock(Block):
    """timm's ViT block with an attention that is told the grid (h, w) of its tokens."""

    grid: tuple[int, int]

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False):
        _refuse_mask(attn_mask, is_causal)
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), self.grid)))
        return x + self.drop_path2(self.ls2(feed_forward(self.mlp, self.norm2, x)))


class KArAtTransformer(KATTransformer):
    """timm's VisionTransformer with Kolmogorov-Arnold attention (KArAt, arXiv 2503.10632).

    It has timm's interface but for masks and dropped patches. Images of another size, by
    dynamic_img_size or set_input_size, take the operators of the size that the model was made for,
    as `Operator` says. torch.fx takes an attention as one node.

    Keys are timm's for ViT (`blocks.0.attn.qkv.weight`, `blocks.0.mlp.fc1.weight`) and with GR-KAN
    layers those of published KATs (`blocks.0.mlp.act1.weight_numerator`). There are no published
    ones of KArAt: `blocks.0.attn.operator.*` and `blocks.0.attn.gate` are this project's, as in its
    backbone. Those of a ViT or KAT, by pretrained_cfg_overlay=dict(file=...), leave them as drawn.

    Args:
        attention: arguments of `KArAt`, and shared='operator' for its universal mode; or another
            attention of `kat_mm.attention`, by its type.
        ffn: 'mlp' for timm's MLP, as the paper has it, 'gr_kan', or a dict as of `KAT`.
        kwargs: of timm's VisionTransformer.

    Raises:
        ConfigError: for an argument that has no effect, or does not fit.
    """

    def __init__(self, attention: Config = 'KArAt', ffn: Config = 'mlp', **kwargs):
        refuse_without_effect(kwargs, WITHOUT_EFFECT, 'KArAt')
        plan = _plan(attention, kwargs)
        if (ffn := FFNS.config(ffn)) == {'type': 'mlp'}:
            layer = Mlp
        else:
            refuse_without_effect(kwargs, model='KArAt')
            layer = partial(_ffn, ffn)
        mode = kwargs.get('weight_init', '')
        super().__init__(
            **{**kwargs, 'block_fn': KArAtBlock, 'mlp_layer': layer, 'weight_init': 'skip'}
        )
        grid, like = self.patch_embed.grid_size, self.blocks[0].attn.qkv.weight
        with skip_mimetic_init():
            attentions = [
                *build_attentions(
                    *(plan, len(self.blocks), self.embed_dim, self.blocks[0].attn.num_heads),
                    *(grid, self.num_prefix_tokens),
                )
            ]
        for block, attention in zip(self.blocks, attentions, strict=True):
            block.attn, block.grid = attention.to(like), grid
        self.weight_init_mode = 'reset' if mode == 'skip' else mode
        if mode != 'skip':
            self.init_weights(needs_reset=False)

    def init_weights(self, *args, **kwargs) -> None:
        """Draws the weights: those of GR-KAN layers variance-preserving, of attention its own."""
        super(KATTransformer, self).init_weights(*args, **kwargs)
        for block in self.blocks:
            block.attn.reset_parameters()
            if isinstance(block.mlp, GRKAN):
                block.mlp.reset_parameters()

    def no_weight_decay(self) -> set[str]:
        """Returns the names of parameters without weight decay: functions and gates too."""
        functions = ('coefficients', 'base_scale', 'basis_scale', 'gate')
        names = (name for name, _ in self.named_parameters(remove_duplicate=False))
        own = {name for name in names if '.attn.' in name and name.endswith(functions)}
        return super().no_weight_decay() | own

    def _pos_embed(self, x: Tensor) -> Tensor:
        grid = tuple(x.shape[1:3]) if self.dynamic_img_size else self.patch_embed.grid_size
        for block in self.blocks:
            block.grid = grid
        return super()._pos_embed(x)


def _plan(attention: Config, kwargs: dict):
    options = {'type': 'KArAt', **attention} if isinstance(attention, dict) else attention
    if isinstance(options, dict):
        for name in sorted({*options} & {*OPTIONS} - {'shared'}):
            raise ConfigError(
                f'attention.{name} is of windows, which timm models do not have; kat_mm.models.KAT '
                'does'
            )
    plan = plan_attention(options, kwargs.get('depth', 12))
    names = {'qkv_bias': 'qkv_bias', 'proj_drop_rate': 'drop'}  # timm's, and ours
    own = {names[name]: kwargs[name] for name in names if name in kwargs}
    return plan._replace(global_config={**own, **plan.global_config})


def _ffn(
    config: dict, in_features: int, hidden_features: int, drop=0.0, device=None, dtype=None, **_
):
    """Builds a feed-forward layer from what timm's blocks give a layer of theirs."""
    return FFNS.build(config, in_features, hidden_features, drop=drop).to(device, dtype)


def _create(size: str, pretrained: bool, **kwargs) -> KArAtTransformer:
    name = f'karat_{size}_patch16_224'
    if pretrained and not (kwargs.get('pretrained_cfg_overlay') or {}).get('file'):
        raise DataError(
            f'{name}: there are no pretrained weights of KArAt; leave pretrained out, or give a '
            "file of your own: pretrained=True, pretrained_cfg_overlay=dict(file='...')"
        )
    attention = kwargs.pop('attention', 'KArAt')
    options = {'type': attention} if isinstance(attention, str) else attention
    if isinstance(options, dict) and options.get('type', 'KArAt') == 'KArAt':
        attention = {'basis': dict(type='fourier', grid_size=GRID_SIZES[size]), **options}
    return create(
        name, pretrained, KArAtTransformer, **{**sizes(size), **kwargs}, attention=attention
    )


default_cfgs = generate_default_cfgs({f'karat_{size}_patch16_224': config_of() for size in ARCHS})


@register_model
def karat_tiny_patch16_224(pretrained: bool = False, **kwargs) -> KArAtTransformer:
    """ViT-T with KArAt of G = 3; ffn='gr_kan' makes it a KAT-T."""
    return _create('tiny', pretrained, **kwargs)


@register_model
def karat_small_patch16_224(pretrained: bool = False, **kwargs) -> KArAtTransformer:
    """ViT-S with KArAt of G = 3; ffn='gr_kan' makes it a KAT-S."""
    return _create('small', pretrained, **kwargs)


@register_model
def karat_base_patch16_224(pretrained: bool = False, **kwargs) -> KArAtTransformer:
    """ViT-B with KArAt of G = 1; ffn='gr_kan' makes it a KAT-B."""
    return _create('base', pretrained, **kwargs)

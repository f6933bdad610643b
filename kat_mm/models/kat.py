"""The Kolmogorov-Arnold Transformer as a backbone of OpenMMLab models."""

import logging
from collections.abc import Sequence
from functools import partial

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention.softmax import ATTENTIONS
from ..checks import check_int, check_number, check_probability
from ..errors import ConfigError
from ..rational.coefficients import Init
from .arguments import (
    check_image_size,
    check_pyramid,
    choose,
    loads_pretrained,
    patch_grid,
    pretrained_init,
    sorted_indices,
)
from .block import Block
from .ffn.gr_kan import GRKAN
from .ffn.mlp import Mlp
from .patch_embed import PatchEmbed
from .pos_embed import adapt_pos_embed, resize_pos_embed
from .pretrained import load_pretrained
from .pyramid import SimplePyramid

# The sizes of KAT (arXiv 2409.10594, table 1); feedforward_channels is 4 * embed_dims.
ARCHS: dict[str, dict[str, int]] = {
    'tiny': {'embed_dims': 192, 'num_layers': 12, 'num_heads': 3},
    'small': {'embed_dims': 384, 'num_layers': 12, 'num_heads': 6},
    'base': {'embed_dims': 768, 'num_layers': 12, 'num_heads': 12},
}
PYRAMID_STRIDES = (4, 8, 16, 32)


@MODELS.register_module()
class KAT(BaseModule):
    """Computes feature maps of images with a Kolmogorov-Arnold Transformer (arXiv 2409.10594).

    A plain vision transformer whose MLPs are GR-KAN layers. Keys are those of the published KAT
    checkpoints, which are timm's for ViT, so a published state dict without its head loads
    strictly. Position embeddings of another grid are resized on loading, and for each input.

    Args:
        arch: a name in `ARCHS`, or a dict of embed_dims, num_layers, num_heads and, if it is not
            4 * embed_dims, feedforward_channels.
        img_size: size in pixels that position embeddings are made for, one number or (H, W).
            Inputs may have any size.
        patch_size: side of a patch in pixels, and stride of the map.
        out_indices: blocks whose maps are returned; with a pyramid, levels of it. Negative ones
            count from the end, and maps come in ascending order. By default the last block, or
            all levels. Blocks beyond the last one wanted do not run, and are frozen so that
            distributed training finds no unused parameter.
        pyramid: channels of levels at the strides of pyramid_strides, computed from the last map
            by `SimplePyramid`; None for plain maps.
        ffn: 'gr_kan', or 'mlp' for the twin that is a plain ViT.
        act_init: what the activations of the GR-KAN layers start as; see `GRKAN`.
        num_groups: groups of these activations.
        attention: kind of attention, a name in `ATTENTIONS`.
        cls_token: keeps a class token in attention, as the published models do. Maps leave it
            out. Windowed attention has none, so window_size > 0 overrules it; loading then drops
            a checkpoint's class token and logs it.
        reg_tokens: number of registers, further tokens in attention that maps leave out (arXiv
            2309.16588); as the class token, they need global attention.
        window_size: side in tokens of attention windows; 0 for global attention everywhere.
        global_blocks: with windows, the blocks that attend globally. By default the last of each
            quarter: (2, 5, 8, 11) of 12, as in ViTDet (arXiv 2203.16527, section 3).
        rel_pos: adds decomposed relative positions to attention; see `relative_position_bias`.
        drop_path_rate: drop path probability of the last block; it grows linearly from 0.
        with_cp: recomputes blocks in the backward pass, which saves memory (gradient
            checkpointing).
        frozen_stages: -1 freezes nothing, 0 the patch and position embeddings and the class
            token, k also the first k blocks; the number of blocks also the final norm.
        init_cfg: mm's initialisation config, such as
            `dict(type='Pretrained', checkpoint=...)`, with prefix and activation if needed; see
            `load_pretrained`.
        pyramid_strides: strides of the pyramid's levels in pixels, one for each of its numbers of
            channels. Each is patch_size times a power of two. They may repeat, as those of
            dilated backbones do: (4, 8, 8, 8).
        pretrained: the `model.pretrained` of a segmentor, which mmseg passes on to its backbone. A
            path or a URL is short for an init_cfg. The name of a model zoo's weights is ignored
            with a warning, so that a config needs no change but that of its backbone.
        in_channels: channels of the images.
        qkv_bias: learns a bias of queries, keys and values.
        final_norm: applies a layer norm to the last block's map, as the published models do.
            Maps of other blocks are not normed.
        pre_norm: applies a layer norm to the embedded tokens, as CLIP does.
        mimetic: initialises attention by `mimetic_init_`; otherwise as timm's ViT.
        drop_rate: dropout probability of the embedded tokens and behind linear layers.
        layer_scale: initial value of a learned scale of each branch; None for none.

    Returns from forward:
        A tuple of maps [B, C, ceil(H / stride), ceil(W / stride)] of images [B, in_channels,
        H, W]. The stride is patch_size, or that of the pyramid's level.

    Raises:
        ValueError: for an unknown arch, ffn or attention, indices out of range, pyramid_strides
            that do not fit pyramid or that the patch size cannot reach, channels that heads or
            groups do not divide, numbers of the wrong kind or out of range, both pretrained and
            init_cfg; in forward for images that are empty, not [B, in_channels, H, W], or smaller
            than a patch or than windows are; on loading for position embeddings of other channels.
    """

    def __init__(
        self,
        arch: str | dict = 'small',
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        out_indices: int | Sequence[int] | None = None,
        pyramid: Sequence[int] | None = None,
        ffn: str = 'gr_kan',
        act_init: Sequence[Init] = ('identity', 'swish'),
        num_groups: int = 8,
        attention: str = 'softmax',
        cls_token: bool = True,
        window_size: int = 0,
        global_blocks: Sequence[int] | None = None,
        rel_pos: bool = False,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        frozen_stages: int = -1,
        init_cfg: dict | list[dict] | None = None,
        *,
        pyramid_strides: Sequence[int] = PYRAMID_STRIDES,
        pretrained: str | None = None,
        in_channels: int = 3,
        qkv_bias: bool = True,
        final_norm: bool = True,
        reg_tokens: int = 0,
        pre_norm: bool = False,
        mimetic: bool = True,
        drop_rate: float = 0.0,
        layer_scale: float | None = None,
    ):
        init_cfg = pretrained_init(pretrained, init_cfg)
        super().__init__(init_cfg)
        sizes = arch_sizes(arch)
        dims, depth = sizes['embed_dims'], sizes['num_layers']
        self.embed_dims, self.num_layers = dims, depth
        self.in_channels = check_int('in_channels', in_channels)
        self.patch_size = patch_size
        self.grid = patch_grid(img_size, patch_size)
        self.with_cp = with_cp
        self.frozen_stages = check_int('frozen_stages', frozen_stages, -1, depth)
        self.num_cls = int(cls_token and not window_size)
        self.num_prefix = self.num_cls + (0 if window_size else reg_tokens)
        check_pyramid(pyramid, pyramid_strides, PYRAMID_STRIDES)
        check_int('window_size', window_size, 0)
        check_probability('drop_rate', drop_rate)
        check_probability('drop_path_rate', drop_path_rate)
        if layer_scale is not None:
            check_number('layer_scale', layer_scale)
        if global_blocks is None:
            global_blocks = {-(-depth * quarter // 4) - 1 for quarter in (1, 2, 3, 4)}
        global_blocks = sorted_indices('global_blocks', global_blocks, depth, 'blocks')
        self.window_size = window_size if len(global_blocks) < depth else 0

        self.patch_embed = PatchEmbed(in_channels, dims, patch_size)
        if self.num_cls:
            self.cls_token = nn.Parameter(torch.empty(1, 1, dims))
        if self.num_prefix > self.num_cls:
            self.reg_token = nn.Parameter(torch.empty(1, reg_tokens, dims))
        positions = self.num_cls + self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(torch.empty(1, positions, dims))
        self.pos_drop = nn.Dropout(drop_rate)
        self.norm_pre = nn.LayerNorm(dims, eps=1e-6) if pre_norm else nn.Identity()

        # A pretrained model overwrites the attention weights: skip their costly decompositions.
        mimetic = mimetic and not loads_pretrained(init_cfg)
        attention = choose('attention', attention, ATTENTIONS)
        ffns = {
            'gr_kan': partial(GRKAN, num_groups=num_groups, act_init=act_init, add_identity=False),
            'mlp': Mlp,
        }
        ffn = choose('ffn', ffn, ffns)
        self.blocks = nn.ModuleList()
        for i in range(depth):
            window = 0 if i in global_blocks else window_size
            attn = attention(
                dims,
                sizes['num_heads'],
                window_size=window,
                rel_pos_size=((window, window) if window else self.grid) if rel_pos else None,
                qkv_bias=qkv_bias,
                drop=drop_rate,
                mimetic=mimetic,
            )
            mlp = ffn(dims, sizes['feedforward_channels'], ffn_drop=drop_rate)
            drop_path = drop_path_rate * i / max(depth - 1, 1)
            self.blocks.append(Block(dims, attn, mlp, layer_scale, drop_path))
        self.norm = nn.LayerNorm(dims, eps=1e-6) if final_norm else nn.Identity()

        self.pyramid = None
        if pyramid is None:
            self.out_indices = sorted_indices(
                'out_indices', out_indices, depth, 'blocks', (depth - 1,)
            )
            self.out_channels = (dims,) * len(self.out_indices)
            self.out_strides = (patch_size,) * len(self.out_indices)
            self.last_block = self.out_indices[-1]
        else:
            levels = len(pyramid)
            self.out_indices = sorted_indices(
                'out_indices', out_indices, levels, 'pyramid levels', range(levels)
            )
            self.out_channels = tuple(pyramid[i] for i in self.out_indices)
            self.last_block = depth - 1
            self.out_strides = tuple(pyramid_strides[i] for i in self.out_indices)
            self.pyramid = SimplePyramid(dims, self.out_channels, patch_size, self.out_strides)
        self._reset_embeddings()
        self._freeze()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        self._check(images)
        x, grid = self.patch_embed(images)
        pos_embed = resize_pos_embed(self.pos_embed, self.grid, grid, self.num_cls)
        if self.num_cls:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        x = x + pos_embed
        if self.num_prefix > self.num_cls:
            registers = self.reg_token.expand(x.shape[0], -1, -1)
            x = torch.cat([x[:, : self.num_cls], registers, x[:, self.num_cls :]], 1)
        x = self.norm_pre(self.pos_drop(x))
        maps = []
        for i, block in enumerate(self.blocks):
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(block, x, grid, use_reentrant=False)
            else:
                x = block(x, grid)
            if i == self.num_layers - 1:
                x = self.norm(x)
            if i == self.last_block or (self.pyramid is None and i in self.out_indices):
                tokens = x[:, self.num_prefix :].transpose(1, 2)
                maps.append(tokens.unflatten(2, grid).contiguous())
            if i == self.last_block:
                break
        if self.pyramid is not None:
            return self.pyramid(maps, images.shape[-2:])
        return tuple(maps)

    def init_weights(self) -> None:
        """Initialises the weights as `init_cfg` says; Pretrained ones load strictly.

        Raises:
            DataError: for pretrained weights that cannot be read or do not fit.
        """
        init_cfg, loaded = self.init_cfg, self.is_init
        configs = [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []
        self.init_cfg = [config for config in configs if not loads_pretrained(config)]
        super().init_weights()
        self.init_cfg = init_cfg
        for config in configs:
            if loads_pretrained(config) and not loaded:
                options = {key: config.get(key) for key in ('prefix', 'activation')}
                load_pretrained(self, config['checkpoint'], **options)

    def train(self, mode: bool = True) -> 'KAT':
        """Sets training mode, in which what frozen_stages freezes stays in evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Returns the depth of a parameter, and how many depths there are.

        Embeddings have depth 0, block i has i + 1, and everything behind the blocks, in this
        model or outside it, has num_layers + 1. Layer-wise learning rate decay uses it.

        Args:
            param_name: name of the parameter, in the model that this one is a part of.
            prefix: where this one is, such as 'backbone.'.
        """
        depth = self.num_layers + 1
        if param_name.startswith(prefix):
            part, _, rest = param_name[len(prefix) :].partition('.')
            if part in ('cls_token', 'reg_token', 'pos_embed', 'patch_embed', 'norm_pre'):
                depth = 0
            elif part == 'blocks':
                depth = int(rest.partition('.')[0]) + 1
        return depth, self.num_layers + 2

    @torch.no_grad()
    def _reset_embeddings(self) -> None:
        """Draws the embeddings as timm's ViT does; the patch projection keeps torch's default."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in self._tokens():
            nn.init.normal_(token, std=1e-6)

    def _tokens(self) -> list[nn.Parameter]:
        """Returns the class token and the registers, if there are any."""
        return [getattr(self, name) for name in ('cls_token', 'reg_token') if hasattr(self, name)]

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        modules = [
            self.patch_embed,
            self.pos_drop,
            self.norm_pre,
            *self.blocks[: self.frozen_stages],
        ]
        return [*modules, self.norm] if self.frozen_stages == self.num_layers else modules

    def _freeze(self) -> None:
        frozen = [parameter for m in self._frozen_modules() for parameter in m.parameters()]
        if self.frozen_stages >= 0:
            frozen += [self.pos_embed, *self._tokens()]
        if self.last_block < self.num_layers - 1:
            frozen += [*self.blocks[self.last_block + 1 :].parameters(), *self.norm.parameters()]
        for parameter in frozen:
            parameter.requires_grad = False

    def _check(self, images: Tensor) -> None:
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != self.in_channels:
            raise ValueError(
                f'KAT: images must be [B, {self.in_channels}, H, W], got {shape}; '
                'in_channels sets the number of channels'
            )
        if 0 in shape:
            raise ValueError(f'KAT: images are empty, got {shape}')
        check_image_size(*shape[2:], self.patch_size, self.window_size)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Fits the class token and position embeddings of a checkpoint to this model first."""
        cls_key, pos_key = prefix + 'cls_token', prefix + 'pos_embed'
        has_cls_token = cls_key in state_dict
        pos_embed = state_dict.get(pos_key)
        if pos_embed is not None and pos_embed.shape != self.pos_embed.shape:
            shapes = f'{tuple(pos_embed.shape)}, the model has {tuple(self.pos_embed.shape)}'
            if pos_embed.dim() != 3 or pos_embed.shape[::2] != self.pos_embed.shape[::2]:
                raise ConfigError(
                    f'{pos_key}: the checkpoint has {shapes}; their channels must agree: '
                    "choose the checkpoint's arch"
                )
            adapted = adapt_pos_embed(pos_embed, has_cls_token, self.grid, self.num_cls)
            state_dict[pos_key] = adapted
            print_log(f'{pos_key}: adapted, as the checkpoint has {shapes}', 'current')
        if has_cls_token and not self.num_cls:
            state_dict.pop(cls_key)
            print_log(
                f'{cls_key}: dropped, as this model has no class token', 'current', logging.WARNING
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def arch_sizes(arch: str | dict) -> dict[str, int]:
    """Returns the sizes of an arch, all four of them."""
    required = ('embed_dims', 'num_layers', 'num_heads')
    if not isinstance(arch, dict):
        if not isinstance(arch, str) or arch not in ARCHS:
            raise ConfigError(
                f'unknown arch {arch!r}; known: {", ".join(ARCHS)}, or a dict of '
                f'{", ".join(required)}'
            )
        arch = ARCHS[arch]
    unknown = set(arch) - {*required, 'feedforward_channels'}
    missing = [key for key in required if key not in arch]
    if missing or unknown:
        raise ConfigError(
            f'arch {dict(arch)} must have {", ".join(required)} and may have '
            f'feedforward_channels; missing: {missing}, unknown: {sorted(unknown)}'
        )
    sizes = {key: check_int(f'arch.{key}', value) for key, value in arch.items()}
    return {'feedforward_channels': 4 * sizes['embed_dims'], **sizes}

"""The Kolmogorov-Arnold Transformer as a network that gives feature maps."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention.plan import build_attentions, plan_attention
from ..attention.windows import windows_of
from ..checks import check_bool, check_indices, check_int, check_probability
from ..errors import ConfigError
from ..registry import PYRAMIDS, Config
from .arguments import (
    check_image_size,
    patch_grid,
    read_patch,
    read_pyramid,
    refuse_moved_arguments,
)
from .block import Block, layer_norm
from .ffn import FFNS
from .patch_embed import PatchEmbed
from .pos_embed import adapt_pos_embed, resize_pos_embed
from .pretrained import adapt_weights
from .sizes import read_arch

_logger = logging.getLogger(__name__)


class KAT(nn.Module):
    """Computes feature maps of images with a Kolmogorov-Arnold Transformer (arXiv 2409.10594).

    A plain vision transformer whose MLPs are GR-KAN layers. Keys are those of the published KAT
    checkpoints, which are timm's for ViT, so a published state dict without its head loads
    strictly. Position embeddings of another grid are resized on loading, and for each input.

    Args:
        arch: a name in `ARCHS`, or a dict of `Arch`'s attributes: embed_dims, num_layers,
            num_heads, and if need be feedforward_channels, cls_token, reg_tokens, pre_norm,
            final_norm, layer_scale. dict(type='small', reg_tokens=4) is 'small' with registers.
            Feature maps leave the class token and registers out. Windowed attention has no place
            for them: then there are none, and loading drops those of a checkpoint with a warning.
        img_size: size in pixels that position embeddings are made for, one number or (H, W).
            Inputs may have any size.
        patch: side of a patch in pixels, the stride of the map; or dict(size=16, in_channels=3,
            drop=0.0) with the channels of the images and the dropout of the embedded tokens.
        attention: a name in `ATTENTIONS`, or a dict of its type and arguments. The dict may also
            have window_size, the side in tokens of attention windows (0, the default, for none);
            global_blocks, the blocks that attend globally, by default the last of each quarter,
            (2, 5, 8, 11) of 12, as in ViTDet (arXiv 2203.16527, section 3); global_attention,
            theirs where it is another one; and shared, True or the names of parts that all
            windowed blocks share, and all global ones.
        ffn: a name in `FFNS`, or a dict of its type and arguments, such as
            dict(type='gr_kan', activation=dict(type='rational', num_groups=8)). 'mlp' makes the
            twin that is a plain ViT.
        pyramid: channels of levels at strides 4, 8, 16 and 32, computed from the last map; or
            dict(type='simple', channels=..., strides=...) with strides of your own, each a
            patch's size times a power of two. Strides may repeat, as those of dilated backbones
            do: (4, 8, 8, 8). None for plain maps at the stride of the patches.
        out_indices: blocks whose maps are returned; with a pyramid, levels of it. Negative ones
            count from the end, and maps come in ascending order. By default the last block, or
            all levels. Blocks beyond the last one wanted do not run, and are frozen so that
            distributed training finds no unused parameter.
        drop_path_rate: drop path probability of the last block; it grows linearly from 0.
        with_cp: recomputes blocks in the backward pass, which saves memory (gradient
            checkpointing).
        frozen_stages: -1 freezes nothing, 0 the embeddings, k also the first k blocks; the number
            of blocks also the final norm.

    Returns from forward:
        A tuple of maps [B, C, ceil(H / stride), ceil(W / stride)] of images [B, in_channels,
        H, W]; attributes `out_channels` and `out_strides` tell those.

    Raises:
        ConfigError: for values of the wrong kind or range, and for arguments of earlier versions,
            with their new place; in forward for images that are empty, not [B, in_channels, H,
            W], or smaller than a patch or than windows are; on loading for position embeddings
            of other channels.
    """

    fresh = ('pyramid',)  # the parts that no checkpoint of a backbone has

    def __init__(
        self,
        arch: str | dict = 'small',
        img_size: int | Sequence[int] = 224,
        patch: int | dict = 16,
        attention: Config = 'softmax',
        ffn: Config = 'gr_kan',
        pyramid: Sequence[int] | dict | None = None,
        out_indices: int | Sequence[int] | None = None,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        frozen_stages: int = -1,
        **moved,
    ):
        super().__init__()
        refuse_moved_arguments(moved)
        self.arch = arch = read_arch(arch)
        dims, depth = arch.embed_dims, arch.num_layers
        patch = read_patch(patch)
        plan = plan_attention(attention, depth)
        self.grid = patch_grid(img_size, patch.size)
        self.with_cp = check_bool('with_cp', with_cp)
        self.frozen_stages = check_int('frozen_stages', frozen_stages, -1, depth)
        self.window_size = plan.window_size

        self.patch_embed = PatchEmbed(patch.in_channels, dims, patch.size)
        self.cls_token = self.reg_token = None
        if arch.cls_token and not plan.window_size:
            self.cls_token = nn.Parameter(torch.empty(1, 1, dims))
        if arch.reg_tokens and not plan.window_size:
            self.reg_token = nn.Parameter(torch.empty(1, arch.reg_tokens, dims))
        positions = self.num_cls + self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(torch.empty(1, positions, dims))
        self.pos_drop = nn.Dropout(patch.drop)
        self.norm_pre = layer_norm(dims) if arch.pre_norm else nn.Identity()

        rate = check_probability('drop_path_rate', drop_path_rate)
        attentions = build_attentions(plan, depth, dims, arch.num_heads, self.grid, self.num_prefix)
        self.blocks = nn.ModuleList(
            Block(
                dims,
                attn,
                FFNS.build(ffn, dims, arch.feedforward_channels),
                arch.layer_scale,
                rate * i / max(depth - 1, 1),
            )
            for i, attn in enumerate(attentions)
        )
        self.norm = layer_norm(dims) if arch.final_norm else nn.Identity()

        self.pyramid = None
        if pyramid is None:
            self.out_indices = check_indices('out_indices', out_indices, depth, 'blocks', depth - 1)
            self.out_channels = (dims,) * len(self.out_indices)
            self.out_strides = (patch.size,) * len(self.out_indices)
            self.last_block = self.out_indices[-1]
        else:
            config, channels, strides = read_pyramid(pyramid)
            levels = range(len(channels))
            self.out_indices = check_indices(
                'out_indices', out_indices, len(channels), 'pyramid levels', levels
            )
            self.out_channels = tuple(channels[i] for i in self.out_indices)
            self.out_strides = tuple(strides[i] for i in self.out_indices)
            self.last_block = depth - 1
            self.pyramid = PYRAMIDS.build(
                config, dims, self.out_channels, patch.size, self.out_strides
            )
        self._reset_embeddings()
        self._freeze()

    @property
    def embed_dims(self) -> int:
        return self.arch.embed_dims

    @property
    def num_layers(self) -> int:
        return self.arch.num_layers

    @property
    def num_cls(self) -> int:
        """1 with a class token, otherwise 0."""
        return int(self.cls_token is not None)

    @property
    def num_prefix(self) -> int:
        """Number of tokens in front of those of the map."""
        return self.num_cls + (0 if self.reg_token is None else self.reg_token.shape[1])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        self._check(images)
        x, grid = self.embed(images)
        # Blocks see tokens in the order of the windows, if there are any.
        windows = windows_of(grid, self.window_size)
        arguments = (grid,)
        if windows is not None:
            x, arguments = windows.order(x), (grid, windows)
        maps = []
        for i, block in enumerate(self.blocks):
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(block, x, *arguments, use_reentrant=False)
            else:
                x = block(x, *arguments)
            if i == self.num_layers - 1:
                x = self.norm(x)
            if i == self.last_block or (self.pyramid is None and i in self.out_indices):
                tokens = x[:, self.num_prefix :] if windows is None else windows.restore(x)
                maps.append(tokens.transpose(1, 2).unflatten(2, grid).contiguous())
            if i == self.last_block:
                break
        if self.pyramid is not None:
            return self.pyramid(maps, images.shape[-2:])
        return tuple(maps)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Computes the tokens [B, prefix + h * w, C] that the first block takes, and (h, w)."""
        x, grid = self.patch_embed(images)
        pos_embed = resize_pos_embed(self.pos_embed, self.grid, grid, self.num_cls)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        x = x + pos_embed
        if self.reg_token is not None:
            registers = self.reg_token.expand(x.shape[0], -1, -1)
            x = torch.cat([x[:, : self.num_cls], registers, x[:, self.num_cls :]], 1)
        return self.norm_pre(self.pos_drop(x)), grid

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

    def adapt_checkpoint(
        self, content: object, source: str = 'the checkpoint', activation: str | None = None
    ) -> dict[str, Tensor]:
        """Returns weights of a KAT or a ViT with the keys and shapes of this network.

        See `kat_mm.models.pretrained.adapt_weights`.
        """
        return adapt_weights(self, content, source, activation)

    def check_image_size(self, height: int, width: int) -> None:
        """Checks that images of a size in pixels have a patch, and a map as large as a window.

        Raises:
            ConfigError: for images that are smaller.
        """
        check_image_size(height, width, self.patch_embed.patch_size, self.window_size)

    @torch.no_grad()
    def _reset_embeddings(self) -> None:
        """Draws the embeddings as timm's ViT does; the patch projection keeps torch's default."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in self._tokens():
            nn.init.normal_(token, std=1e-6)

    def _tokens(self) -> list[nn.Parameter]:
        """Returns the class token and the registers, if there are any."""
        return [token for token in (self.cls_token, self.reg_token) if token is not None]

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
            kept = set(self.blocks[: self.last_block + 1].parameters())  # blocks may share some
            unused = [*self.blocks[self.last_block + 1 :].parameters(), *self.norm.parameters()]
            frozen += [parameter for parameter in unused if parameter not in kept]
        for parameter in frozen:
            parameter.requires_grad = False

    def _check(self, images: Tensor) -> None:
        shape, channels = tuple(images.shape), self.patch_embed.proj.in_channels
        if len(shape) != 4 or shape[1] != channels:
            raise ConfigError(
                f'KAT: images must be [B, {channels}, H, W], got {shape}; '
                'patch=dict(in_channels=...) sets the number of channels'
            )
        if 0 in shape:
            raise ConfigError(f'KAT: images are empty, got {shape}')
        self.check_image_size(*shape[2:])

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
            _logger.info('%s: adapted, as the checkpoint has %s', pos_key, shapes)
        if has_cls_token and self.cls_token is None:
            state_dict.pop(cls_key)
            _logger.warning('%s: dropped, as this model has no class token', cls_key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

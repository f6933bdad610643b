"""The sizes of KAT, and what `arch` of a network may say."""

from dataclasses import dataclass, fields

from ..checks import check_bool, check_int, check_number
from ..errors import ConfigError

# KAT's (arXiv 2409.10594, table 1). A new size is a new row.
ARCHS: dict[str, dict[str, int]] = {
    'tiny': {'embed_dims': 192, 'num_layers': 12, 'num_heads': 3},
    'small': {'embed_dims': 384, 'num_layers': 12, 'num_heads': 6},
    'base': {'embed_dims': 768, 'num_layers': 12, 'num_heads': 12},
}
REQUIRED = ('embed_dims', 'num_layers', 'num_heads')


@dataclass(frozen=True)
class Arch:
    """What a network is, whatever it is used for: weights fit another one of the same Arch.

    Attributes:
        embed_dims: channels of the tokens.
        num_layers: number of blocks.
        num_heads: heads of attention.
        feedforward_channels: hidden channels of the feed-forward layers; 0 for 4 * embed_dims.
        cls_token: a class token takes part in attention, as in the published models.
        reg_tokens: number of registers, further such tokens (arXiv 2309.16588).
        pre_norm: a layer norm of the embedded tokens, as CLIP has.
        final_norm: a layer norm of the last block's tokens, as the published models have.
        layer_scale: initial value of a learned scale of each branch; None for none.
    """

    embed_dims: int
    num_layers: int
    num_heads: int
    feedforward_channels: int = 0
    cls_token: bool = True
    reg_tokens: int = 0
    pre_norm: bool = False
    final_norm: bool = True
    layer_scale: float | None = None

    def __post_init__(self):
        for name in REQUIRED:
            check_int(f'arch.{name}', getattr(self, name))
        check_int('arch.feedforward_channels', self.feedforward_channels, 0)
        check_int('arch.reg_tokens', self.reg_tokens, 0)
        for name in ('cls_token', 'pre_norm', 'final_norm'):
            check_bool(f'arch.{name}', getattr(self, name))
        if self.layer_scale is not None:
            check_number('arch.layer_scale', self.layer_scale)
        if not self.feedforward_channels:
            object.__setattr__(self, 'feedforward_channels', 4 * self.embed_dims)


def read_arch(arch: str | dict) -> Arch:
    """Returns what `arch` says: a name in `ARCHS`, or a dict of the attributes of `Arch`.

    In a dict, `type` names the row of `ARCHS` that it starts from.

    Raises:
        ConfigError: for an unknown name or attribute, a missing one, and values out of range.
    """
    options = dict(arch) if isinstance(arch, dict) else {'type': arch}
    if 'type' in options:
        name = options.pop('type')
        if not isinstance(name, str) or name not in ARCHS:
            raise ConfigError(
                f'unknown arch {name!r}; known: {", ".join(ARCHS)}, or a dict of '
                f'{", ".join(REQUIRED)}'
            )
        options = {**ARCHS[name], **options}
    unknown = sorted(set(options) - {field.name for field in fields(Arch)})
    missing = [name for name in REQUIRED if name not in options]
    if missing or unknown:
        optional = [field.name for field in fields(Arch) if field.name not in REQUIRED]
        raise ConfigError(
            f'arch {arch} must have {", ".join(REQUIRED)}, or type, one of {", ".join(ARCHS)}, and '
            f'may have {", ".join(optional)}; missing: {missing}, unknown: {unknown}'
        )
    return Arch(**options)

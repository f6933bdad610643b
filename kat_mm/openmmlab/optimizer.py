"""Parameter groups: layer-wise learning rate decay, and what takes no weight decay."""

import logging
import math

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..checks import check_number
from ..errors import ConfigError
from ..models.protocol import Backbone
from ..norms import NORMS

# Parameters that hold positions or a token, by the names that backbones of OpenMMLab give them.
POSITIONS = (
    'cls_token',
    'reg_token',
    'pos_embed',
    'absolute_pos_embed',
    'relative_position_bias_table',
    'rel_pos_h',
    'rel_pos_w',
)
# Those of the learnable functions of Kolmogorov-Arnold attention.
FUNCTIONS = ('coefficients', 'base_scale', 'basis_scale')
# Options of mmdet's and mmseg's constructors for layer decay, and what becomes of them here.
FOREIGN_OPTIONS = {
    'decay_rate': 'write layer_decay_rate instead of decay_rate',
    'decay_type': 'remove decay_type, as rates decay by layer',
    'num_layers': 'remove num_layers, as the backbone tells its depth',
}
OPTIONS = (
    'layer_decay_rate',
    'custom_keys',
    'norm_decay_mult',
    'bias_decay_mult',
    'bias_lr_mult',
    'bypass_duplicate',
)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class KATOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Builds an optimizer whose learning rate decays from a backbone's last block to the first.

    The learning rate of block i of n is multiplied by rate^(n - i), that of the embeddings by
    rate^(n + 1); all else, such as necks and heads, keeps the base rate (BEiT, arXiv 2106.08254,
    appendix; ViTDet, arXiv 2203.16527, appendix). KAT, or any backbone with the members of
    `kat_mm.models.protocol.Backbone`, is found wherever it is in the model; without one, every
    rate is the base rate. Where blocks share a parameter, the last of them counts.

    Weight decay leaves out the coefficients of learnable functions, norms, biases and other
    vectors, position embeddings and class tokens. Parameters that need no gradient are left out
    altogether.

    Use it as `optim_wrapper=dict(constructor='KATOptimWrapperConstructor', optimizer=...,
    paramwise_cfg=dict(layer_decay_rate=0.8))`.

    Args:
        optim_wrapper_cfg: config of the optimizer wrapper, with its `optimizer`.
        paramwise_cfg: dict of, all optional,
            layer_decay_rate: rate in (0, 1]; 1, the default, decays nothing.
            custom_keys: as in mmengine, {part of a name: dict(lr_mult=..., decay_mult=...)}, the
                longest part that fits a parameter's name. Here they multiply what the rules
                above give, so that `backbone` with decay_mult=1 still leaves norms undecayed.
                Keys that name the backbone leave its pyramid (what it lists as `fresh`) alone,
                which no checkpoint of the backbone has and which thus learns at the rate of a
                head; `backbone.pyramid` reaches it.
            norm_decay_mult, bias_decay_mult: multiples of the weight decay of norms and of
                biases; 0 by default.
            bias_lr_mult: multiple of the learning rate of biases outside norms.
            bypass_duplicate: accepted and ignored, as a shared parameter is always taken once.

    Raises:
        ValueError: for an unknown option, a rate outside (0, 1], or an optimizer without lr
            where one is multiplied.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        options = dict(paramwise_cfg or {})
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            ways_out = [FOREIGN_OPTIONS[name] for name in unknown if name in FOREIGN_OPTIONS]
            raise ConfigError(
                f'unknown paramwise_cfg option {", ".join(unknown)}; known: '
                + '; '.join([', '.join(OPTIONS), *ways_out])
            )
        # Not empty, or else the base class would build a single group.
        rate = options.setdefault('layer_decay_rate', 1.0)
        if not 0 < check_number('layer_decay_rate', rate) <= 1:
            raise ConfigError(f'layer_decay_rate must lie in (0, 1], got {rate}')
        for name in ('norm_decay_mult', 'bias_decay_mult', 'bias_lr_mult'):
            check_number(name, options.get(name, 0))
        custom = options.get('custom_keys', {})
        if not isinstance(custom, dict):
            raise ConfigError(f'custom_keys={custom!r} must be a dict of parts of names')
        for key, config in custom.items():
            if not isinstance(config, dict) or set(config) - {'lr_mult', 'decay_mult'}:
                raise ConfigError(
                    f'custom_keys[{key!r}]={config!r} must be a dict, of lr_mult and decay_mult'
                )
            for name, value in config.items():
                check_number(f'custom_keys[{key!r}].{name}', value)
        super().__init__(optim_wrapper_cfg, options)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Returns the wrapped optimizer.

        Its groups are plain dicts, not mmengine's: torch.compile knows no others.
        """
        wrapper = super().__call__(model)
        wrapper.optimizer.param_groups[:] = map(dict, wrapper.optimizer.param_groups)
        return wrapper

    def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
        """Appends the parameter groups of a whole model, one for each pair of multiples."""
        # mmpretrain's backbones tell depths too, if nothing else of the protocol.
        backbones = {n: m for n, m in module.named_modules() if hasattr(m, 'get_layer_depth')}
        if not backbones and self.paramwise_cfg['layer_decay_rate'] != 1:
            print_log(
                'layer_decay_rate has no effect: the model has no backbone that tells the depth of '
                'its parameters, as KAT does',
                'current',
                logging.WARNING,
            )
        self._fresh = {
            parameter: name
            for backbone in backbones.values()
            for name in getattr(backbone, 'fresh', ())
            if isinstance(part := getattr(backbone, name), nn.Module)
            for parameter in part.parameters()
        }
        groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
        for parameter, names in _names(module).items():
            if parameter.requires_grad:
                # One that several blocks share learns as in the last of them.
                lr_mult = max(self._layer_scale(name, backbones) for name, _ in names)
                name, owner = names[0]
                mults = self._adjust(name, owner, parameter, lr_mult)
                groups.setdefault(mults, []).append((name, parameter))
        for mults, named in sorted(groups.items()):
            params.append(self._group(*mults, named))

    def _layer_scale(self, name: str, backbones: dict[str, Backbone]) -> float:
        for prefix, backbone in backbones.items():
            prefix = prefix and prefix + '.'
            if name.startswith(prefix):
                depth, depths = backbone.get_layer_depth(name, prefix)
                return self.paramwise_cfg['layer_decay_rate'] ** (depths - 1 - depth)
        return 1.0

    def _adjust(
        self, name: str, owner: nn.Module, parameter: nn.Parameter, lr_mult: float
    ) -> tuple[float, float]:
        """Returns the multiples of learning rate and weight decay of one parameter."""
        options = self.paramwise_cfg
        last = name.rpartition('.')[2]
        decay_mult = 1.0
        if isinstance(owner, NORMS):
            decay_mult = options.get('norm_decay_mult', 0.0)
        elif last == 'bias':
            decay_mult = options.get('bias_decay_mult', 0.0)
            lr_mult *= options.get('bias_lr_mult', 1.0)
        elif (
            last in (*POSITIONS, *FUNCTIONS) or parameter.ndim <= 1
        ):  # norms, rational coefficients
            decay_mult = 0.0
        custom = options.get('custom_keys', {})
        part = self._fresh.get(parameter)
        inside = name.partition(f'{part}.')[2]
        for key in sorted(sorted(custom), key=len, reverse=True):
            # A key that fits only the path to a fresh part means the backbone, not that part.
            if key in (name if part is None or part in key else inside):
                lr_mult *= custom[key].get('lr_mult', 1.0)
                decay_mult *= custom[key].get('decay_mult', 1.0)
                break
        return lr_mult, decay_mult

    def _group(
        self, lr_mult: float, decay_mult: float, named: list[tuple[str, nn.Parameter]]
    ) -> dict:
        """Returns the group of parameters that share both multiples, and logs it in one line."""
        group = {'params': [parameter for _, parameter in named]}
        text = []
        if self.base_lr is not None:
            group['lr'] = self.base_lr * lr_mult
            text.append(f'lr {group["lr"]:.3g} (x {lr_mult:.3g})')
        elif lr_mult != 1:
            raise ConfigError(
                f'{named[0][0]} would have its learning rate multiplied by {lr_mult:.3g}, but the '
                'optimizer has no lr; set it'
            )
        if self.base_wd is not None:
            group['weight_decay'] = self.base_wd * decay_mult
            text.append(f'weight decay {group["weight_decay"]:.3g}')
        group['group_name'] = ', '.join(text)
        count = sum(math.prod(parameter.shape) for parameter in group['params'])
        print_log(
            f'parameter group: {group["group_name"]}: {len(named)} tensors, {count:,} parameters, '
            f'{named[0][0]} to {named[-1][0]}',
            'current',
        )
        return group


def _names(module: nn.Module) -> dict[nn.Parameter, list[tuple[str, nn.Module]]]:
    """Returns each parameter with all of its names, as (name, module that it belongs to)."""
    names: dict[nn.Parameter, list[tuple[str, nn.Module]]] = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        for name, parameter in owner.named_parameters(path, recurse=False):
            names.setdefault(parameter, []).append((name, owner))
    return names

"""KAT as a backbone of OpenMMLab's models."""

import copy
import logging
from collections.abc import Sequence
from contextlib import nullcontext

from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS

from .. import models
from ..attention.mimetic import skip_mimetic_init
from ..errors import ConfigError
from ..models.pretrained import load_pretrained
from ..registry import Config

InitConfig = dict | list[dict] | None
# Weights of other backbones, by the names that configs of OpenMMLab call them: KAT's are in none.
MODEL_ZOOS = (
    'open-mmlab://',
    'openmmlab://',
    'mmcls://',
    'mmpretrain://',
    'modelzoo://',
    'torchvision://',
    'https://download.openmmlab.com/',
    'https://download.pytorch.org/',
)


@MODELS.register_module()
class KAT(models.KAT, BaseModule):
    """`kat_mm.models.KAT` with OpenMMLab's ways to start from weights.

    Args:
        arch, img_size, patch, attention, ffn, pyramid, out_indices, drop_path_rate, with_cp,
            frozen_stages: as of `kat_mm.models.KAT`, where their meaning is told.
        init_cfg: mm's initialisation config, such as
            `dict(type='Pretrained', checkpoint=...)`, with prefix and activation if needed; see
            `kat_mm.models.load_pretrained`.
        pretrained: the `model.pretrained` of a segmentor, which mmseg passes on to its backbone. A
            path or a URL is short for an init_cfg. The name of a model zoo's weights is ignored
            with a warning, so that a config needs no change but that of its backbone.

    Raises:
        ConfigError: as the network, and for both pretrained and init_cfg.
    """

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
        init_cfg: InitConfig = None,
        pretrained: str | None = None,
        **moved,
    ):
        init_cfg = pretrained_init(pretrained, init_cfg)
        with skip_mimetic_init() if _load_weights(init_cfg) else nullcontext():
            super().__init__(
                arch,
                img_size,
                patch,
                attention,
                ffn,
                pyramid,
                out_indices,
                drop_path_rate,
                with_cp,
                frozen_stages,
                **moved,
            )
        self.init_cfg = copy.deepcopy(init_cfg)

    def init_weights(self) -> None:
        """Initialises the weights as `init_cfg` says; Pretrained ones load strictly.

        Raises:
            DataError: for pretrained weights that cannot be read or do not fit.
        """
        init_cfg, loaded = self.init_cfg, self.is_init
        configs = [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []
        self.init_cfg = [config for config in configs if not _load_weights(config)]
        super().init_weights()
        self.init_cfg = init_cfg
        for config in configs:
            if _load_weights(config) and not loaded:
                options = {key: config.get(key) for key in ('prefix', 'activation')}
                load_pretrained(self, config['checkpoint'], **options)


def _load_weights(init_cfg: InitConfig) -> bool:
    """Tells whether init_weights will load a checkpoint."""
    configs = [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []
    return any(config.get('type') in ('Pretrained', 'PretrainedInit') for config in configs)


def pretrained_init(pretrained: str | None, init_cfg: InitConfig) -> InitConfig:
    """Returns the init_cfg that stands for both arguments; see `KAT`."""
    if pretrained is None:
        return init_cfg
    if not isinstance(pretrained, str):
        raise ConfigError(f'pretrained must be a path, a URL or None, got {pretrained!r}')
    if pretrained.startswith(MODEL_ZOOS):
        print_log(
            f'pretrained={pretrained!r} is ignored: it names weights of another backbone. Weights '
            "of KAT are loaded by backbone.init_cfg=dict(type='Pretrained', checkpoint=...)",
            'current',
            logging.WARNING,
        )
        return init_cfg
    if init_cfg is not None:
        raise ConfigError(
            f'both pretrained={pretrained!r} and init_cfg={init_cfg} are given: leave one out'
        )
    return {'type': 'Pretrained', 'checkpoint': pretrained}

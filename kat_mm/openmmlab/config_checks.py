"""Checks of a config before work starts: its data, its label maps, its checkpoints."""

import re
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose

from ..errors import DataError
from ..weights.layout import weights_of
from ..weights.reading import is_hub_id, read_checkpoint
from .configs import is_segmentation, nested
from .loading import LoadCheckedImage, LoadCheckedLabelMap

DEMO = 'or try the embedded data set: make demo'
ADE20K = 'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip'


def check_data(config: Config, *splits: str) -> None:
    """Checks that the files and folders of the data sets of some splits exist.

    Of segmentation data sets it also loads the first label maps.

    Raises:
        DataError: names the first that is missing or does not fit, and ways out.
    """
    for split in splits:
        for dataset in nested(config.get(f'{split}_dataloader'), 'data_root'):
            root = str(dataset['data_root'] or '')
            parts = [dataset.get('ann_file'), *dict(dataset.get('data_prefix') or {}).values()]
            for part in ['', *(p for p in parts if isinstance(p, str))]:
                path = Path(root, part)
                if root and _is_local(root) and _is_local(part) and not path.exists():
                    raise DataError(_missing_data(root, path))
            if root and _is_local(root) and is_segmentation(config):
                _check_label_maps(dataset)
        for metric in nested(config.get(f'{split}_evaluator'), 'ann_file'):
            path = metric['ann_file']
            if path and _is_local(path) and not Path(path).exists():
                raise DataError(f'{split}_evaluator.ann_file: {path} does not exist')


def _missing_data(root: str, path: Path) -> str:
    missing = f'data set not found in {root!r}: {path} does not exist'
    name = Path(root).name
    if name == 'digit_scenes':
        return f'{missing}. Make it with: python tools/make_digit_scenes.py {root}'
    if name == 'ADEChallengeData2016':
        return (
            f'{missing}. Unpack {ADE20K} in {Path(root).parent} (images and annotations, each of '
            f'training and validation), {DEMO}-seg'
        )
    return f'{missing}. Put or link the data set there, {DEMO}'


def _check_label_maps(dataset: ConfigDict, count: int = 20) -> None:
    """Loads the first images and label maps of a data set, if it is one of mmseg's."""
    from mmseg.datasets import BaseSegDataset
    from mmseg.registry import DATASETS

    kind = dataset['type']
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    if kind is None or not issubclass(kind, BaseSegDataset):
        return
    built = DATASETS.build({**dataset, 'pipeline': [], 'lazy_init': True})
    samples = built.load_data_list()[:count]
    if not samples:
        raise DataError(
            f'{built.data_prefix["img_path"]} holds no image *{built.img_suffix}. Put the images '
            'there, or set img_suffix of the data set'
        )
    if classes := built.metainfo.get('classes'):
        load = Compose([LoadCheckedImage(), LoadCheckedLabelMap(len(classes))])
        for sample in samples:
            load(sample)


def check_checkpoint(path: str, resume: bool = False) -> None:
    """Checks that a local checkpoint can be read, and with `resume` that training can go on.

    Raises:
        DataError: names the file, what is wrong with it and what to do.
    """
    if not _is_local(path):
        return
    content = read_checkpoint(path)
    weights_of(content, f'checkpoint {path}')
    if resume and (missing := {'meta', 'message_hub', 'optimizer'} - set(content)):
        raise DataError(
            f'checkpoint {path} cannot be resumed: it has no {", ".join(sorted(missing))}. To '
            f'start from its weights: --cfg-options load_from={path}'
        )


def check_pretrained(config: Config) -> None:
    """Checks the local weights that the model's init_cfg or `pretrained` names.

    Raises:
        DataError: names the file and ways out.
    """
    names = {'checkpoint': 'model.backbone.init_cfg.checkpoint', 'pretrained': 'model.pretrained'}
    for key, name in names.items():
        for settings in nested(config.get('model'), key):
            path = settings[key]
            if not isinstance(path, str) or not _is_local(path):
                continue
            if is_hub_id(path):  # downloaded now, so that training starts with it or not at all
                read_checkpoint(path)
                continue
            if not Path(path).exists():
                raise DataError(
                    f'pretrained weights {path} not found. Put the file there, set {name}, or '
                    f'train from scratch with --cfg-options {name.removesuffix(".checkpoint")}=None'
                )
            check_checkpoint(path)


def _is_local(path: str) -> bool:
    return '://' not in path and not re.match(r'\w+:', path)

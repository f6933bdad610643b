"""Checks of a config before work starts: its data, its label maps, its checkpoints."""

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset, Compose
from mmengine.registry import DATASETS

from ..errors import ConfigError, DataError, one_line
from ..weights.layout import weights_of
from ..weights.reading import hub_hint, is_hub_id, read_checkpoint
from .batches.loading import LoadCheckedImage, LoadCheckedLabelMap
from .coco_checks import check_dataset, check_metric, read_coco
from .configs import is_segmentation, nested

DEMO = 'or try the embedded data set: make demo'
ADE20K = 'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip'


def check_data(config: Config, *splits: str) -> None:
    """Checks the data sets of some splits, before work starts.

    Files and folders must exist and all splits have the same classes. Of COCO's annotation files
    all entries are checked, of data sets for segmentation the first label maps.

    Raises:
        DataError: names the first that is missing or does not fit, and ways out.
        ConfigError: if the classes differ.
    """
    read = functools.cache(read_coco)  # a file that serves twice is read once
    first = None  # data set, with its classes
    for split in splits:
        for dataset in nested(config.get(f'{split}_dataloader'), 'data_root'):
            root = str(dataset['data_root'] or '')
            parts = [dataset.get('ann_file'), *dict(dataset.get('data_prefix') or {}).values()]
            for part in ['', *(p for p in parts if isinstance(p, str))]:
                path = Path(root, part)
                if root and is_local(root) and is_local(part) and not path.exists():
                    raise DataError(_missing_data(root, path))
        metrics = list(nested(config.get(f'{split}_evaluator'), 'ann_file'))
        for metric in metrics:
            path = metric['ann_file']
            if path and is_local(path) and not Path(path).exists():
                raise DataError(f'{split}_evaluator.ann_file: {path} does not exist')
        ids = set()
        for name, settings, dataset in built_datasets(config, split):
            classes = dataset.metainfo.get('classes')
            if classes is None:
                continue
            if isinstance(classes, str) or len(set(classes)) < len(classes):
                raise ConfigError(
                    f'{name}: classes={classes!r} must be different names, in a tuple or list: one '
                    'alone is written (name,)'
                )
            first = first or (name, classes)
            other, others = first
            if list(others) != list(classes):
                raise ConfigError(
                    f'the classes of {name} ({", ".join(classes)}) are not those of {other} '
                    f'({", ".join(others)}), or in another order: give all data sets the same '
                    'metainfo'
                )
            if not is_local(dataset.data_root or '') or settings.get('backend_args'):
                continue
            if is_segmentation(config):
                _check_label_maps(name, settings, dataset)
            elif _is_coco(dataset) and is_local(dataset.ann_file):
                file = read(dataset.ann_file)
                check_dataset(file, settings, dataset)
                ids |= file.images.keys()
        for metric in metrics if first else ():
            if metric['ann_file'] and is_local(metric['ann_file']) and _is_coco_metric(metric):
                file = read(metric['ann_file'])
                check_metric(file, metric, first[1])
                if missing := ids - file.images.keys():
                    raise DataError(
                        f'{split}_evaluator.ann_file: {file.path} lacks {len(missing)} of the '
                        f'images of {split}_dataloader, first that with id {min(missing, key=str)}'
                    )


def built_datasets(config: Config, split: str) -> Iterator[tuple[str, ConfigDict, BaseDataset]]:
    """Yields the data sets of a split that are mmengine's, those inside wrappers too.

    Yields:
        What messages call it, its settings, and the data set with neither data nor pipeline.

    Raises:
        ConfigError: for settings of which no data set can be made.
    """
    name = f'{split}_dataloader'
    with DATASETS.switch_scope_and_registry(config.get('default_scope')) as registry:
        for settings in nested(config.get(name), 'pipeline'):
            kind = settings.get('type')
            kind = registry.get(kind) if isinstance(kind, str) else kind
            if not (isinstance(kind, type) and issubclass(kind, BaseDataset)):
                continue
            try:
                dataset = registry.build({**settings, 'pipeline': [], 'lazy_init': True})
            except Exception as error:  # whatever the data set makes of its arguments
                raise ConfigError(f'{name}: {kind.__name__}: {one_line(error)}') from error
            yield f'{name} ({kind.__name__})', settings, dataset


def classes_of(config: Config, split: str) -> tuple[str, ...] | None:
    """Returns the classes that the heads must know, None where they are not those of the data."""
    for _, settings, dataset in built_datasets(config, split):
        if not settings.get('return_classes'):  # as texts to the model
            return dataset.metainfo.get('classes')
    return None


def _is_coco(dataset: BaseDataset) -> bool:
    """Tells whether a data set reads COCO's format just as mmdet's CocoDataset does."""
    from mmdet.datasets import CocoDataset

    methods = ('load_data_list', 'parse_data_info', 'filter_data')
    return isinstance(dataset, CocoDataset) and all(
        getattr(type(dataset), name) is getattr(CocoDataset, name) for name in methods
    )


def _is_coco_metric(metric: ConfigDict) -> bool:
    from mmdet.evaluation import CocoMetric

    from .detection.coco_metric import RunLengthCocoMetric

    names = ('CocoMetric', 'mmdet.CocoMetric', 'RunLengthCocoMetric')
    return metric.get('type') in (*names, CocoMetric, RunLengthCocoMetric)


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


def _check_label_maps(
    name: str, settings: ConfigDict, dataset: BaseDataset, count: int = 20
) -> None:
    """Loads the first images and label maps of a data set, if it is one of mmseg's."""
    from mmseg.datasets import BaseSegDataset

    if not isinstance(dataset, BaseSegDataset):
        return
    classes = dataset.metainfo['classes']
    for step in nested(settings.pipeline, 'num_classes'):
        ours = step.get('type') in ('LoadCheckedLabelMap', LoadCheckedLabelMap)
        if ours and step['num_classes'] != len(classes):
            raise ConfigError(
                f'{name}: LoadCheckedLabelMap has num_classes={step["num_classes"]}, the data set '
                f'{len(classes)} classes'
            )
    samples = dataset.load_data_list()[:count]
    if not samples:
        raise DataError(
            f'{dataset.data_prefix["img_path"]} holds no image *{dataset.img_suffix}. Put the '
            'images there, or set img_suffix of the data set'
        )
    load = Compose([LoadCheckedImage(), LoadCheckedLabelMap(len(classes))])
    for sample in samples:
        load(sample)


def check_checkpoint(path: str, resume: bool = False) -> None:
    """Checks that a local checkpoint can be read, and with `resume` that training can go on.

    Raises:
        DataError: names the file, what is wrong with it and what to do.
    """
    if not is_local(path):
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
            if not isinstance(path, str) or not is_local(path):
                continue
            if is_hub_id(path):  # downloaded now, so that training starts with it or not at all
                read_checkpoint(path)
                continue
            if not Path(path).exists():
                raise DataError(
                    f'pretrained weights {path} not found{hub_hint(path)}. Put the file there, '
                    f'set {name}, or train from scratch with --cfg-options '
                    f'{name.removesuffix(".checkpoint")}=None'
                )
            check_checkpoint(path)


def is_local(path: str) -> bool:
    return '://' not in path and not re.match(r'\w+:', path)

"""Test time augmentation of whatever a config tests."""

from collections.abc import Iterator
from copy import deepcopy

from mmengine.config import Config, ConfigDict

from ..errors import ConfigError
from .configs import is_segmentation, type_name

VIEW_KEYS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
FLIP_KEYS = ('flip', 'flip_direction')


def augment_tests(config: Config) -> None:
    """Wraps the model in test time augmentation: the config's own, or flips for detection.

    Every data set of the test gets the pipeline, however they are concatenated, repeated,
    balanced or mixed.

    Raises:
        ConfigError: for a segmentor whose config has no tta_model and tta_pipeline, and where a
            data set has no pipeline.
    """
    own = config.get('tta_model') and config.get('tta_pipeline')
    if not own and is_segmentation(config):
        raise ConfigError('--tta: the config has no tta_model and tta_pipeline')
    if not config.get('test_dataloader'):
        raise ConfigError('--tta: the config has no test_dataloader')
    for dataset in _last_pipelines(config.test_dataloader.dataset):
        if not dataset.get('pipeline'):
            raise ConfigError(f'--tta: the data set {dataset.get("type")} has no pipeline')
        views = config.tta_pipeline if own else _flips(dataset.pipeline)
        dataset.pipeline = deepcopy(views)
    if not own:
        config.tta_model = dict(
            type='InstanceTTAModel',
            tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
        )
    if type_name(config.model) == 'FusedEncoderDecoder':
        config.model.setdefault('test_cfg', ConfigDict())['keep_logits'] = True
    config.model = ConfigDict(**config.tta_model, module=config.model)


def _last_pipelines(dataset: ConfigDict) -> Iterator[ConfigDict]:
    """Yields the data sets whose pipeline makes what the model sees.

    They are those that wrappers take their samples from, but one that mixes images has the last
    word itself.
    """
    inner = dataset.get('datasets') or ([dataset.dataset] if 'dataset' in dataset else [])
    if dataset.get('pipeline') or not inner:
        yield dataset
        return
    for part in inner:
        yield from _last_pipelines(part)


def _flips(pipeline: list[ConfigDict]) -> list[dict]:
    """Returns a pipeline whose last step packs two views, as they are and flipped."""
    pack = deepcopy(pipeline[-1])
    pack.meta_keys = (*VIEW_KEYS, *FLIP_KEYS)
    flips = [dict(type='mmdet.RandomFlip', prob=prob) for prob in (1.0, 0.0)]
    return [*pipeline[:-1], dict(type='TestTimeAug', transforms=[flips, [pack]])]

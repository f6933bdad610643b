"""A training step and a prediction of any config of mmdet or mmseg, on small images of noise."""

import copy

import numpy as np
import torch
from mmcv.ops import MaskedConv2d
from mmcv_ops import COMPILED
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmengine.utils import import_modules_from_strings
from mmseg.structures import SegDataSample

from kat_mm.openmmlab.configs import nested

SIZE = (96, 128)  # of the images, height and width
ARCH = {'embed_dims': 48, 'num_layers': 4, 'num_heads': 2}
FRAME = {
    'img_id': 0,
    'img_path': '',
    'ori_shape': SIZE,
    'img_shape': SIZE,
    'pad_shape': SIZE,
    'scale_factor': (1.0, 1.0),
    'flip': False,
    'flip_direction': None,
    'border': np.array([0, SIZE[0], 0, SIZE[1]]),
}


def shrink(config):
    """Makes small what costs time and has nothing to do with the backbone."""
    model = config.model
    model.backbone.drop_path_rate = 0.0  # or else, at times, a whole branch has no gradient
    if isinstance(model.get('num_queries'), int):
        model.num_queries = min(model.num_queries, 100)
    preprocessor = model.data_preprocessor
    if preprocessor.get('size') is not None:
        preprocessor.size = (128, 128)
    for augment in preprocessor.get('batch_augments') or []:
        if 'size' in augment:
            augment.size = (128, 128)
    test = model.get('test_cfg')
    if isinstance(test, dict) and test.get('mode') == 'slide':
        test.crop_size, test.stride = (64, 64), (48, 48)
    for key, most in (('score_thr', 1e-4), ('max_per_img', 100), ('nms_pre', 100)):
        for settings in nested(test, key):  # an untrained model has low scores
            settings[key] = min(settings[key], most)


def classes_of(config):
    things = [node['num_things_classes'] for node in nested(config.model, 'num_things_classes')]
    classes = [node['num_classes'] for node in nested(config.model, 'num_classes')]
    return things[0] if things else min(classes, default=1)  # an RPN alone has objects


def loads_masks(config):
    steps = nested(config.train_dataloader, 'type')
    defaults = {'LoadAnnotations': False, 'LoadPanopticAnnotations': True}
    return any(s.get('with_mask', defaults[s.type]) for s in steps if s.type in defaults)


def detection_sample(config, rng):
    classes = classes_of(config)
    boxes = np.array([[8, 8, 56, 60], [40, 24, 120, 88], [70, 5, 95, 30]], np.float32)
    boxes += rng.uniform(-3, 3, boxes.shape).astype(np.float32)
    labels = rng.integers(0, classes, len(boxes))
    masks = np.zeros((len(boxes), *SIZE), np.uint8)
    # What is no thing is the first kind of stuff in panoptic models, and ignored in others.
    stuff = any(node['num_stuff_classes'] for node in nested(config.model, 'num_stuff_classes'))
    semantic = np.full(SIZE, classes if stuff else 255, np.int64)
    for (x1, y1, x2, y2), label, mask in zip(boxes.astype(int), labels, masks, strict=True):
        mask[y1:y2, x1:x2] = 1
        semantic[y1:y2, x1:x2] = label
    sample = DetDataSample(metainfo={**FRAME, 'homography_matrix': np.eye(3)})
    sample.gt_instances = InstanceData(
        bboxes=HorizontalBoxes(boxes), labels=torch.from_numpy(labels)
    )
    if loads_masks(config):
        sample.gt_instances.masks = BitmapMasks(masks, *SIZE)
    sample.ignored_instances = InstanceData(
        bboxes=HorizontalBoxes(np.zeros((0, 4), np.float32)),
        labels=torch.zeros(0, dtype=torch.long),
        masks=BitmapMasks(np.zeros((0, *SIZE), np.uint8), *SIZE),
    )
    sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(semantic)[None])
    return sample


def segmentation_sample(config, rng):
    height, width = SIZE
    cells = rng.integers(0, classes_of(config), (height // 16, width // 16))
    sample = SegDataSample(metainfo=FRAME)
    sample.gt_sem_seg = PixelData(data=torch.from_numpy(cells.repeat(16, 0).repeat(16, 1))[None])
    return sample


def batch(config):
    """Returns two images with annotations, as a data loader gives them."""
    rng = np.random.default_rng(0)
    draw = detection_sample if config.default_scope == 'mmdet' else segmentation_sample
    images = rng.integers(0, 255, (2, 3, *SIZE), dtype=np.uint8)
    samples = [draw(config, rng) for _ in images]
    return {'inputs': list(torch.from_numpy(images)), 'data_samples': samples}


def train(model, config):
    """Takes one step with the config's own optimizer, under autocast to its precision."""
    wrapper_config = copy.deepcopy(config.optim_wrapper)
    dtype = getattr(torch, wrapper_config.pop('dtype', 'float32'))
    if COMPILED:
        dtype = torch.float32  # a compiled mmcv's nms for the CPU takes no other scores
    wrapper_config.pop('loss_scale', None)
    wrapper_config.type = 'OptimWrapper'  # mm has mixed precision for GPUs alone
    wrapper = build_optim_wrapper(model, wrapper_config)
    hub = MessageHub.get_current_instance()  # some losses change in the course of training
    for key, value in (('epoch', 0), ('iter', 0), ('max_iters', 100), ('max_epochs', 12)):
        hub.update_info(key, value)
    model.train()
    data = model.data_preprocessor(batch(config), True)
    with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
        losses = model(**data, mode='loss')
    loss, _ = model.parse_losses(losses)
    wrapper.update_params(loss)
    return loss


def predict(model, config):
    model.eval()
    data = batch(config)
    # mmcv's masked convolution takes single images alone.
    size = 1 if any(isinstance(m, MaskedConv2d) for m in model.modules()) else 2
    with torch.no_grad():
        return [
            sample
            for i in range(0, 2, size)
            for sample in model.test_step({key: each[i : i + size] for key, each in data.items()})
        ]


def build(config):
    """Builds a model and initialises it as a runner does, but for weights from elsewhere."""
    import_modules_from_strings(**config.custom_imports)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(config.model)))
        for module in model.modules():
            init = getattr(module, 'init_cfg', None)
            if isinstance(init, dict) and init.get('type') == 'Pretrained':
                module.init_cfg = None
        model.init_weights()
    return model

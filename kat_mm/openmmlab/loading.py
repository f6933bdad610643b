"""Loaders of images and label maps that refuse bad files by name."""

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine import fileio
from mmengine.registry import TRANSFORMS

from ..errors import DataError

IGNORED = 255  # mmseg's label of pixels that count nowhere


@TRANSFORMS.register_module()
class LoadCheckedImage(LoadImageFromFile):
    """Loads an image as mm's LoadImageFromFile does, and names a file that is not whole.

    OpenCV before version 5 fills the rest of a truncated JPEG with grey and says nothing, so images
    are decoded with Pillow by default. Takes LoadImageFromFile's arguments.

    Raises:
        DataError: for a file that is missing or cannot be decoded completely.
    """

    def __init__(self, *args, imdecode_backend: str = 'pillow', **kwargs):
        super().__init__(*args, imdecode_backend=imdecode_backend, **kwargs)

    def transform(self, results: dict) -> dict | None:
        try:
            return super().transform(results)
        except Exception as error:  # damaged files fail in many ways
            raise _unreadable('image', results['img_path'], error) from error


@TRANSFORMS.register_module()
class LoadCheckedLabelMap(BaseTransform):
    """Loads a label map as mmseg's LoadAnnotations does, and names one that does not fit.

    A label beyond the classes ends training on a GPU with an assertion of the device, and mmseg's
    IoUMetric leaves it out. Samples without a label map, as in prediction, pass.

    Args:
        num_classes: number of classes of the data set.
        backend_args: arguments of the file backend.

    Raises:
        DataError: for a file that is missing, cannot be decoded completely, has another size than
            its image or holds a value outside the classes.
    """

    def __init__(self, num_classes: int, backend_args: dict | None = None):
        self.num_classes = num_classes
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        path = results.get('seg_map_path')
        if path is None:
            return results
        try:
            content = fileio.get(path, backend_args=self.backend_args)
            stored = mmcv.imfrombytes(content, flag='unchanged', backend='pillow')
        except Exception as error:
            raise _unreadable('label map', path, error) from error
        size = tuple(results['ori_shape'][:2])
        if stored.shape != size:
            raise DataError(
                f'label map {path} has the shape {stored.shape}, its image {results["img_path"]} '
                f'has {size} (height, width). Replace it by a grey or palette image of that size, '
                'or remove both'
            )
        labels = _labels(stored, results)
        wrong = stored[(labels >= self.num_classes) & (labels != IGNORED)]
        if wrong.size:
            first = int(results['reduce_zero_label'])
            last = first + self.num_classes - 1
            raise DataError(
                f'label map {path} holds the value {wrong[0]}: classes are {first} to {last}, and '
                f'{"0 and 255 are" if first else "255 is"} ignored. Correct the file, or '
                'num_classes throughout the config'
            )
        results['gt_seg_map'] = labels.astype(np.uint8)
        results['seg_fields'].append('gt_seg_map')
        return results


def _labels(stored: np.ndarray, results: dict) -> np.ndarray:
    """Returns the labels that a data set's settings make of stored values, as mmseg does."""
    labels = stored.astype(np.uint32)  # mmseg's uint8 wraps around
    if results['reduce_zero_label']:
        labels = np.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1)
    if not results.get('label_map'):
        return labels
    chosen = labels.copy()
    for old, new in results['label_map'].items():
        chosen[labels == old] = new
    return chosen


def _unreadable(kind: str, path: str, error: Exception) -> DataError:
    return DataError(f'{kind} {path} cannot be read: {" ".join(str(error).split())}')

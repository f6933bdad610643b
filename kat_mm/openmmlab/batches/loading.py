"""Loaders of images and label maps that refuse bad files by name."""

from io import BytesIO

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine import fileio
from mmengine.registry import TRANSFORMS
from PIL import Image, UnidentifiedImageError

from ...errors import DataError

IGNORED = 255  # mmseg's label of pixels that count nowhere
START_OF_JPEG, END_OF_JPEG = b'\xff\xd8', b'\xff\xd9'


@TRANSFORMS.register_module()
class LoadCheckedImage(LoadImageFromFile):
    """Loads the pixels that mm's LoadImageFromFile loads, and names a file that is not whole.

    Both have the same decoder, so that training and validation see the same image whatever its
    format and mode. OpenCV before 4.11 fills the rest of a truncated JPEG with grey and says
    nothing; here it is an error. Takes LoadImageFromFile's arguments.

    Raises:
        DataError: for a file that is missing or cannot be decoded completely, and for an image of
            another size than the data set says, whose boxes would lie elsewhere.
    """

    def transform(self, results: dict) -> dict | None:
        path = results['img_path']
        try:
            image = self._decode(fileio.get(path, backend_args=self.backend_args))
        except Exception as error:  # damaged files fail in many ways
            if self.ignore_empty:
                return None
            raise _unreadable('image', path, error) from error
        size = image.shape[:2]
        stated = results.get('height', size[0]), results.get('width', size[1])
        if size != stated:
            raise DataError(
                f'image {path} is {size[0]} x {size[1]} pixels (height x width), the annotations '
                f'say {stated[0]} x {stated[1]}: correct them; if the two are swapped and the file '
                "has an EXIF orientation, color_type='color_ignore_orientation' of all loaders of "
                'images undoes it'
            )
        results['img'] = image.astype(np.float32) if self.to_float32 else image
        results['img_shape'] = results['ori_shape'] = size
        return results

    def _decode(self, content: bytes) -> np.ndarray:
        image = mmcv.imfrombytes(content, flag=self.color_type, backend=self.imdecode_backend)
        cut = content.startswith(START_OF_JPEG) and not content.endswith(END_OF_JPEG)
        if image is None or cut:
            try:
                with Image.open(BytesIO(content)) as file:
                    file.load()  # tells what is wrong
            except UnidentifiedImageError:
                raise ValueError('it is not an image') from None
        if image is None:
            raise ValueError(f'{self.imdecode_backend} cannot decode it')
        return image


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

"""Checks of COCO's annotation files: what would crash, mislabel or miscount."""

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import ConfigDict
from mmengine.logging import print_log

from ..errors import DataError
from .batches.loading import LoadCheckedImage
from .configs import nested

IMAGE_FIELDS = ('file_name', 'height', 'width')
FIRST = 4  # images of a data set that are opened, as wrong sizes seldom come alone


@dataclass
class CocoFile:
    """An annotation file in COCO's format, with what has been found out about it."""

    path: str
    images: dict = field(default_factory=dict)  # by id
    annotations: list = field(default_factory=list)
    categories: list = field(default_factory=list)

    def error(self, message: str) -> DataError:
        return DataError(f'annotations {self.path}: {message}')

    def warn(self, message: str) -> None:
        print_log(f'annotations {self.path}: {message}', 'current', logging.WARNING)


def read_coco(path: str) -> CocoFile:
    """Reads an annotation file.

    Raises:
        DataError: for what is no such file, for ids that occur twice and for missing fields of
            images and categories.
    """
    file = CocoFile(path)
    try:
        content = json.loads(Path(path).read_text())  # as pycocotools reads it
    except OSError as error:
        raise file.error(f'it cannot be read: {error.strerror}') from error
    except ValueError as error:
        if Path(path).read_bytes()[:3] == b'\xef\xbb\xbf':
            raise file.error(
                'it begins with a byte order mark, which pycocotools cannot read; save it as UTF-8 '
                'without one'
            ) from None
        raise file.error(f'it is not JSON: {error}') from error
    if not isinstance(content, dict):
        raise file.error('it is not in the format of COCO: not an object with images and so on')
    for key in ('images', 'categories', 'annotations'):
        entries = content.get(key, [] if key == 'annotations' else None)
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise file.error(f'it has no list of {key}')
        counts = Counter(map(_id, entries))
        if None in counts:
            place = next(i for i, entry in enumerate(entries) if _id(entry) is None)
            raise file.error(f'{key}[{place}] has no id that is a number or text')
        if len(counts) < len(entries):
            [(repeated, count)] = counts.most_common(1)
            raise file.error(f'the id {repeated!r} occurs {count} times in {key}')
        if key != 'images':
            setattr(file, key, entries)
    file.images = {image['id']: image for image in content['images']}
    for image in file.images.values():
        for name in IMAGE_FIELDS:
            if name not in image:
                raise file.error(f'the image with id {image["id"]!r} has no {name}')
        if not isinstance(image['file_name'], str):
            raise file.error(f'the image with id {image["id"]!r} has no file_name that is text')
        size = image['height'], image['width']
        if not all(isinstance(side, int | float) and side > 0 for side in size):
            raise file.error(f'image {image["file_name"]}: height and width are {size}')
    for category in file.categories:
        if not isinstance(category.get('name'), str):
            raise file.error(f'the category with id {category["id"]!r} has no name')
    return file


def _id(entry: dict) -> int | str | None:
    return entry['id'] if isinstance(entry.get('id'), int | str) else None


def check_classes(file: CocoFile, classes: Sequence[str], whose: str) -> set:
    """Checks that the classes are those of the file, in its order, by which mmdet numbers labels.

    Returns:
        The ids of their categories.

    Raises:
        DataError: names the first class that the file lacks, or the two orders.
    """
    names = [category['name'] for category in file.categories if category['name'] in classes]
    if not names:
        known = _some([category['name'] for category in file.categories])
        raise file.error(
            f'none of the classes of {whose} ({_some(classes)}) is a category of the file ({known})'
            ': set metainfo=dict(classes=...) of the data set'
        )
    if len(set(names)) < len(names):
        repeated = Counter(names).most_common(1)[0][0]
        raise file.error(f'two categories have the name {repeated!r}, which shifts all labels')
    missing = [name for name in classes if name not in names]
    if missing:
        raise file.error(
            f'it has no category {_some(missing)}, which {"is" if len(missing) == 1 else "are"} '
            f'among the classes of {whose}, so that labels would be shifted: remove it from the '
            'classes, or add the category at its place in the file'
        )
    if names != list(classes):
        raise file.error(
            f'the order of the classes of {whose} ({_some(classes)}) is not that of its categories '
            f'({_some(names)}), by which mmdet numbers labels: give the classes in this order'
        )
    others = [c['name'] for c in file.categories if c['name'] not in classes]
    if others:
        file.warn(
            f'{len(others)} of its categories are none of the classes of {whose}, and their '
            f'objects count as background: {_some(others)}'
        )
    return {category['id'] for category in file.categories if category['name'] in classes}


def check_dataset(file: CocoFile, settings: ConfigDict, dataset) -> None:
    """Checks what mmdet's CocoDataset makes of a file, and that the images are there.

    Args:
        file: its annotations.
        settings: the data set in the config.
        dataset: the same, built without its data.

    Raises:
        DataError: names the annotation or image, and what is wrong with it.
    """
    chosen = check_classes(file, dataset.metainfo['classes'], 'the data set')
    with_masks = any(step['with_mask'] for step in nested(settings.get('pipeline'), 'with_mask'))
    known = {category['id'] for category in file.categories}
    unknown, boxes, polygons, filled = 0, 0, 0, set()
    for annotation in file.annotations:
        image = file.images.get(_field(file, annotation, 'image_id'))
        category = _field(file, annotation, 'category_id')
        if category not in known:
            raise file.error(
                f'annotation {annotation["id"]} has category_id {category!r}, which is none of its '
                'categories; its object would count as background'
            )
        if image is None:
            unknown += 1
            continue
        if category in chosen:
            filled.add(image['id'])
        if annotation.get('ignore'):
            continue
        x, y, width, height = _box(file, annotation)
        area = _field(file, annotation, 'area')
        if not isinstance(area, int | float):
            raise file.error(f'annotation {annotation["id"]}: area={area!r} is not a number')
        inside = min(x + width, image['width']) > max(x, 0) and (
            min(y + height, image['height']) > max(y, 0)
        )
        if not inside or area <= 0 or width < 1 or height < 1:
            boxes += 1
        elif category in chosen and with_masks:
            mask = annotation.get('segmentation')
            if not mask:
                raise file.error(f'annotation {annotation["id"]} has no segmentation')
            polygons += not _is_mask(file, annotation, image)
    if file.annotations and unknown == len(file.annotations):
        raise file.error(
            f'no annotation is of one of its images: the first has image_id '
            f'{file.annotations[0]["image_id"]!r}, the first image the id '
            f'{next(iter(file.images), None)!r}'
        )
    found = {'of images that it lacks': unknown, 'with boxes that are empty or outside': boxes}
    found['whose polygons have no area'] = polygons
    if any(found.values()):
        left_out = ', '.join(f'{count} {reason}' for reason, count in found.items() if count)
        file.warn(f'mmdet leaves out {left_out}, of {len(file.annotations)} annotations')
    images = list(file.images.values())
    filters = {} if dataset.test_mode else dataset.filter_cfg or {}
    if filters.get('filter_empty_gt'):
        images = [image for image in images if image['id'] in filled]
    smallest = filters.get('min_size', 0)
    images = [i for i in images if min(i['height'], i['width']) >= smallest]
    if not images:
        raise file.error(f'no image is left for training by filter_cfg={dict(filters)}')
    if dataset._indices is None:
        _check_images(dataset.data_prefix['img'], images)


def check_metric(file: CocoFile, metric: ConfigDict, classes: Sequence[str]) -> None:
    """Checks what pycocotools needs of a file to score predictions by it.

    Raises:
        DataError: names the annotation, and what is wrong with it.
    """
    if metric.get('sort_categories'):
        file = CocoFile(file.path, file.images, file.annotations, [*file.categories])
        file.categories.sort(key=lambda category: category['id'])
    chosen = check_classes(file, classes, 'validation')
    kinds = metric.get('metric', 'bbox')
    with_masks = 'segm' in ([kinds] if isinstance(kinds, str) else kinds)
    for annotation in file.annotations:
        image = file.images.get(_field(file, annotation, 'image_id'))
        if _field(file, annotation, 'category_id') not in chosen or image is None:
            continue
        if not isinstance(annotation['id'], int):
            raise file.error(f'the id {annotation["id"]!r} of an annotation is not a number')
        if annotation['id'] == 0:
            file.warn('pycocotools counts the object with id 0 as missed; number them from 1 on')
        for name in ('area', 'iscrowd'):
            if not isinstance(_field(file, annotation, name), int | float):
                raise file.error(f'annotation {annotation["id"]}: {name} is not a number')
        _box(file, annotation)
        if with_masks:
            mask = _field(file, annotation, 'segmentation')
            _is_mask(file, annotation, image)
            if not mask or (isinstance(mask, list) and len(mask[0]) <= 4):
                raise file.error(
                    f'annotation {annotation["id"]} of {image["file_name"]}: a segmentation of '
                    f'{len(mask[0]) // 2 if mask else 0} points ends the evaluation of masks; '
                    'remove the annotation, or draw its polygon'
                )


def _field(file: CocoFile, annotation: dict, name: str):
    """Returns a field of an annotation."""
    try:
        return annotation[name]
    except KeyError:
        raise file.error(f'annotation {annotation["id"]} has no {name}') from None


def _box(file: CocoFile, annotation: dict) -> list:
    """Returns the box of an annotation: left, top, width, height."""
    box = _field(file, annotation, 'bbox')
    try:
        x, y, width, height = box
        total = x + y + width + height
        if total - total == 0:  # neither NaN nor infinite
            return box
    except (TypeError, ValueError):
        pass
    raise file.error(
        f'annotation {annotation["id"]}: bbox={box!r} must be four numbers: '
        'left, top, width, height'
    )


def _is_mask(file: CocoFile, annotation: dict, image: dict) -> bool:
    """Tells whether mmdet takes a segmentation: polygons of three points, or run lengths."""
    mask = annotation['segmentation']
    if isinstance(mask, list) and all(isinstance(polygon, list) for polygon in mask):
        return any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in mask)
    if isinstance(mask, dict) and isinstance(mask.get('counts'), list | str):
        if mask.get('size') == [image['height'], image['width']]:
            return True
        raise file.error(
            f'annotation {annotation["id"]}: the size of its mask is {mask.get("size")}, that of '
            f'{image["file_name"]} is {[image["height"], image["width"]]} (height, width)'
        )
    raise file.error(
        f'annotation {annotation["id"]}: its segmentation is neither a list of polygons, each a '
        'list of numbers, nor run lengths, a dict of size and counts'
    )


def _check_images(folder: str, images: list[dict]) -> None:
    """Checks that the images exist, by listing folders, and that the first are of their size."""
    listed: dict[str, set] = {}
    missing = []
    for image in images:
        inner, name = os.path.split(os.path.join(folder, image['file_name']))
        if inner not in listed:
            listed[inner] = set(os.listdir(inner)) if os.path.isdir(inner) else set()
        if name not in listed[inner]:
            missing.append(os.path.join(inner, name))
    if missing:
        raise DataError(
            f'{len(missing)} of {len(images)} images are missing, first {missing[0]}: put them '
            'there, correct data_prefix, or remove them from the annotations'
        )
    load = LoadCheckedImage()
    for image in images[:FIRST]:
        path = os.path.join(folder, image['file_name'])
        load({'img_path': path, 'height': image['height'], 'width': image['width']})


def _some(names: Sequence[str], count: int = 10) -> str:
    """Returns names in one line, the first ones of many."""
    return ', '.join(names[:count]) + (', ...' if len(names) > count else '')

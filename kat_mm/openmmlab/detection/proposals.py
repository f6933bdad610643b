"""The region proposals of a batch: padded tensors, and mmdet's list of instances if it is read."""

import functools

import torch
from mmengine.structures import InstanceData
from torch import Tensor

# What list has that needs no elements.
_OF_NO_ELEMENT = {
    *('__new__', '__init__', '__len__', '__getattribute__', '__class_getitem__'),
    *('__repr__', '__sizeof__', '__hash__', '__doc__'),
}


class Proposals(list):
    """A list of each image's InstanceData, which are made when the list is first read or changed.

    Their sizes are the only thing for which the host has to wait for the GPU; what reads the
    tensors does not. Once they are made, any of them may have been changed, and the list is what
    counts: see `are_tensors`. Copies, sums and pickles are plain lists.

    Attributes:
        boxes: [B, K, 4], (x1, y1, x2, y2), by falling score; zeros behind what there is.
        scores: [B, K].
        counts: [B], int64, how many proposals each image has.
    """

    def __init__(self, boxes: Tensor, scores: Tensor, counts: Tensor):
        super().__init__([None] * len(boxes))
        self.boxes, self.scores, self.counts = boxes, scores, counts
        self._are_made = False

    @property
    def are_tensors(self) -> bool:
        """Whether the tensors still are all that is known of the proposals."""
        return not self._are_made

    def _make(self) -> None:
        if self._are_made:
            return
        self._are_made = True
        labels = torch.zeros(self.boxes.shape[:2], dtype=torch.int64, device=self.boxes.device)
        for i, count in enumerate(self.counts.tolist()):
            instances = InstanceData(
                bboxes=self.boxes[i, :count],
                scores=self.scores[i, :count],
                labels=labels[i, :count],
            )
            super().__setitem__(i, instances)

    def __radd__(self, other: list) -> list:
        return other + list(self) if isinstance(other, list) else NotImplemented

    def __reduce_ex__(self, protocol: int) -> tuple:
        return list, (list(self),)

    def __repr__(self):
        return f'{type(self).__name__}(boxes={tuple(self.boxes.shape)})'


def _with_elements(method):
    @functools.wraps(method)
    def call(self, *args, **kwargs):
        for each in (self, *args):  # of another list, too, the elements are read as they are
            if isinstance(each, Proposals):
                each._make()
        return method(self, *args, **kwargs)

    return call


for _name in vars(list).keys() - _OF_NO_ELEMENT:
    setattr(Proposals, _name, _with_elements(getattr(list, _name)))

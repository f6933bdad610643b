"""The region proposals of a batch: padded tensors, and mmdet's list of instances if it is read."""

import torch
from mmengine.structures import InstanceData
from torch import Tensor


class Proposals(list):
    """A list of each image's InstanceData, which are made when one of them is first asked for.

    Their sizes are the only thing for which the host has to wait for the GPU; what reads the
    tensors does not.

    Attributes:
        boxes: [B, K, 4], (x1, y1, x2, y2), by falling score; zeros behind what there is.
        scores: [B, K].
        counts: [B], int64, how many proposals each image has.
    """

    def __init__(self, boxes: Tensor, scores: Tensor, counts: Tensor):
        super().__init__([None] * len(boxes))
        self.boxes, self.scores, self.counts = boxes, scores, counts
        self._are_made = False

    def _make(self) -> None:
        if self._are_made:
            return
        self._are_made = True
        labels = torch.zeros(self.boxes.shape[:2], dtype=torch.int64, device=self.boxes.device)
        for i, count in enumerate(self.counts.tolist()):
            self[i] = InstanceData(
                bboxes=self.boxes[i, :count],
                scores=self.scores[i, :count],
                labels=labels[i, :count],
            )

    def __getitem__(self, index):
        self._make()
        return super().__getitem__(index)

    def __iter__(self):
        self._make()
        return super().__iter__()

    def __reversed__(self):
        self._make()
        return super().__reversed__()

    def __repr__(self):
        return f'{type(self).__name__}(boxes={tuple(self.boxes.shape)})'

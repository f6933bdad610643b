"""Draws positive and negative boxes at random, as mmdet's RandomSampler does, for a batch."""

import torch
from torch import Tensor

NOT_A_CANDIDATE = 2.0  # a key behind all keys


def sample(
    assigned: Tensor,
    num: int,
    pos_fraction: float,
    neg_pos_ub: float = -1,
    keys: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws up to `num` boxes of each image, of which up to `num * pos_fraction` are positive.

    Of the positive boxes, and of the negative ones, those with the smallest keys are taken. What
    positive ones leave is filled with negative ones, at most `neg_pos_ub` for each positive one, or
    for one where there is none, if that is not negative.

    Args:
        assigned: [B, N], int64: above 0 for positive boxes, 0 for negative ones; others are not
            drawn.
        num: how many to draw.
        keys: [B, N], numbers in [0, 1); drawn on the device of `assigned` where they are None.

    Returns:
        indices: [B, num], into N: positive boxes, then negative ones, each in ascending order, then
            zeros.
        is_positive: [B, num], bool.
        is_sampled: [B, num], bool: False for the zeros that fill up.
    """
    if keys is None:
        keys = torch.rand(assigned.shape, device=assigned.device)
    count = assigned.shape[1]
    largest = min(num, count)
    most_positive = min(int(num * pos_fraction), largest)
    positive, is_positive = _smallest(keys, assigned > 0, most_positive)
    negative, is_negative = _smallest(keys, assigned == 0, largest)
    positives = is_positive.sum(1, keepdim=True)
    negatives = num - positives
    if neg_pos_ub >= 0:
        bound = (neg_pos_ub * positives.clamp(min=1).double()).long()
        negatives = torch.minimum(negatives, bound)
    is_negative &= torch.arange(largest, device=assigned.device) < negatives

    # Behind all positive indices the negative ones, and behind those what is not taken.
    places = torch.cat(
        [
            torch.where(is_positive, positive, 2 * count),
            torch.where(is_negative, negative + count, 2 * count),
        ],
        dim=1,
    )
    places = places.sort(1).values[:, :num]
    if places.shape[1] < num:
        places = torch.nn.functional.pad(places, (0, num - places.shape[1]), value=2 * count)
    is_sampled, is_positive = places < 2 * count, places < count
    indices = torch.where(is_positive, places, (places - count) * is_sampled)
    return indices, is_positive, is_sampled


def _smallest(keys: Tensor, is_candidate: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Returns the indices of the candidates with the smallest keys, and which are candidates."""
    values, indices = keys.where(is_candidate, NOT_A_CANDIDATE).topk(most, 1, largest=False)
    return indices, values < NOT_A_CANDIDATE

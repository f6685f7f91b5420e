"""How well the segments of an image fit its true objects: functions of the table of the pixels that they share.

The table of an image is t[i, j], the number of pixels of object i in segment j. Its functions do not change if segments
or objects are numbered in another way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad


def shared_pixels(truth: Tensor, found: Tensor) -> Tensor:
    """t[b, i, j], the number of pixels of image b in object i of the truth and in segment j: float64 [B, I, J].

    Row 0 is the background. The other rows are the objects of all images together, so that rows of an image may be 0.

    Args:
        truth: The object of each pixel, whole numbers [B, ...]; 0 is the background.
        found: The segment of each pixel, whole numbers of the same shape.
    """
    with_background = torch.cat((truth.new_zeros(1), truth.flatten()))  # so that row 0 is there even if no pixel is 0
    objects, row = with_background.unique(return_inverse=True)
    segments, column = found.unique(return_inverse=True)
    cell = (row[1:].view(found.shape) * len(segments) + column).flatten(1)  # [B, pixels]
    table = torch.zeros(len(found), len(objects) * len(segments), dtype=torch.float64, device=found.device)
    table.scatter_add_(1, cell, torch.ones_like(cell, dtype=torch.float64))
    return table.view(len(found), len(objects), len(segments))


def rand_index(table: Tensor) -> Tensor:
    """The adjusted Rand index (Hubert & Arabie 1985) of each image: float64 [B].

    1 if objects and segments split the pixels alike; 0 on average for a random split. As in scikit-learn, the index is
    1 if neither splits them. NaN for an image without pixels.

    Args:
        table: From `shared_pixels`, [B, I, J], or some of its rows.
    """
    total, squares = table.sum((1, 2)), table.square().sum((1, 2))
    of_truth, of_found = table.sum(2).square().sum(1), table.sum(1).square().sum(1)
    together, apart = squares - total, total**2 - of_truth - of_found + squares  # pairs on which both agree
    split, merged = of_truth - squares, of_found - squares  # pairs of one object, or of one segment, alone
    below = (together + split) * (split + apart) + (together + merged) * (merged + apart)
    index = 2 * (together * apart - split * merged) / below
    return index.where((split > 0) | (merged > 0), 1.0).where(total > 0, math.nan)


def foreground_ari(truth: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """The adjusted Rand index over the pixels that are not 0 in the truth, by image.

    An image with one object tells little: its index is 1 if one segment holds the object, whatever else it holds.

    Returns float64 [B], NaN for an image without objects, and the number of objects [B].

    Args:
        truth: The object of each pixel, whole numbers [B, ...]; 0 is the background.
        found: The segment of each pixel, whole numbers of the same shape.
    """
    table = shared_pixels(truth, found)[:, 1:]
    return rand_index(table), (table.sum(2) > 0).sum(1)


def mean_iou(table: Tensor) -> Tensor:
    """The mean over objects of the intersection over union with one segment each, best assignment: float64 [B].

    The background is an object. An object without a segment counts as 0.

    Args:
        table: From `shared_pixels`, [B, I, J].
    """
    of_object, of_segment = table.sum(2, keepdim=True), table.sum(1, keepdim=True)
    iou = table / (of_object + of_segment - table).clamp(min=1)
    return best_pairs(iou) / (of_object > 0).sum((1, 2))


def background_share(table: Tensor) -> Tensor:
    """The share of the background's pixels in the one segment that has most of them: [B]; NaN without a background.

    Args:
        table: From `shared_pixels`, [B, I, J].
    """
    background = pad(table[:, 0], (0, 1))  # [B, J + 1]; a column more, because a batch of no images has no segment
    return background.amax(1) / background.sum(1)


def best_pairs(scores: Tensor) -> Tensor:
    """The largest sum of scores of pairs one to one: [B, T, N] to float64 [B].

    Args:
        scores: The score of pair (t, n), [B, T, N].
    """
    # here, because the import takes time; scipy comes with scikit-learn
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    sums = [table[linear_sum_assignment(table, maximize=True)].sum() for table in scores.double().cpu().numpy()]
    return torch.tensor(sums, dtype=torch.float64, device=scores.device)

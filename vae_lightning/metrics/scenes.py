"""Scores of what a model finds in a scene: the number of objects, their boxes, and the object of each pixel."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from vae_lightning.data import DataModule
from vae_lightning.data.scenes import boxes_of
from vae_lightning.metrics.evaluator import Evaluator, Finding, objects_from_all_ranks
from vae_lightning.metrics.latents import update_mean, with_stderr
from vae_lightning.metrics.likelihood import MeanAndError
from vae_lightning.metrics.segments import (
    background_share,
    best_pairs,
    foreground_ari,
    mean_iou,
    rand_index,
    shared_pixels,
)
from vae_lightning.models import LatentVariableModel
from vae_lightning.trace import Trace
from vae_lightning.types import Batch

_TRUTH: Mapping[str, str] = {
    **{"count": "count", "boxes": "boxes", "painted": "boxes"},
    **{"segmentation": "segmentation", "segmentation_decoded": "segmentation"},
}
"""The entries of `Trace.found` that are scored, and the entry of the batch that each is compared with."""
_PAINTED = 0.2  # a pixel belongs to the extent of a step if the step painted it brighter than this


class SceneScores(Evaluator):
    """Scores of the counts, the boxes and the segments that a model finds in its images.

    Use it for models of scenes. A score is computed if the model finds the entry (`Trace.found`) and the batch holds
    its truth. An image with a negative true `count` is unknown and is left out. A box is top, left, height and width;
    a height of 0 or less means that there is no object.

    - `count_accuracy`: the share of images with the right `count`. `count_accuracy_sampled`: the same of
      `count_sampled`.
    - `presence/i`: the mean over images of `presence` [B, N], the probability of i objects or more.
    - `count_confusion/n`: a list over k = 0, 1, ...: how many of the images with n objects have k found ones.
    - `box_recall`: the share of all true boxes whose centre lies in a found box. Each found box is paired with one true
      box at most.
    - `extent_iou`: the mean over all true boxes of the intersection over union with the extent of a step: the box
      around the pixels where its `painted` [B, N, H, W] is above 0.2. Boxes and steps are paired one to one, such that
      the sum is largest. A true box without a pair counts as 0.
    - `fg_ari`: the adjusted Rand index of `segmentation` over the pixels of objects, for images with two objects or
      more. Images with one object are left out, because one segment for everything would score 1 there.
      `fg_ari_decoded` is that of `segmentation_decoded`, for models that have masks of inference and of the decoder.
    - `ari`: the adjusted Rand index of `segmentation` over all pixels, the background being an object. Most pixels are
      of the background, so that a model that finds it alone has a high index.
    - `miou`: the mean over objects, the background included, of the intersection over union with a segment of its own,
      the best choice one to one.
    - `background_share`: the share of the background's pixels in the one segment that has most of them.
    - `slots_used`: the mean of `slots_used` [B], the number of segments that own a pixel.
    """

    units: ClassVar[Mapping[str, str]] = {
        "count_accuracy": "share, 1 at best",
        "count_accuracy_sampled": "share, 1 at best",
        "presence": "probability",
        "count_confusion": "images",
        "box_recall": "share of true boxes, 1 at best",
        "extent_iou": "share of area, 1 at best",
        "fg_ari": "1 at best, 0 by chance",
        "fg_ari_decoded": "1 at best, 0 by chance",
        "ari": "1 at best, 0 by chance",
        "miou": "share of area, 1 at best",
        "background_share": "share of pixels, 1 at best",
        "slots_used": "slots",
    }

    def why_not_of_batch(self, trace: Trace, batch: Batch) -> str | None:
        if not trace.found:
            return "the model finds nothing (Trace.found is empty)"
        reasons = [_why_not(name, trace.found, batch) for name in _TRUTH]
        return None if None in reasons else "; ".join(dict.fromkeys(filter(None, reasons)))

    def begin(self, model: LatentVariableModel, data: DataModule | None) -> None:
        self._means: dict[str, MeanAndError] = {}
        self._sums: dict[str, MeanAndError] = {}
        self._counts: Counter[tuple[int, int]] = Counter()
        self._most = [getattr(data, "num_objects", 0), 0]  # true and found objects

    def update(self, trace: Trace, batch: Batch) -> None:
        found = {name: value.to(batch["x"].device) for name, value in trace.found.items()}
        scored = {name for name in _TRUTH if _why_not(name, found, batch) is None}
        count = batch.get("count")
        if count is not None and count.dim() == 1:
            known = count >= 0
            batch = {name: value[known] for name, value in batch.items()}
            found = {name: value[known] for name, value in found.items()}
        if "count" in scored:
            self._update_counts(found, batch["count"])
        if "boxes" in scored:
            self._update_ratio("box_recall", _centre_is_in(batch["boxes"], found["boxes"]), batch["boxes"])
        if "painted" in scored:
            self._update_ratio("extent_iou", _iou(batch["boxes"], _painted_boxes(found)), batch["boxes"])
        if "slots_used" in found:
            update_mean(self._means, "slots_used", found["slots_used"].double())
        if "segmentation" in scored:
            self._update_segments(batch["segmentation"], found["segmentation"])
        if "segmentation_decoded" in scored:
            ari, num_objects = foreground_ari(batch["segmentation"], found["segmentation_decoded"])
            update_mean(self._means, "fg_ari_decoded", ari[num_objects > 1])

    def _update_segments(self, truth: Tensor, found: Tensor) -> None:
        ari, num_objects = foreground_ari(truth, found)
        update_mean(self._means, "fg_ari", ari[num_objects > 1])
        table = shared_pixels(truth, found)
        share = background_share(table)
        update_mean(self._means, "ari", rand_index(table))
        update_mean(self._means, "miou", mean_iou(table))
        update_mean(self._means, "background_share", share[~share.isnan()])  # an image may have no background

    def _update_counts(self, found: Mapping[str, Tensor], count: Tensor) -> None:
        for name, found_name in (("count_accuracy", "count"), ("count_accuracy_sampled", "count_sampled")):
            if found_name in found:
                update_mean(self._means, name, (found[found_name] == count).double())
        if "presence" in found:
            update_mean(self._means, "presence", found["presence"])
            self._most[1] = max(self._most[1], found["presence"].shape[1])
        self._counts.update(zip(count.tolist(), found["count"].tolist(), strict=True))

    def _update_ratio(self, name: str, scores: Tensor, boxes: Tensor) -> None:
        """Add the images' sums of scores m and numbers of true boxes t, as m, t, m^2, m t and t^2."""
        m, t = best_pairs(scores), _exists(boxes).sum(1).double()
        update_mean(self._sums, name, torch.stack((m, t, m * m, m * t, t * t), 1))

    def compute(self) -> dict[str, Finding]:
        results: dict[str, Finding] = {}
        for name, mean in self._means.items():
            if name == "presence":
                results |= {f"presence/{i}": p for i, p in enumerate(mean.compute()[0].flatten().tolist(), 1)}
            else:
                results |= with_stderr(name, mean)
        for name, sums in self._sums.items():
            results |= _ratio(name, sums)
        counts = sum(objects_from_all_ranks(self._counts), Counter[tuple[int, int]]())
        if counts:
            true, guessed = (max(most, *seen) for most, seen in zip(self._most, zip(*counts, strict=True), strict=True))
            for n in range(true + 1):
                results[f"count_confusion/{n}"] = [float(counts[n, k]) for k in range(guessed + 1)]
        return results


def _why_not(name: str, found: Mapping[str, Tensor], batch: Batch) -> str | None:
    """Why an entry of `Trace.found` cannot be scored on this batch; None if it can."""
    truth = _TRUTH[name]
    if name not in found:
        return f"the model finds no {name}"
    if truth not in batch:
        return f"the batch has no {truth}"
    a, b = found[name].shape, batch[truth].shape
    if truth == "boxes":
        fits = len(b) == 3 and b[2] == 4 and (len(a) == 4 if name == "painted" else len(a) == 3 and a[2] == 4)
    else:
        fits = a == b
    if fits:
        return None
    shapes = [", ".join(map(str, ["B", *shape[1:]])) for shape in (a, b)]
    return f"found {name} is [{shapes[0]}], the batch's {truth} [{shapes[1]}]"


def _exists(boxes: Tensor) -> Tensor:
    """Whether a box holds an object: its height is positive. Top and left of a found box may be negative."""
    return boxes[..., 2] > 0


def _centre_is_in(boxes: Tensor, found: Tensor) -> Tensor:
    """1 if the centre of true box t lies in found box k, else 0: [B, T, 4], [B, N, 4] to [B, T, N]."""
    centre = (boxes[..., :2] + boxes[..., 2:] / 2)[:, :, None]
    is_in = (centre >= found[:, None, :, :2]) & (centre <= (found[..., :2] + found[..., 2:])[:, None])
    return (is_in.all(3) & _exists(boxes)[:, :, None] & _exists(found)[:, None]).double()


def _iou(boxes: Tensor, found: Tensor) -> Tensor:
    """Intersection over union of true box t and found box k: [B, T, 4], [B, N, 4] to [B, T, N]; 0 without an object."""
    a, b = boxes[:, :, None].double(), found[:, None].double()
    ends = torch.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    common = (ends - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(3)
    union = a[..., 2:].prod(3) + b[..., 2:].prod(3) - common
    return (common / union).where(_exists(boxes)[:, :, None] & _exists(found)[:, None], 0)


def _painted_boxes(found: Mapping[str, Tensor]) -> Tensor:
    """The box around the pixels that each step painted, [B, N, 4]; -1 if it painted nothing or found no object."""
    ink = found["painted"] > _PAINTED
    if "boxes" in found:
        ink = ink & _exists(found["boxes"])[..., None, None]
    return boxes_of(ink)


def _ratio(name: str, sums: MeanAndError) -> dict[str, Finding]:
    """R = sum m / sum t over images, with the standard error of a ratio: sd(m - R t) / (mean t sqrt(images))."""
    m, t, mm, mt, tt = sums.compute()[0].tolist()
    if t == 0:
        return {name: math.nan, f"{name}_stderr": math.nan}
    images, ratio = sum(objects_from_all_ranks(int(sums.count))), m / t
    variance = max(0.0, mm - 2 * ratio * mt + ratio**2 * tt)
    error = math.sqrt(variance / (images - 1)) / t if images > 1 else math.nan
    return {name: ratio, f"{name}_stderr": error}

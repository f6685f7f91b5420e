"""Segments against true objects: scikit-learn's index, known answers, and that the numbers of segments mean nothing."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from vae_lightning.distributions import DiagonalNormal
from vae_lightning.metrics import SceneScores, foreground_ari
from vae_lightning.metrics.segments import background_share, mean_iou, rand_index, shared_pixels
from vae_lightning.models import VAE
from vae_lightning.networks import MLP
from vae_lightning.synthetic import draw_coloured_shapes

TRUTH = draw_coloured_shapes(torch.arange(60), 24)["segmentation"]
GENERATOR = torch.Generator().manual_seed(0)
FOUND = torch.where(torch.rand(TRUTH.shape, generator=GENERATOR) < 0.8, 3 - TRUTH, torch.ones_like(TRUTH))
MODEL = VAE((1, 4, 4), 2, encoder=MLP, decoder=MLP, likelihood=DiagonalNormal).eval()


def scores(truth: Tensor, **found: Tensor) -> dict[str, Any]:
    metric = SceneScores()
    metric.begin(MODEL, None)
    x = torch.zeros(len(truth), 1, 4, 4)
    for rows in torch.arange(len(truth)).split(25):
        trace = replace(MODEL.trace({"x": x[rows]}), found={name: value[rows] for name, value in found.items()})
        metric.update(trace, {"x": x[rows], "segmentation": truth[rows]})
    return metric.compute()


def table(cells: list[list[int]]) -> Tensor:
    return torch.tensor([cells], dtype=torch.float64)


def test_the_index_over_all_pixels_is_scikit_learns() -> None:
    expected = [
        adjusted_rand_score(t.flatten().numpy(), f.flatten().numpy()) for t, f in zip(TRUTH, FOUND, strict=True)
    ]
    assert rand_index(shared_pixels(TRUTH, FOUND)).tolist() == pytest.approx(expected, abs=1e-12)


def test_an_image_alone_has_the_scores_that_it_has_among_others() -> None:
    """Also one that has no background, or one object."""
    full, one = TRUTH[:1].clamp(min=1), (TRUTH[:1] > 0).to(torch.uint8)
    together = torch.cat((TRUTH[:5], full, one))
    found = torch.cat((FOUND[:5], FOUND[:1], FOUND[:1]))
    for score in (rand_index, mean_iou, background_share):
        alone = [score(shared_pixels(t[None], f[None])).item() for t, f in zip(together, found, strict=True)]
        assert score(shared_pixels(together, found)).tolist() == pytest.approx(alone, nan_ok=True)
    assert math.isnan(alone[5])
    assert foreground_ari(together, found)[1][-2:].tolist() == [TRUTH[0].unique().numel() - 1, 1]


def test_one_object_tells_little() -> None:
    """1 whether the object has a segment of its own or shares one with everything, 0 if it is split in two."""
    truth = torch.zeros(3, 4, 4, dtype=torch.uint8)
    truth[:, :2] = 1
    found = truth.clone()
    found[1] = 0
    found[2, 0] = 2
    assert foreground_ari(truth, found)[0].tolist() == [1, 1, 0]
    assert rand_index(shared_pixels(truth, found)).tolist()[:2] == [1, 0]
    result = scores(truth, segmentation=found, segmentation_decoded=found)
    assert math.isnan(result["fg_ari"])  # no image has two objects
    assert math.isnan(result["fg_ari_decoded"])


def test_the_share_of_area_of_the_best_segments_one_to_one() -> None:
    """Background 8 of 10 in segment 0; object 1 all in segment 1, 6 of 8 there; object 2 has no segment left."""
    cells = [[8, 2, 0], [0, 6, 0], [4, 0, 0]]
    assert mean_iou(table(cells)).item() == pytest.approx((8 / 14 + 6 / 8 + 0) / 3)
    assert background_share(table(cells)).item() == pytest.approx(0.8)
    assert mean_iou(table([[0, 0], [3, 1]])).item() == pytest.approx(3 / 4)  # an image without background
    assert mean_iou(table([[5, 5], [3, 0], [0, 0]])).item() == pytest.approx(max(5 / 13 + 0, 5 / 10 + 3 / 8) / 2)


def test_the_best_segment_is_that_of_an_exhaustive_search() -> None:
    cells = torch.randint(1, 9, (20, 3, 4), generator=torch.Generator().manual_seed(1)).double()
    for t, found in zip(cells, mean_iou(cells).tolist(), strict=True):
        iou = [[t[i, j] / (t[i].sum() + t[:, j].sum() - t[i, j]) for j in range(4)] for i in range(3)]
        best = max(sum(iou[i][j] for i, j in enumerate(p)) / 3 for p in itertools.permutations(range(4), 3))
        assert found == pytest.approx(best.item())


def test_no_score_changes_if_the_slots_are_exchanged() -> None:
    """Slot 0 need not be the background."""
    used = torch.tensor([one.unique().numel() for one in FOUND])
    results = []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1], [3, 2, 1, 0]):
        found = torch.tensor(order, dtype=torch.uint8)[FOUND.long()]
        results.append(scores(TRUTH, segmentation=found, segmentation_decoded=found.flip(0), slots_used=used))
    means = {"fg_ari", "fg_ari_decoded", "ari", "miou", "background_share", "slots_used"}
    assert results[0].keys() == means | {f"{name}_stderr" for name in means}
    for result in results[1:]:
        assert result == pytest.approx(results[0], abs=1e-12)
    assert results[0]["slots_used"] == pytest.approx(used.double().mean().item())
    assert 0.5 < results[0]["miou"] < results[0]["background_share"] < 1
    assert results[0]["fg_ari_decoded"] < 0.2 < 0.5 < results[0]["fg_ari"]

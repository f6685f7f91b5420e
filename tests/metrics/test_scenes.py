"""What a model finds in a scene against the truth: known answers, scikit-learn's index, and what is left out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from tests.metrics.test_found import QUIET
from vae_lightning.data import MultiDigits
from vae_lightning.distributions import Binomial
from vae_lightning.metrics import Evaluation, MeanAndError, SceneScores, foreground_ari
from vae_lightning.metrics.segments import best_pairs
from vae_lightning.models import VAE
from vae_lightning.trace import Trace
from vae_lightning.types import Batch, UserError

MODEL = VAE((1, 24, 24), latent_size=2, likelihood=partial(Binomial, num_steps=16)).eval()
DATA = MultiDigits(num_images=(20, 20, 200), eval_batch_size=60)
NONE = [-1.0, -1.0, -1.0, -1.0]


def scores(
    *pairs: tuple[Mapping[str, Tensor], Mapping[str, Tensor]], data: MultiDigits | None = None
) -> dict[str, Any]:
    """The results of batches of what was found and the truth."""
    metric = SceneScores()
    metric.begin(MODEL, data)
    for found, truth in pairs:
        x = torch.zeros(len(next(iter(found.values()))), 1, 24, 24)
        trace, batch = replace(MODEL.trace({"x": x}), found=found), {"x": x, **truth}
        assert metric.why_not_of_batch(trace, batch) is None
        metric.update(trace, batch)
    return metric.compute()


def truth_of(batch: Batch) -> dict[str, Tensor]:
    """A perfect model's findings: steps in another order than the digits, and the ink of the digits painted."""
    count, boxes, objects = batch["count"], batch["boxes"], batch["segmentation"]
    there = torch.arange(2) < count[:, None]
    swapped = boxes.where(count[:, None, None] < 2, boxes.flip(1))
    renamed = torch.where((objects > 0) & (count[:, None, None] == 2), 3 - objects.int(), objects.int())
    steps = torch.arange(1, 3)[:, None, None]
    painted = (renamed[:, None] == steps).float()
    return {
        **{"count": count, "count_sampled": count, "presence": there.float(), "boxes": swapped},
        **{"segmentation": renamed.to(torch.uint8), "painted": painted},
    }


def test_a_perfect_model_has_every_score_at_its_best() -> None:
    batches = list(DATA.test_dataloader())
    found = scores(*((truth_of(batch), batch) for batch in batches), data=DATA)
    names = ("count_accuracy", "count_accuracy_sampled", "box_recall", "extent_iou", "fg_ari")
    best = (*names, "ari", "miou", "background_share")
    assert {name: found[name] for name in best} == dict.fromkeys(best, 1.0)
    assert {name: found[f"{name}_stderr"] for name in best} == dict.fromkeys(best, 0.0)
    counts = torch.bincount(torch.cat([batch["count"] for batch in batches]), minlength=3)
    table = torch.tensor([found[f"count_confusion/{n}"] for n in range(3)])
    assert torch.equal(table, counts.diag().float())
    assert [found["presence/1"], found["presence/2"]] == pytest.approx(
        [1 - counts[0].item() / 200, counts[2].item() / 200]
    )


def test_counts() -> None:
    """3 of 5 right, 2 of 5 by samples; the sixth image is unknown; the table has a row for each count of the data."""
    rows = {"count": [0, 1, 3, 1, 2, 1], "count_sampled": [0, 0, 3, 0, 2, 1]}
    found = {**{name: torch.tensor(row) for name, row in rows.items()}, "presence": torch.full((6, 4), 0.25)}
    truth = {"count": torch.tensor([0, 1, 2, 2, 2, -1])}
    parts = [
        ({k: v[rows] for k, v in found.items()}, {"count": truth["count"][rows]}) for rows in ([0, 1, 2], [3, 4, 5])
    ]
    result = scores(*parts, data=MultiDigits(max_digits=3))
    assert result["count_accuracy"] == pytest.approx(0.6)
    assert result["count_accuracy_stderr"] == pytest.approx(math.sqrt(0.6 * 0.4 / 4))
    assert result["count_accuracy_sampled"] == pytest.approx(0.4)
    rows_of_table = [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    assert [result[f"count_confusion/{n}"] for n in range(4)] == rows_of_table
    assert [result[f"presence/{i}"] for i in range(1, 5)] == [0.25] * 4


def boxes(*images: list[list[float]]) -> Tensor:
    return torch.tensor([[*image, *[NONE] * (3 - len(image))] for image in images])


def test_a_found_box_serves_for_one_true_box() -> None:
    """One box around both digits is right once; two boxes around the first and one around both are right twice."""
    left, right, both = [4.0, 0.0, 8.0, 6.0], [4.0, 12.0, 8.0, 6.0], [-2.0, -1.0, 20.0, 22.0]
    true = boxes([left, right], [left, right], [left, right], [left], [])
    found = boxes([both], [both, left, left], [right, [0, 0, 3, 3]], [[4, 3.5, 8, 6]], [both])
    result = scores(({"boxes": found}, {"boxes": true}))
    assert result.keys() == {"box_recall", "box_recall_stderr"}
    assert result["box_recall"] == pytest.approx((1 + 2 + 1 + 0 + 0) / 7)
    residual = np.array([1, 2, 1, 0, 0]) - result["box_recall"] * np.array([2, 2, 2, 1, 0])
    assert result["box_recall_stderr"] == pytest.approx(residual.std(ddof=1) / 1.4 / math.sqrt(5))


def test_the_error_of_a_share_of_one_box_an_image_is_that_of_a_mean() -> None:
    box, generator = [4.0, 0.0, 8.0, 6.0], torch.Generator().manual_seed(0)
    hits = torch.rand(50, generator=generator) < 0.7
    found = boxes(*([box] if hit else [] for hit in hits.tolist()))
    result = scores(
        ({"boxes": found[:20]}, {"boxes": boxes(*[[box]] * 20)}),
        ({"boxes": found[20:]}, {"boxes": boxes(*[[box]] * 30)}),
    )
    mean = MeanAndError()
    mean.update(hits)
    assert [result["box_recall"], result["box_recall_stderr"]] == pytest.approx([one.item() for one in mean.compute()])


def test_the_extent_of_what_was_painted() -> None:
    """A step that paints 4 x 6 of 8 x 6 and a faint halo, one that found no object, and a digit that none painted."""
    painted = torch.zeros(1, 3, 24, 24)
    painted[0, 0, 3:9, 0:8] = 0.1
    painted[0, 0, 4:8, 0:6] = 0.9
    painted[0, 1, 4:12, 12:18] = 0.9
    true, found = boxes([[4, 0, 8, 6], [4, 12, 8, 6]]), boxes([[0, 0, 12, 12]])
    assert scores(({"painted": painted, "boxes": found}, {"boxes": true}))["extent_iou"] == pytest.approx(0.25)
    assert scores(({"painted": painted}, {"boxes": true}))["extent_iou"] == pytest.approx(0.75)


def test_the_best_pairs_are_those_of_an_exhaustive_search() -> None:
    tables = torch.rand(40, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    best = [max(sum(t[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(4), 3)) for t in tables]
    assert torch.allclose(best_pairs(tables), torch.stack(best))
    assert torch.allclose(best_pairs(tables.mT), torch.stack(best))


def test_the_index_is_scikit_learns_on_random_scenes() -> None:
    generator = torch.Generator().manual_seed(0)
    for case in range(300):
        most, segments, size = (int(torch.randint(1, top, (), generator=generator)) for top in (6, 7, 14))
        truth = torch.randint(0, most + 1, (4, size, size), generator=generator)
        found = torch.randint(0, segments + 1, truth.shape, generator=generator)
        if case % 2:  # a model that is mostly right
            found = torch.where(torch.rand(truth.shape, generator=generator) < 0.8, (truth + 1) % (most + 2), found)
        index, num_objects = foreground_ari(truth.to(torch.uint8), found)
        for k in range(4):
            ink = truth[k] > 0
            assert num_objects[k] == len(truth[k][ink].unique())
            if ink.any():
                expected = adjusted_rand_score(truth[k][ink].numpy(), found[k][ink].numpy())
                assert index[k].item() == pytest.approx(expected, abs=1e-12)
            else:
                assert index[k].isnan()


def test_the_numbers_of_segments_mean_nothing() -> None:
    batch = next(iter(DATA.test_dataloader()))
    found = torch.randint(0, 4, batch["segmentation"].shape, generator=torch.Generator().manual_seed(2))
    renamed = torch.tensor([7, 0, 200, 3])[found]
    results = [scores(({"segmentation": one}, batch)) for one in (found, renamed)]
    assert results[0] == results[1]
    assert abs(results[0]["fg_ari"]) < 0.1


def test_images_of_one_object_do_not_flatter_the_index() -> None:
    """One segment for everything has 1 on an image of one object and 0 on one of two; only the second counts."""
    truth = torch.zeros(3, 4, 4, dtype=torch.uint8)
    truth[1:, 0, :2] = 1
    truth[2, 3] = 2
    one = torch.ones(3, 4, 4, dtype=torch.uint8)
    index, num_objects = foreground_ari(truth, one)
    assert index[0].isnan()
    assert (index[1:].tolist(), num_objects.tolist()) == ([1.0, 0.0], [0, 1, 2])
    assert scores(({"segmentation": one}, {"segmentation": truth}))["fg_ari"] == 0
    assert math.isnan(scores(({"segmentation": one[:2]}, {"segmentation": truth[:2]}))["fg_ari"])


def test_a_set_of_unknown_scenes_has_no_scores() -> None:
    batch = next(iter(DATA.test_dataloader()))
    result = scores((truth_of(batch), {**batch, "count": torch.full_like(batch["count"], -1)}))
    assert all(math.isnan(value) for value in result.values())


COUNT, BOXES, MAP = torch.ones(3, dtype=torch.long), torch.ones(3, 2, 4), torch.ones(3, 24, 24)


@pytest.mark.parametrize(
    ("found", "batch", "says"),
    [
        ({}, {"count": COUNT}, "the model finds nothing"),
        ({"label": COUNT}, {"count": COUNT}, "the model finds no count; .* no boxes; .* no segmentation"),
        ({"count": COUNT, "boxes": BOXES}, {}, "the batch has no count; the batch has no boxes"),
        ({"count": COUNT[:, None]}, {"count": COUNT}, r"found count is \[B, 1\], the batch's count \[B\]"),
        ({"boxes": BOXES[..., :3]}, {"boxes": BOXES}, r"found boxes is \[B, 2, 3\], the batch's boxes \[B, 2, 4\]"),
        ({"painted": MAP}, {"boxes": BOXES}, r"found painted is \[B, 24, 24\], the batch's boxes \[B, 2, 4\]"),
        (
            {"segmentation": MAP},
            {"segmentation": MAP[:, 1:]},
            r"segmentation is .* the batch's segmentation \[B, 23, 24\]",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, Tensor], batch: dict[str, Tensor], says: str
) -> None:
    x = torch.zeros(3, 1, 24, 24)
    trace = replace(MODEL.trace({"x": x}), found=found)
    monkeypatch.setattr(MODEL, "trace", lambda *_: trace)
    with pytest.raises(UserError, match=f"SceneScores does not apply: .*{says}"):
        Evaluation(also=[SceneScores()])._begin(MODEL, None, {"x": x, **batch})


class Oracle(VAE):
    """A VAE that is told the truth about every second image and finds nothing in the others."""

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        found = truth_of(batch)
        there = torch.arange(len(batch["x"])) % 2 == 0
        found["count"] = found["count"] * there
        found["boxes"] = found["boxes"].where(there[:, None, None], -1)
        return replace(super().trace(batch, num_samples, step), found=found)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_test_scores_scenes_without_being_asked() -> None:
    evaluation = Evaluation(num_samples=1)
    trainer = pl.Trainer(accelerator="cpu", callbacks=[evaluation], **QUIET)
    trainer.test(Oracle((1, 24, 24), 2, likelihood=partial(Binomial, num_steps=16)), datamodule=DATA, verbose=False)
    batches = list(DATA.test_dataloader())
    there = torch.cat([torch.arange(len(batch["x"])) % 2 == 0 for batch in batches])
    count = torch.cat([batch["count"] for batch in batches])
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert metrics["test/count_accuracy"] == pytest.approx((there | (count == 0)).double().mean().item())
    assert metrics["test/box_recall"] == pytest.approx((count[there].sum() / count.sum()).item())
    assert metrics["test/extent_iou"] == pytest.approx(metrics["test/box_recall"])
    assert metrics["test/fg_ari"] == 1
    results = evaluation.results()
    missed = int(((count == 2) & ~there).sum())
    assert results["details"]["count_confusion/2"] == [missed, 0, int((count == 2).sum()) - missed]
    assert results["units"]["box_recall"] == "share of true boxes, 1 at best"
    evaluation = Evaluation(num_samples=1)
    pl.Trainer(accelerator="cpu", callbacks=[evaluation], **QUIET).test(MODEL, datamodule=DATA, verbose=False)
    assert evaluation.left_out["SceneScores"] == "the model finds nothing (Trace.found is empty)"

"""What a model reads off x against the truth of the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from vae_lightning.data import Digits, ImageDataModule
from vae_lightning.distributions import Binomial
from vae_lightning.metrics import Evaluation, Evaluator, FoundAccuracy
from vae_lightning.models import VAE
from vae_lightning.trace import Trace
from vae_lightning.types import Batch, UserError

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


class Guesser(VAE):
    """A VAE that finds the label 1 in every image, and a count that no batch holds."""

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        trace = super().trace(batch, num_samples, step)
        ones = torch.ones(len(batch["x"]), dtype=torch.long)
        return trace if self.training else replace(trace, found={"label": ones, "count": ones})


MODEL = Guesser((1, 8, 8), latent_size=2, likelihood=partial(Binomial, num_steps=16)).eval()
TRACE = MODEL.trace({"x": torch.zeros(3, 1, 8, 8)})


def scores(*pairs: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]) -> dict[str, Any]:
    """The results of batches of what was found and the truth."""
    metric = FoundAccuracy()
    metric.begin(MODEL, None)
    for found, truth in pairs:
        trace, batch = replace(TRACE, found=found), {"x": TRACE.x, **truth}
        assert metric.why_not_of_batch(trace, batch) is None
        metric.update(trace, batch)
    return metric.compute()


def test_the_share_of_right_labels_and_its_error() -> None:
    """Right, wrong, unknown | right, right, wrong: 3 of the 5 that are known."""
    batches = [([1, 2, 3], [1, 0, -1]), ([4, 5, 6], [4, 5, 7])]
    found = scores(*(({"label": torch.tensor(f)}, {"label": torch.tensor(t)}) for f, t in batches))
    assert found == {
        "found_accuracy/label": pytest.approx(0.6),
        "found_accuracy/label_stderr": pytest.approx(math.sqrt(0.6 * 0.4 * 5 / 4 / 5)),
    }


def test_an_example_counts_once_however_many_numbers_of_it_are_known() -> None:
    """Tokens [B, T]: 1 of 4, 1 of 1, none known; an entry without a truth and one of real numbers are left out."""
    tokens = torch.tensor([[1, 9, 9, 9], [2, 9, 9, 9], [9, 9, 9, 9]])
    truth = torch.tensor([[1, 1, 1, 1], [2, -1, -1, -1], [-1, -1, -1, -1]])
    rest = {"count": torch.ones(3, dtype=torch.long), "positions": torch.rand(3, 2)}
    found = scores(({"tokens": tokens, **rest}, {"tokens": truth, "positions": torch.rand(3, 2)}))
    assert found["found_accuracy/tokens"] == pytest.approx((0.25 + 1) / 2)
    assert found.keys() == {"found_accuracy/tokens", "found_accuracy/tokens_stderr"}


def test_flags_may_be_bool_and_a_set_without_a_truth_is_unknown() -> None:
    flags = torch.tensor([True, False, True])
    assert scores(({"done": flags}, {"done": torch.tensor([1, 1, 1])}))["found_accuracy/done"] == pytest.approx(2 / 3)
    unknown = scores(({"label": torch.ones(3, dtype=torch.long)}, {"label": torch.full((3,), -1)}))
    assert math.isnan(unknown["found_accuracy/label"])


LABELS = torch.ones(3, dtype=torch.long)


@pytest.mark.parametrize(
    ("found", "batch", "says"),
    [
        ({}, {"label": LABELS}, "the model finds nothing"),
        ({"label": LABELS}, {}, "found has label, and the batch has no label"),
        ({"label": LABELS, "count": LABELS}, {}, "no label; the count is scored as count_accuracy"),
        ({"label": LABELS.float()}, {"label": LABELS}, "label is not of whole numbers: found is torch.float32"),
        ({"label": LABELS}, {"label": LABELS[:, None]}, r"found label is \[B\], the batch's is \[B, 1\]"),
        ({"segmentation": LABELS}, {"segmentation": LABELS}, "the numbers of segments have no order"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, Tensor], batch: dict[str, Tensor], says: str
) -> None:
    evaluation = Evaluation(also=[FoundAccuracy()])
    monkeypatch.setattr(MODEL, "trace", lambda *_: replace(TRACE, found=found))
    with pytest.raises(UserError, match=f"FoundAccuracy does not apply: .*{says}"):
        evaluation._begin(MODEL, None, {"x": TRACE.x, **batch})


class TwoArguments(Evaluator):
    """A user's metric, with the two arguments that `why_not_applicable` has."""

    units: ClassVar = {"rows": "1"}

    def why_not_applicable(self, trace: Trace, data: ImageDataModule | None) -> str | None:
        return None

    def begin(self, model: Any, data: ImageDataModule | None) -> None:
        self.rows = 0

    def update(self, trace: Trace, batch: Batch) -> None:
        self.rows += len(batch["x"])

    def compute(self) -> dict[str, Any]:
        return {"rows": float(self.rows)}


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_test_scores_what_the_model_finds_beside_a_metric_of_the_user() -> None:
    """1 is the label of as many digits as are guessed right; a model that finds nothing has no such number."""
    data = Digits(eval_batch_size=500)
    for model in (MODEL, VAE((1, 8, 8), 2, likelihood=partial(Binomial, num_steps=16))):
        evaluation = Evaluation(also=[TwoArguments()], num_samples=1)
        trainer = pl.Trainer(accelerator="cpu", callbacks=[evaluation], **QUIET)
        trainer.test(model, datamodule=data, verbose=False)
        labels = torch.cat([batch["label"] for batch in data.test_dataloader()])
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        assert metrics["test/rows"] == len(labels)
        if model is MODEL:
            assert metrics["test/found_accuracy/label"] == pytest.approx((labels == 1).double().mean().item())
            assert metrics["test/found_accuracy/label_stderr"] > 0
            assert evaluation.results()["units"]["found_accuracy"] == "share, 1 at best"
        else:
            assert "test/found_accuracy/label" not in metrics
            assert "the model finds nothing" in evaluation.left_out["FoundAccuracy"]

"""What a trace holds beside x: its shapes, its support, the fields of the batch that it is made from, predictions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal
from torch.utils.data import DataLoader

from vae_lightning.distributions import Masked
from vae_lightning.metrics.collapse import use_of_latents
from vae_lightning.metrics.evaluator import mean_draws
from vae_lightning.metrics.formatting import in_words_of
from vae_lightning.models import LatentVariableModel
from vae_lightning.models.batches import check_labels
from vae_lightning.models.codes import predictions
from vae_lightning.models.trace_checks import check_trace
from vae_lightning.trace import Latent, Observed, Trace
from vae_lightning.types import Batch, UserError

B = 4
KNOWN = torch.tensor([True, False, True, True])
LABEL = torch.tensor([0, -1, 2, 1])


def trace(num_samples: int = 3, **fields: Any) -> Trace:
    """A trace whose only latent is one number, with an event of shape ()."""
    q = Normal(torch.linspace(-1, 1, B), 0.5)
    z = q.sample((num_samples,))
    return Trace(torch.zeros(B), Normal(z, 1.0), {"z": Latent(z, q, Normal(0.0, 1.0))}, **fields)


def observed(value: Tensor, p: Distribution, known: Tensor | None = None) -> dict[str, Any]:
    return {"observed": {"seen": Observed(value, p, known)}}


FITTING: list[dict[str, Any]] = [
    observed(torch.zeros(B), Normal(torch.zeros(3, B), 1.0)),
    observed(torch.zeros(B), Bernoulli(logits=torch.zeros(B))),
    observed(LABEL, Categorical(logits=torch.zeros(B, 3)), KNOWN),
    {"costs": {"mask": torch.zeros(3, B)}},
    {"costs": {"mask": torch.zeros(B)}, "example_weight": torch.ones(B)},
]


@pytest.mark.parametrize("fields", FITTING)
def test_what_fits_is_taken(fields: dict[str, Any]) -> None:
    check_trace("M", {}, trace(**fields))


WRONG: list[tuple[Callable[[], dict[str, Any]], str]] = [
    # [B, 1] would be broadcast to [B, B]: every example against the value of every other
    (lambda: observed(torch.zeros(B, 1), Normal(torch.zeros(3, B), 1.0)), r"seen is \[4, 1\].*must be \[4\]"),
    (lambda: observed(torch.zeros(B), Normal(0.0, 1.0)), r"batch shape \[\].*\[3, 4\] or \[4\]"),
    (lambda: observed(LABEL, Categorical(logits=torch.zeros(B, 3))), "seen has the value -1, to which its p"),
    (lambda: observed(LABEL, Categorical(logits=torch.zeros(B, 2)), KNOWN), "seen has the value 2"),
    (
        lambda: observed(torch.zeros(B), Normal(torch.zeros(B), 1.0), KNOWN[:, None]),
        r"known of observed seen is \[4, 1",
    ),
    (lambda: {"costs": {"mask": torch.zeros(B, 1)}}, r"cost mask is \[4, 1\]; it must be \[3, 4\] or \[4\]"),
    (lambda: {"costs": {"mask": torch.zeros(())}}, r"cost mask is \[\]"),
    (lambda: {"found": {"label": torch.zeros(3, B)}}, r"found label is \[3, 4\]; it must be \[4, ...\]"),
    (lambda: {"log_shares": torch.zeros(B)}, r"log_shares is \[4\]; it must be \[3, 4\]"),
    (lambda: {"example_weight": torch.ones(3, B)}, r"example_weight is \[3, 4\]; it must be \[4\]"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_does_not_fit_is_one_line(fields: Callable[[], dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        check_trace("M", {}, trace(**fields()))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [1, B, 7])
@pytest.mark.parametrize("whose", ["q", "p", "both"])
def test_a_density_of_single_dimensions_is_refused(size: int, whose: str) -> None:
    """With as many dimensions as examples the KL [B, D] would have been averaged over examples, without a word."""
    q: Distribution = Normal(torch.zeros(B, size), 0.5)
    p: Distribution = Normal(torch.zeros(size), 1.0)
    z = q.sample((3,))
    q = Independent(q, 1) if whose == "p" else q
    p = Independent(p, 1) if whose == "q" else p
    latent = {"z": Latent(z, q, p)}
    with pytest.raises(UserError, match=rf"latent z: .*\[3, 4, {size}\].*\[3, 4\]: .*Independent\(q, 1\)") as error:
        check_trace("M", {}, replace(trace(), latents=latent))
    assert "\n" not in str(error.value)


def test_objects_without_exists_are_refused() -> None:
    q = Independent(Normal(torch.zeros(B, B, 2), 0.5), 1)  # B objects of two dimensions
    z = q.sample((3,))
    objects = Latent(z, q, Independent(Normal(torch.zeros(2), 1.0), 1))
    with pytest.raises(UserError, match=r"Latent\(exists=...\), \[K, B, \*objects\]"):
        check_trace("M", {}, replace(trace(), latents={"z": objects}))
    check_trace("M", {}, replace(trace(), latents={"z": replace(objects, exists=torch.ones(3, B, B))}))


def enumerating(num_samples: int, num_values: int) -> Trace:
    """A trace of `num_samples` samples and three values, which says that it has `num_values`."""
    c = torch.arange(3).repeat(num_samples)[:, None].expand(-1, B)
    q = Categorical(torch.tensor([0.7, 0.2, 0.1]).expand(B, 3))
    shares = q.log_prob(c) - math.log(num_samples)
    p_x = Normal(torch.zeros(c.shape), 1.0)
    latents = {"c": Latent(c, q, Categorical(torch.ones(3)), enumerated=True)}
    return Trace(torch.zeros(B), p_x, latents, shares, num_values)


@pytest.mark.parametrize("num_values", [1, 2])
def test_another_number_of_values_than_the_rows_run_over_is_refused(num_values: int) -> None:
    """The shares of an example sum to 1 all the same, and the estimate of log p(x) would be off by a factor."""
    check_trace("M", {}, enumerating(2, 3))
    with pytest.raises(UserError, match=r"M: .* num_values must be C, the number of values") as error:
        check_trace("M", {}, enumerating(2, num_values))
    assert "\n" not in str(error.value)


class Own(Normal):
    """A distribution of a user's own that does not say what its support is."""

    @property
    def support(self) -> Any:  # type: ignore[override]
        raise NotImplementedError


def test_a_distribution_without_a_support_is_taken() -> None:
    check_trace(
        "M", {}, replace(trace(**observed(torch.zeros(B), Own(torch.zeros(B), 1.0))), p_x=Own(torch.zeros(3, B), 1.0))
    )


class Hidden(LatentVariableModel):
    """Sequences of two steps, of which a batch of the second half of the data hides both."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        seen = (batch["x"] > 0).float()
        p = Independent(Normal(self.weight.expand(num_samples, len(seen), 2), 1.0), 1)
        return Trace(batch["x"], Masked(p, seen))

    def sample(self, n: int) -> Tensor:
        return torch.zeros(n, 2)


def test_a_batch_that_hides_every_step_does_not_spoil_the_mean_of_an_epoch(tmp_path: Path) -> None:
    trainer = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False)
    batches = [{"x": torch.ones(3, 2)}, {"x": -torch.ones(3, 2)}]
    (found,) = trainer.validate(Hidden(), DataLoader(batches, batch_size=None), verbose=False)
    assert found["val/elbo_per_step"] == pytest.approx(Normal(0.0, 1.0).log_prob(torch.tensor(1.0)).item())


class Nothing(Hidden):
    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        return None  # type: ignore[return-value]


def test_a_trace_that_is_none_is_one_line() -> None:
    with pytest.raises(UserError, match="Nothing: trace returns a NoneType; it must return a Trace"):
        Nothing().predict_step({"x": torch.zeros(B)}, 0)


class Reading(LatentVariableModel):
    """Reads a field that is named on construction."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        return replace(trace(num_samples), x=batch[self.name], found={"own": {"own": batch["x"]}[self.name]})

    def sample(self, n: int) -> Tensor:
        return torch.zeros(n)


def test_a_field_that_the_batch_lacks_is_named() -> None:
    with pytest.raises(UserError, match="Reading needs reward of each example, and the batch has x, action; ") as error:
        Reading("reward").predict_step({"x": torch.zeros(B), "action": torch.zeros(B)}, 0)
    assert "\n" not in str(error.value)


def test_a_key_error_of_the_models_own_is_left_alone() -> None:
    with pytest.raises(KeyError, match="x"):
        Reading("x").predict_step({"x": torch.zeros(B)}, 0)


def test_a_latent_of_one_number_has_one_dimension() -> None:
    one = trace()
    use = use_of_latents(one)
    for name in ("kl_by_dimension/z", "mean/z", "variance/z", "scale/z"):
        assert use[name].shape == (B, 1), name
    torch.testing.assert_close(use["kl_by_dimension/z"][:, 0], one.kl()["z"])
    assert torch.equal(mean_draws(one, one.latents["z"]), torch.linspace(-1, 1, B)[None, :, None])


def test_predictions_hold_what_is_found() -> None:
    label = torch.arange(B)
    rows = predictions("M", lambda *_: trace(), {"x": torch.zeros(B)}, trace(found={"label": label}), False)
    assert rows.keys() == {"z_mean", "z_scale", "found_label"}
    assert torch.equal(rows["found_label"], label)
    nothing = Trace(torch.zeros(B), Normal(torch.zeros(1, B), 1.0))
    with pytest.raises(UserError, match="M has nothing to predict: it samples no latent"):
        predictions("M", lambda *_: nothing, {"x": torch.zeros(B)}, nothing, False)


def test_words_of_images_and_of_examples() -> None:
    line = "another image's z; more test images, or a larger --collapse.num_images; runs/a/images/x.png; nats/image"
    assert in_words_of(line, True) == line
    expected = "another example's z; more test examples, or a larger --collapse.num_images; runs/a/images/x.png; nats/"
    assert in_words_of(line, False).startswith(expected[:80])
    assert in_words_of("12 nats/image", False) == "12 nats/example"


@pytest.mark.parametrize(
    ("label", "num_classes", "fits"),
    [
        (torch.tensor([0, 4]), 5, True),
        (torch.tensor([-1, 5]), 5, False),
        (torch.tensor([-1, 5]), None, True),  # a model that has no use for the number of classes
        (torch.tensor([[0, 9]]), 5, True),  # factors, which are no classes
        (None, 5, True),
    ],
)
def test_a_label_is_one_of_the_models_classes(label: Tensor | None, num_classes: int | None, fits: bool) -> None:
    batch = {"x": torch.zeros(2), **({} if label is None else {"label": label})}
    if fits:
        check_labels(batch, num_classes, "train")
        return
    with pytest.raises(UserError, match=r"the train loader's first batch has the label 5; .* labels are 0 \.\. 4; "):
        check_labels(batch, num_classes, "train")

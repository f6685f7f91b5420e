"""The verdict on the latents: models with a known problem, and numbers that contradict each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.metrics.test_collapse import healthy, last, silent_trainer
from tests.models.linear_gaussian import IMAGE_SHAPE
from vae_lightning.data import Digits
from vae_lightning.distributions import IAF, Binomial
from vae_lightning.metrics import CollapseReport, Evaluation
from vae_lightning.metrics.verdict import Verdict, judge
from vae_lightning.models import VAE

X = torch.randn(400, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(1))


def raw(sigma: float) -> Tensor:
    return torch.log(torch.expm1(torch.tensor(sigma)))


def same_for_all(mean: float, sigma: float, rows: slice = slice(None)) -> Callable[[VAE], None]:
    """q(z_d|x) = N(mean, sigma^2) for every image, in the dimensions of `rows`."""

    def change(model: VAE) -> None:
        weight, bias = last(model.encoder).weight.view(2, 2, -1), last(model.encoder).bias.view(2, 2)
        weight[:, rows], bias[0, rows], bias[1, rows] = 0, mean, raw(sigma)

    return change


def of_width(sigma: float) -> Callable[[VAE], None]:
    """Give q(z|x) this sigma and the means of the exact posterior."""

    def change(model: VAE) -> None:
        last(model.encoder).weight[2:] = 0
        last(model.encoder).bias[2:] = raw(sigma)

    return change


def deaf_decoder(model: VAE) -> None:
    last(model.decoder).weight.zero_()


def leave_it(model: VAE) -> None: ...


def verdict_of(model: VAE, *others: pl.Callback) -> Verdict:
    """The verdict of a Lightning test in which the report stands before the other callbacks."""
    report = CollapseReport()
    torch.manual_seed(0)
    batches = DataLoader([{"x": part} for part in X.split(90)], batch_size=None)  # type: ignore[arg-type]
    silent_trainer(report, *others).test(model, batches, verbose=False)
    assert report.verdict is not None
    assert report.findings == report.verdict.findings
    return report.verdict


SAYS_NOTHING = "z is not used: it carries almost no information about the image ("
CASES = {
    "healthy": (leave_it, []),
    "collapsed to the prior": (same_for_all(0, 1), ["z is not used: KL 0 nats an image, q(z|x) has collapsed"]),
    "away from the prior": (same_for_all(3, 1), [SAYS_NOTHING]),
    "narrower than the prior": (same_for_all(0, 0.2), [SAYS_NOTHING]),
    "a decoder that ignores z": (
        deaf_decoder,
        ["the decoder ignores its latents: with the z of another image, log p(x|z) changes"],
    ),
    "a dead dimension": (same_for_all(0, 1, slice(1, 2)), ["1 of 2 dimensions of z are dead"]),
    "a dimension alike for all": (
        same_for_all(0.5, 1, slice(1, 2)),
        ["1 of 2 dimensions of z cost KL without information"],
    ),
    "no width": (of_width(1e-4), ["2 of 2 dimensions of z are all but deterministic"]),
    "great width": (of_width(50.0), [SAYS_NOTHING, "2 of 2 dimensions of z have a q(z|x) more than 10 times as wide"]),
}


@pytest.mark.filterwarnings("ignore")  # Lightning's, of loaders without workers
@pytest.mark.parametrize("is_evaluated", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_each_sickness_by_its_name(case: str, is_evaluated: bool) -> None:
    """Each problem is found, with one line and a remedy, and nothing else is.

    This holds with and without the mutual information and the active units.
    """
    break_it, said = CASES[case]
    model = healthy().float()
    with torch.no_grad():
        break_it(model)
    verdict = verdict_of(model, *([Evaluation()] if is_evaluated else []))
    assert [line[: len(start)] for line, start in zip(verdict.findings, said, strict=True)] == said
    assert all("Remedy" in line and "\n" not in line for line in verdict.findings)
    is_sick = any("not used" in line or "ignores" in line for line in said)
    assert bool(verdict.summary) == (not is_sick)
    if not is_sick:
        assert verdict.summary.startswith("all in use: z " if case == "healthy" else "in use: z ")
        assert "with the z of another image, log p(x|z) falls by " in verdict.summary


@pytest.mark.filterwarnings("ignore")  # as above
def test_the_numbers_are_those_of_the_evaluation() -> None:
    """The verdict names the numbers of `Evaluation`, or the moments of q that replace them."""
    evaluation, away = Evaluation(), healthy().float()
    with torch.no_grad():
        same_for_all(3, 1)(away)
    (line,) = verdict_of(away, evaluation).findings
    assert "(mutual information 0.000 +- 0.000 nats, active_units 0 of 2, KL 9 nats an image)" in line
    (line,) = verdict_of(away).findings
    assert "(mutual information about 0 nats (by the moments of q), KL 9 nats an image)" in line
    said = verdict_of(healthy().float(), evaluation).summary
    found = evaluation.numbers
    information, error = found["mutual_information/z"], found["mutual_information/z_stderr"]
    assert f"z mutual information {information:.3f} +- {error:.3f} nats, active_units 2 of 2, KL " in said


@pytest.mark.filterwarnings("ignore")  # as above
def test_information_at_its_ceiling_is_said_to_be() -> None:
    """Codes of no width identify their image: the information is log N without an error, and the line explains it."""
    model = healthy().float()
    with torch.no_grad():
        of_width(1e-4)(model)
    said = verdict_of(model, Evaluation()).summary
    assert (
        f"z mutual information {math.log(400):.3f} +- ? nats (log 400 = {math.log(400):.3f} nats: the mutual "
        "information cannot be" in said
    )


@pytest.mark.filterwarnings("ignore")  # as above
@pytest.mark.parametrize("is_evaluated", [True, False])
def test_a_flow_is_judged_by_the_rest(is_evaluated: bool) -> None:
    """A flow has no moments and no information; its KL, units and swap cost are known.

    In an untrained model z does not distinguish images, though the decoder reads z.
    """
    data, report = Digits(), CollapseReport()
    torch.manual_seed(0)
    model = VAE(data.image_shape, 3, posterior=partial(IAF, num_steps=1), likelihood=partial(Binomial, num_steps=16))
    trainer = silent_trainer(*([Evaluation()] if is_evaluated else []), report)
    trainer.test(model, datamodule=data, verbose=False)
    assert report.verdict is not None
    assert report.verdict.summary == ""
    (line,) = report.findings
    assert line.startswith(
        f"{SAYS_NOTHING}active_units 0, KL " if is_evaluated else "it is not clear whether z is used (KL "
    )


# -- numbers that disagree ---------------------------------------------------------------------------------------------


def judged(
    cost: float,
    cost_error: float,
    information: tuple[float, float] | None = None,
    active: float | None = None,
    **kls: float,
) -> Verdict:
    """The verdict of 100 images with this swap cost and error; the latents have these KLs, by default z has 5."""
    spread = torch.linspace(-1, 1, 100, dtype=torch.float64)
    use = {"swap_cost": cost + 10 * cost_error * spread / spread.std()}
    use |= {f"kl/{name}": torch.full((100,), kl) for name, kl in (kls or {"z": 5.0}).items()}
    found = {}
    if information is not None:
        found |= {"mutual_information/z": information[0], "mutual_information/z_stderr": information[1]}
    if active is not None:
        found["active_units/z"] = active
    return judge(use, found)


@pytest.mark.parametrize(
    ("cost", "information", "active", "said"),
    [
        ((0.3, 0.4), (0.1, 0.05), 1.0, "it is not clear whether z is used (mutual information 0.100 +- 0.050 nats, ac"),
        (
            (0.3, 0.4),
            (3.0, 0.05),
            1.0,
            "it is not clear whether the decoder uses its latents: with the z of another image, log p(x|z) falls by",
        ),
        ((0.0, 0.04), (3.0, 0.05), 1.0, "the decoder does not use the information in its latents"),
        ((0.0, 0.04), (3.0, math.nan), 1.0, "the decoder does not use the information in its latents"),
        ((3.0, 0.4), (0.05, 0.02), 1.0, SAYS_NOTHING),  # and the line names the 3 nats
        ((0.0, 0.004), (0.05, 0.02), 1.0, SAYS_NOTHING),
        ((0.3, 0.4), None, 0.0, SAYS_NOTHING),
        ((0.3, 0.4), None, 1.0, "it is not clear whether the decoder uses its latents"),
        ((0.3, 0.4), None, None, "it is not clear whether z is used (KL 5 nats an image)"),
        ((0.3, 0.4), None, math.nan, "it is not clear whether z is used (KL 5 nats an image)"),
        ((3.0, 0.4), None, 0.0, None),
        ((3.0, 0.4), None, None, None),
        ((3.0, 0.4), (0.15, 0.1), 0.0, None),
        ((3.0, 0.4), (3.0, 0.1), 0.0, None),
        ((3.0, 0.4), (5.8, math.nan), 4.0, None),
    ],
)
def test_numbers_that_disagree(
    cost: tuple[float, float], information: tuple[float, float] | None, active: float | None, said: str | None
) -> None:
    """A number within its errors of both answers is not clear; a clear number is not overruled by an unclear one."""
    verdict = judged(*cost, information, active)
    first = verdict.findings[0] if verdict.findings else ""
    assert first.startswith(said) if said else verdict.findings == []
    assert bool(verdict.summary) == (said is None)
    assert (
        f"with the z of another image, log p(x|z) falls by {cost[0]:.2f} +- {cost[1]:.2f} nats"
        in (first or verdict.summary)
        or "ignores" in first
    )


def test_the_decoder_ignores_z_only_where_nothing_changes() -> None:
    """A mean of 0 has two causes: differences that cancel, and differences of zero."""
    assert judged(0.0, 1e-4, (3.0, 0.1)).findings[0].startswith("the decoder ignores its latents")
    assert (
        judged(0.0, 0.03, (3.0, 0.1)).findings[0].startswith("the decoder does not use the information in its latents")
    )


@pytest.mark.parametrize("cost", [math.nan, math.inf])
def test_more_images_are_no_remedy_for_numbers_that_are_not_finite(cost: float) -> None:
    (line,) = judged(cost, 0.4, (3.0, 0.1)).findings
    assert line.startswith("log p(x|z) of some test image is not finite")
    assert "Remedy: a lower learning rate" in line


def test_a_small_number_has_a_digit_of_its_error() -> None:
    line = judged(0.0, 0.03, (-0.00052, 0.00026)).findings[0]
    assert "mutual information -0.0005 +- 0.0003 nats" in line


def test_many_dimensions_that_say_little_each_say_enough() -> None:
    """8 dimensions of 0.03 nats have 0.24 together."""
    use = {
        "swap_cost": torch.linspace(-1, 1, 100, dtype=torch.float64),
        "kl/z": torch.full((100,), 5.0),
        "mean/z": torch.randn(100, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.25,
        "variance/z": torch.ones(100, 8, dtype=torch.float64),
    }
    assert not judge(use, {}).findings[0].startswith(SAYS_NOTHING)


def test_of_two_latents_each_has_its_own_word() -> None:
    verdict = judged(3.0, 0.4, (3.0, 0.1), 4.0, z=5.0, u=0.02)
    assert [line.partition(":")[0] for line in verdict.findings] == ["u is not used"]
    assert verdict.summary == (
        "in use: z mutual information 3.000 +- 0.100 nats, active_units 4, KL 5 nats an image; "
        "with the z of another image, log p(x|z) falls by 3.00 +- 0.40 nats"
    )

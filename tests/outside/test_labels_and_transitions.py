"""Models and data of a package of its own, by the real command line: missing labels, transitions, costs by name."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torch.distributions import Binomial, Normal

from tests.helpers import REPOSITORY, only, read_csv, run_cli
from tests.outside.cases import CASES, TRUST, write_config
from tests.outside.semi_supervised import FewLabels, SemiSupervised
from tests.outside.transitions import GustyBall
from tests.outside.with_cost import Codes, NoisyBars
from vae_lightning.__main__ import main
from vae_lightning.models import LatentVariableModel
from vae_lightning.objectives import ELBO, IWAE
from vae_lightning.runs import trust


def weights(run: Path) -> dict[str, Tensor]:
    return dict(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])


def column(run: Path, name: str) -> list[float]:
    return [float(row[name]) for row in read_csv(run / "metrics.csv") if name in row]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run of a case, trained and tested once."""

    @cache
    def trained(case: str) -> Path:
        folder = tmp_path_factory.mktemp(case)
        config = write_config(folder, case)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(REPOSITORY)
            assert main(["train", "-c", str(config), TRUST, "--run_id=whole"]) == 0
        return only(folder / "runs", "*/whole")

    return trained


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `fit` of a case for two epochs with further flags; return the run's folder."""
    monkeypatch.chdir(REPOSITORY)

    def run(case: str, run_id: str, *flags: str) -> Path:
        config = write_config(tmp_path, case, epochs=2)
        assert main(["fit", "-c", str(config), TRUST, f"--run_id={run_id}", *flags]) == 0
        return only(tmp_path / "runs", f"*/{run_id}")

    return run


# -- every verb --------------------------------------------------------------------------------------------------------

PREDICTED = {
    "labels": {"z_mean", "z_scale", "found_label", "label", "split"},
    "transitions": {"z_mean", "z_scale", "split"},
    "costs": {"found_codes", "split"},
}


@pytest.mark.parametrize("case", CASES)
def test_every_verb(case: str, runs: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run, suffix = runs(case), "txt" if case == "transitions" else "png"
    monkeypatch.chdir(REPOSITORY)
    capfd.readouterr()
    with_config = ("-c", str(run / "config.yaml"), f"--ckpt_path={run}", TRUST)
    assert main(["test", *with_config]) == 0
    said = capfd.readouterr().out
    unit = "example" if case == "transitions" else "image"
    assert f"nats/{unit} (an upper bound" in said
    assert "no report" not in said
    assert main(["predict", *with_config]) == 0
    with np.load(run / "predictions-test.npz") as predictions:
        assert predictions.keys() == PREDICTED[case]
        assert len({len(values) for values in predictions.values()}) == 1
    for verb, picture in (("sample", "samples"), ("reconstruct", "reconstructions")):
        assert main([verb, str(run), TRUST, "--num_images=3"]) == 0
        assert (run / "images" / f"{picture}.{suffix}").is_file()
    path = run / "checkpoints" / "best.ckpt"
    model = LatentVariableModel.load_from_checkpoint(path, trusted=["tests"])
    assert type(model).__name__ == CASES[case][0].split(".")[1]
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def test_a_table_of_trust_serves_as_well(runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.vae_lightning]\ntrust = ["tests"]\n')
    monkeypatch.chdir(tmp_path)
    try:
        assert main(["sample", str(runs("transitions")), "--num_images=2", "--output=two.txt"]) == 0
    finally:
        trust._FINDER.places.clear()
    assert (tmp_path / "two.txt").read_text().count("velocity") == 2


def test_a_prior_is_fitted_to_examples(
    runs: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    run = runs("transitions")
    capfd.readouterr()
    assert main(["fit-prior", str(run), TRUST, "--prior=MixtureOfNormals"]) == 0
    said = capfd.readouterr().out
    assert "2,000 training examples" in said
    assert "nats/example" in said
    assert main(["sample", str(run), TRUST, "--num_images=2", "--prior=fitted"]) == 0


@pytest.mark.parametrize("case", CASES)
def test_it_learns(case: str, runs: Any) -> None:
    run = runs(case)
    elbo, results = column(run, "val/elbo"), yaml.safe_load((run / "results.json").read_text())
    assert elbo[-1] > elbo[0]
    if case == "labels":
        assert results["metrics"]["test/found_accuracy/label"] > 0.7  # 0.1 by chance
    if case == "transitions":  # the gust of two equal chances is worth log 2 nats, and z finds it
        assert results["metrics"]["test/mutual_information/z"] > 0.4
        assert results["metrics"]["test/elbo"] > 0
    if case == "costs":  # log 4 for the bar, and 64 pixels of which one in twenty is flipped
        best = -math.log(4) + 64 * (0.05 * math.log(0.05) + 0.95 * math.log(0.95))
        assert best - 16 < results["metrics"]["test/elbo"] < best


@pytest.mark.parametrize("case", CASES)
def test_resumed_from_the_middle_the_weights_are_equal_to_the_bit(case: str, fit: Any) -> None:
    whole = fit(case, "whole")
    total = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    half = fit(case, "half", f"--trainer.max_steps={total // 2 + 1}")
    assert torch.load(half / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == total // 2 + 1
    fit(case, "half")
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(half).items())
    assert column(half, "val/elbo")[-1] == column(whole, "val/elbo")[-1]


# -- precision, compiled and joined steps, ranks -----------------------------------------------------------------------

BOTH = ("labels", "transitions")  # one enumerates, one observes and draws a share of a group


@pytest.mark.parametrize("case", BOTH)
def test_several_steps_a_call_are_the_same_steps(case: str, fit: Any) -> None:
    single, double = weights(fit(case, "single")), weights(fit(case, "double", "--speed.steps_per_call=2"))
    assert all(torch.equal(value, single[name]) for name, value in double.items())


@pytest.mark.parametrize("case", BOTH)
def test_in_bf16_it_learns_about_as_well(case: str, fit: Any) -> None:
    full, mixed = (
        column(fit(case, name, f"--trainer.precision={name}"), "val/elbo") for name in ("32-true", "bf16-mixed")
    )
    assert mixed[-1] > mixed[0]
    assert mixed[-1] == pytest.approx(full[-1], abs=0.05 * abs(full[0] - full[-1]) + 0.02 * abs(full[-1]))


@pytest.mark.filterwarnings("ignore")  # the compiler's warnings
@pytest.mark.parametrize("case", BOTH)
@pytest.mark.parametrize(
    "backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)]
)  # inductor needs half a minute
def test_a_compiled_step_is_the_same_step(case: str, backend: str, fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--trainer.limit_train_batches=4",)  # of one size, so that one graph is compiled
    plain = weights(fit(case, "plain", *flags))
    calls: list[Any] = []
    real = torch.compile

    def compiled(function: Any, **flags: Any) -> Any:
        calls.append(function)
        return real(function, **{**flags, "backend": backend})

    monkeypatch.setattr(torch, "compile", compiled)
    found = weights(fit(case, "compiled", "--speed.compile=true", *flags))
    assert calls
    for name, value in found.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-2, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("case", BOTH)
def test_two_ranks_find_what_one_finds(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(tmp_path, case, epochs=2)
    run_cli("train", "-c", config, TRUST, "--run_id=two", "--trainer.devices=2")
    run = only(tmp_path / "runs", "*/two")
    assert column(run, "val/elbo")[1] > column(run, "val/elbo")[0]
    both = yaml.safe_load((run / "results.json").read_text())
    monkeypatch.chdir(REPOSITORY)
    assert main(["test", "-c", str(run / "config.yaml"), f"--ckpt_path={run}", TRUST, "--trainer.devices=1"]) == 0
    one = yaml.safe_load((run / "results.json").read_text())
    assert (both["devices"], one["devices"]) == (2, 1)
    assert both["metrics"].keys() == one["metrics"].keys()
    for name, value in one["metrics"].items():
        assert both["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("case", BOTH)
def test_two_ranks_go_on_from_the_middle(case: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, case, epochs=2)
    args = ("fit", "-c", config, TRUST, "--trainer.devices=2")
    run_cli(*args, "--run_id=whole")
    run_cli(*args, "--run_id=half", "--trainer.max_steps=7")
    run_cli(*args, "--run_id=half")
    whole, half = (weights(only(tmp_path / "runs", f"*/{name}")) for name in ("whole", "half"))
    assert all(torch.equal(value, whole[name]) for name, value in half.items())


# -- the numbers of M2 -------------------------------------------------------------------------------------------------


def by_hand(model: SemiSupervised, x: Tensor, label: int, z: Tensor) -> tuple[Tensor, Tensor]:
    """ELBO and IWAE of one example by a loop over labels and samples; z is [S, C, D], one for each sample and label."""
    log_q_y = model.classifier(x[None])[0].log_softmax(-1)
    num_samples, num_classes, size = z.shape
    elbo, log_w = x.new_zeros(()), []
    for s in range(num_samples):
        terms = []
        for y in range(num_classes) if label < 0 else (label,):
            one_hot = torch.eye(num_classes, dtype=x.dtype)[y]
            mu, raw = model.encoder(torch.cat((x.flatten(), one_hot))[None])[0].chunk(2)
            sigma = 1e-3 + torch.nn.functional.softplus(raw)
            logits = model.decoder(torch.cat((z[s, y], one_hot))[None])[0]
            log_p = Binomial(16, logits=logits).log_prob((16 * x).round()).sum() + math.log(1 / num_classes)
            kl = (0.5 * (sigma**2 + mu**2 - 1) - sigma.log()).sum()
            ratio = Normal(mu, sigma).log_prob(z[s, y]).sum() - Normal(0.0, 1.0).log_prob(z[s, y]).sum()
            share, own = (log_q_y[y].exp(), -log_q_y[y]) if label < 0 else (1.0, 0.0)
            elbo = elbo + share * (log_p - kl + own) / num_samples
            terms.append(log_p - ratio)
        log_w.append(torch.stack(terms).logsumexp(0))
    assert size == model.prior.event_shape[0]
    return elbo, torch.stack(log_w).logsumexp(0) - math.log(num_samples)


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("labels", [[2, 0, 1], [-1, -1, -1], [2, -1, 0]], ids=["labelled", "unlabelled", "mixed"])
def test_the_bounds_are_those_of_a_loop_over_labels_and_samples(labels: list[int], num_samples: int) -> None:
    torch.manual_seed(1)
    model = SemiSupervised((1, 2, 2), num_classes=3, latent_size=2).double()
    x = torch.randint(17, (3, 1, 2, 2)).double() / 16
    trace = model.trace({"x": x, "label": torch.tensor(labels)}, num_samples)
    z = trace.by_sample(trace.latents["z"].z)  # [S, C, B, D]
    elbos, iwaes = zip(*(by_hand(model, x[b], labels[b], z[:, :, b]) for b in range(3)), strict=True)
    terms, importance = ELBO()(trace, 0), IWAE(num_samples=num_samples)(trace, 0)
    torch.testing.assert_close(terms["elbo"], torch.stack(elbos), atol=1e-8, rtol=0)
    torch.testing.assert_close(
        trace.log_weight().logsumexp(0) - math.log(num_samples), torch.stack(iwaes), atol=1e-8, rtol=0
    )
    cost = -model.classifier(x).log_softmax(-1)[range(3), labels] * (torch.tensor(labels) >= 0)
    torch.testing.assert_close(importance["loss"], cost - torch.stack(iwaes), atol=1e-8, rtol=0)
    torch.testing.assert_close(terms["loss"], cost - torch.stack(elbos), atol=1e-8, rtol=0)
    parameters = list(model.parameters())
    grads, expected = (
        torch.autograd.grad(loss, parameters, retain_graph=True)
        for loss in (terms["loss"].sum(), (cost - torch.stack(elbos)).sum())
    )
    for grad, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, wanted, atol=1e-8, rtol=1e-8)


def test_evaluation_hides_the_label() -> None:
    torch.manual_seed(0)
    model = SemiSupervised((1, 8, 8), 10).eval()
    trace = model.trace({"x": torch.rand(4, 1, 8, 8), "label": torch.tensor([1, 2, 3, -1])})
    assert (trace.observed, trace.costs) == ({}, {})
    torch.testing.assert_close(trace.log_shares.exp().T, model.classifier(trace.x).softmax(-1))  # type: ignore[union-attr]


def test_the_run_says_what_counts_in_training_too(fit: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The first trace of a run is of the sanity check, which hides the label."""
    fit("labels", "r", "--trainer.max_epochs=1")
    said = [line for line in caplog.messages if "likelihood Binomial" in line]
    assert len(said) == 2
    assert "label closed form, enumerated" in said[0]
    assert "costs" not in said[0]
    assert said[1].startswith("train: likelihood Binomial")
    assert said[1].endswith("; elbo and nll are of x, label; costs in the loss alone: classifier")


def test_a_tenth_of_the_labels_is_known_and_a_quarter_of_a_batch_is_terminal() -> None:
    known = FewLabels().examples("train").fields["label"] >= 0
    assert known.float().mean() == pytest.approx(0.1, abs=1e-3)
    data = GustyBall(batch_size=64)
    done = [batch["done"].mean().item() for batch in data.train_dataloader()]
    assert set(done[:-1]) == {0.25}
    assert data.examples("test").fields["done"].mean() < 0.2


# -- costs by name -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["yaml", "flag", "one flag"])
def test_costs_have_weights_by_name(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(REPOSITORY)
    objective = {"class_path": "ELBO", "init_args": {"costs": {"commitment": 0.25}}}
    config = write_config(tmp_path, "costs", epochs=1, **({"objective": objective} if how == "yaml" else {}))
    flags = {
        "yaml": (),
        "flag": ("--model.objective=ELBO", "--model.objective.costs={commitment: 0.25}"),
        "one flag": ("--model.objective=ELBO", "--model.objective.costs.commitment=0.25"),
    }[how]
    assert main(["fit", "-c", str(config), TRUST, "--run_id=r", *flags]) == 0
    assert "costs in the loss alone: commitment, codebook" in caplog.text
    run = only(tmp_path / "runs", "*/r")
    loss, elbo, commitment, codebook = (
        column(run, f"val/{name}")[-1] for name in ("loss", "elbo", "cost/commitment", "cost/codebook")
    )
    assert commitment > 0
    assert loss == pytest.approx(-elbo + 0.25 * commitment + codebook, rel=1e-5)


def test_the_codes_cost_exactly_their_number() -> None:
    """q(code|x) is one code, so that KL(q || p) = log C; K rows of one share are one row."""
    torch.manual_seed(0)
    model, x = Codes((1, 8, 8), num_codes=8), next(iter(NoisyBars().train_dataloader()))["x"][:5]
    trace = model.trace({"x": x}, num_samples=2)
    torch.testing.assert_close(trace.kl()["code"], torch.full((5,), math.log(8)))
    expected = model.likelihood(model.decoder(model.codes[trace.found["codes"]])).log_prob(x) - math.log(8)
    for bound in (ELBO()(trace, 0)["elbo"], trace.log_weight()[0], trace.log_weight()[1]):
        torch.testing.assert_close(bound, expected, rtol=1e-5, atol=1e-4)

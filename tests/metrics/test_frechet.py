"""The Frechet distance and its classifier: known distances, named extractors, no download."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers import REPOSITORY, TrainedRun, trained_run
from vae_lightning.__main__ import main
from vae_lightning.data import Digits, ImageDataModule, Images, ProceduralSprites
from vae_lightning.metrics import FID, FrechetDistance
from vae_lightning.metrics.classifier import (
    Classifier,
    label_columns,
    load_classifier,
    prepare_classifier,
    train_classifier,
)
from vae_lightning.metrics.frechet import _Frechet
from vae_lightning.models import VAE
from vae_lightning.trace import Trace
from vae_lightning.types import UserError

GENERATOR = torch.Generator().manual_seed(0)
NO_TRACE = Trace(torch.zeros(2, 1, 8, 8), torch.distributions.Normal(0.0, 1.0))


class Fixed(ImageDataModule):
    """A data module of fixed images."""

    image_shape = (1, 8, 8)

    def __init__(self, pixels: Tensor) -> None:
        super().__init__()
        self.pixels = pixels

    def load(self, split: Any) -> Images:
        return Images(self.pixels, None)


class FirstPixels(nn.Module):
    """An extractor of two features, so that the distance is that of two small Gaussians."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2]


class InFirstPixels(_Frechet):
    num_features = 2
    units = {"frechet": "pixels^2"}  # noqa: RUF012

    def distance(self, data: ImageDataModule) -> Any:
        from torchmetrics.image.fid import FrechetInceptionDistance

        from vae_lightning.metrics.frechet import _Double

        return FrechetInceptionDistance(feature=_Double(FirstPixels(), 2))

    def compute(self) -> dict[str, Any]:
        return {"frechet": self.measure()[0]}


def vae_that_samples(images: Callable[[int], Tensor], monkeypatch: pytest.MonkeyPatch) -> VAE:
    monkeypatch.setattr(VAE, "sample", lambda _, n: images(n))
    return VAE((1, 8, 8), latent_size=2)


def test_the_distance_of_a_set_from_itself_is_nothing_and_a_shift_counts_squared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = torch.randint(0, 200, (1200, 1, 8, 8), generator=GENERATOR, dtype=torch.uint8)
    for shift in (0, 51):  # of 255: 0.2 in x
        rows = iter(((pixels + shift).float() / 255).split(150))  # eight batches
        metric = InFirstPixels()
        metric.begin(vae_that_samples(lambda n, rows=rows: next(rows)[:n], monkeypatch), Fixed(pixels))  # type: ignore[misc]
        assert metric.compute()["frechet"] == pytest.approx(2 * (shift / 255) ** 2, abs=1e-6)


def test_a_spread_counts_by_the_difference_of_deviations(monkeypatch: pytest.MonkeyPatch) -> None:
    """For diagonal Gaussians with equal means the distance is the sum of (sigma - sigma')^2."""
    pixels = torch.randint(0, 256, (4000, 1, 8, 8), generator=GENERATOR, dtype=torch.uint8)
    x = pixels.float() / 255
    narrow = iter((0.5 + 0.25 * (x - 0.5)).split(500))
    metric = InFirstPixels()
    metric.begin(vae_that_samples(lambda n: next(narrow)[:n], monkeypatch), Fixed(pixels))
    assert metric.compute()["frechet"] == pytest.approx(2 * (0.75 * 12**-0.5) ** 2, rel=0.03)


def test_no_two_samples_have_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """All samples of eight batches of a VAE differ, and a second test draws the same samples."""
    drawn: list[Tensor] = []
    sample = VAE.sample

    def spy(self: VAE, n: int) -> Tensor:
        drawn.append(sample(self, n))
        return drawn[-1]

    monkeypatch.setattr(VAE, "sample", spy)
    metric, found = InFirstPixels(), []
    for _ in range(2):
        metric.begin(VAE((1, 8, 8), latent_size=2) if not found else metric._model, Fixed(torch.zeros(40, 1, 8, 8)))  # type: ignore[arg-type]
        found.append(metric.compute()["frechet"])
    assert [len(batch) for batch in drawn] == [5] * 16
    first, second = torch.cat(drawn[:8]).flatten(1), torch.cat(drawn[8:]).flatten(1)
    assert len(first.unique(dim=0)) == 40
    assert torch.equal(first, second)
    assert found[0] == found[1]


def test_the_distance_is_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The distance agrees with numpy's on the same float32 features to 1e-10; a float32 sum has seven digits."""
    pixels = torch.randint(0, 256, (400, 1, 8, 8), generator=GENERATOR, dtype=torch.uint8)
    x = pixels.float() / 255
    metric = InFirstPixels()
    rows = iter((0.4 + 0.5 * x).split(50))
    metric.begin(vae_that_samples(lambda n: next(rows)[:n], monkeypatch), Fixed(pixels))
    real, fake = (values.flatten(1)[:, :2].double().numpy() for values in (x, 0.4 + 0.5 * x))
    shift, s, s_fake = real.mean(0) - fake.mean(0), np.cov(real.T), np.cov(fake.T)
    root = np.sqrt(np.trace(s @ s_fake) + 2 * np.sqrt(np.linalg.det(s @ s_fake)))  # tr (S S')^(1/2), of 2 x 2
    expected = shift @ shift + np.trace(s) + np.trace(s_fake) - 2 * root
    assert metric.compute()["frechet"] == pytest.approx(expected, rel=1e-10)


# -- the classifier ---------------------------------------------------------------------------------------------------


def test_a_classifier_is_trained_once_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, path = Digits(), tmp_path / "digits.pt"
    with torch.inference_mode():  # the mode in which Lightning runs a test
        prepare_classifier(data, path, num_steps=150)
    assert "once" in capsys.readouterr().out
    classifier, accuracy = load_classifier(data, path)
    assert accuracy > 0.9
    assert classifier.accuracy(data.images("test")) > 0.9
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    kept = path.read_bytes()
    prepare_classifier(data, path, num_steps=1)
    assert path.read_bytes() == kept
    assert load_classifier(data, path)[0].digest() == classifier.digest()


def test_the_same_classifier_each_time_and_nothing_of_the_noise_is_used_up() -> None:
    images = Digits().images("train")
    before = torch.get_rng_state()
    digests = {train_classifier(images, num_steps=3, seed=seed).digest() for seed in (0, 0, 1)}
    assert len(digests) == 2
    assert torch.equal(torch.get_rng_state(), before)


def test_several_labels_are_learned_side_by_side(tmp_path: Path) -> None:
    data = ProceduralSprites(str(tmp_path), num_images=60)
    data.prepare_data()
    images = data.images("train")
    classifier = Classifier(data.image_shape, (label_columns(images).amax(0) + 1).tolist())
    assert [logits.shape[1] for logits in classifier.logits(torch.zeros(2, *data.image_shape))] == [3, 6, 40, 32, 32]
    labels = label_columns(images)[:4]
    loss = classifier.loss(torch.zeros(4, *data.image_shape), labels)
    expected = torch.log(torch.tensor([3.0, 6, 40, 32, 32])).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=0.2)  # untrained: nearly uniform


@pytest.mark.parametrize("contents", [b"", b"nothing that torch wrote"])
def test_a_damaged_classifier_ends_in_one_line(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(contents)
    with pytest.raises(UserError, match="delete it"):
        load_classifier(Digits(), tmp_path / "x.pt")


def test_a_classifier_of_other_data_is_refused(tmp_path: Path) -> None:
    contents = {"state_dict": {}, "about": {"data": "MNIST", "num_classes": [10], "accuracy": 1.0}}
    torch.save(contents, tmp_path / "x.pt")
    with pytest.raises(UserError, match="was trained on MNIST, and the data are Digits"):
        load_classifier(Digits(), tmp_path / "x.pt")


# -- what is refused --------------------------------------------------------------------------------------------------


def test_what_does_not_apply() -> None:
    few = Fixed(torch.zeros(100, 1, 8, 8, dtype=torch.uint8))
    assert "no labels" in str(FrechetDistance().why_not_applicable(NO_TRACE, few))
    assert "need 4 test images" in str(InFirstPixels().why_not_applicable(NO_TRACE, Fixed(few.pixels[:3])))
    assert InFirstPixels().why_not_applicable(NO_TRACE, few) is None
    assert FrechetDistance().why_not_applicable(NO_TRACE, Digits()) is None
    with pytest.raises(UserError, match="num_steps"):
        FrechetDistance(num_steps=0)


def test_inception_needs_its_package_and_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metric, digits = FID(str(tmp_path / "inception.pth")), Digits()
    monkeypatch.setattr("vae_lightning.metrics.frechet.find_spec", lambda _: None)
    assert "torch-fidelity is not installed" in str(metric.why_not_applicable(NO_TRACE, digits))
    monkeypatch.setattr("vae_lightning.metrics.frechet.find_spec", lambda _: object())
    assert "inception.pth" in str(metric.why_not_applicable(NO_TRACE, digits))
    (tmp_path / "inception.pth").write_bytes(b"")
    assert "need 4096 test images; there are 355" in str(metric.why_not_applicable(NO_TRACE, digits))


# -- by the command line ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return trained_run(tmp_path_factory.getbasetemp() / "trained")


def test_by_its_own_name_in_the_results(trained: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained.copy_to(tmp_path)
    monkeypatch.chdir(REPOSITORY)
    classifier = str(tmp_path / "c.pt")
    asked = ["--evaluation.also+=FrechetDistance", f"--evaluation.also.classifier={classifier}"]
    args = ["--evaluation.also.num_steps=50", "--nll.num_samples=2", "--trainer.accelerator=cpu"]
    assert main(["test", "-c", str(run / "config.yaml"), f"--ckpt_path={run}", *asked, *args]) == 0
    found = json.loads((run / "results.json").read_text())
    assert found["metrics"]["test/frechet_digits"] > 0
    assert not any("fid" in name for name in found["metrics"])
    assert classifier in found["details"]["frechet_extractor"]
    assert found["details"]["frechet_images"] == "355 of each"
    assert "test/rate" in found["metrics"]
    assert found["evaluation"]["also"][0]["class_path"] == "vae_lightning.metrics.FrechetDistance"


def test_fid_without_its_file_ends_in_one_line(
    trained: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained.copy_to(tmp_path)
    before = (run / "results.json").read_bytes()
    monkeypatch.chdir(REPOSITORY)
    asked = ["--evaluation.also+=FID", f"--evaluation.also.weights={tmp_path / 'none.pth'}"]
    assert main(["test", "-c", str(run / "config.yaml"), f"--ckpt_path={run}", *asked]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "FID does not apply" in line
    assert (run / "results.json").read_bytes() == before

"""Models called from Python: an unusable batch, latent or count gives one line that describes a usable one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from vae_lightning.callbacks import FastNetworks
from vae_lightning.distributions import DiagonalNormal
from vae_lightning.models import CVAE, DLGM, HVAE, VAE, LatentVariableModel, base
from vae_lightning.models.batches import check_batch
from vae_lightning.networks import MLP
from vae_lightning.runs.machine import find_compiler
from vae_lightning.types import UserError

TINY = partial(MLP, hidden_sizes=(8,))
X = (torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.3).float()
A_BATCH = r"a batch is a dict with x: float32 \[B, 1, 8, 8\], its values in \[0, 1\], and optionally label: int64 \[B\]"

LOADERS: dict[str, tuple[Any, str]] = {  # a data set, and the message about its first batch
    "TensorDataset": (TensorDataset(X), r"a list of float32 \[16, 1, 8, 8\]; .*\{\"x\": image\}"),
    "pairs": ([(x, 0) for x in X], r"a list of float32 \[16, 1, 8, 8\], int64 \[16\]; .*\"label\": label"),
    "bare tensors": (list(X), r"float32 \[16, 1, 8, 8\]; "),
    "arrays": (list(X.numpy()), r"float32 \[16, 1, 8, 8\]; "),
    "words": (["a"] * 32, "a list of a str"),
    "other key": ([{"image": x} for x in X], r"a dict with image: float32 \[16, 1, 8, 8\]; .*\{\"x\": image\}"),
    "list in x": ([{"x": ["a"]} for _ in X], "a dict with x: a list"),
    "uint8": ([{"x": x.byte()} for x in X], r"a dict with x: uint8 \[16, 1, 8, 8\]; .*image\.float\(\) / 255"),
    "float64": (
        [{"x": x.double()} for x in X],
        r"a dict with x: float64 \[16, 1, 8, 8\]; .*image\.to\(torch\.float32\)",
    ),
    "arrays of float64": ([{"x": np.asarray(x, np.float64)} for x in X], r"a dict with x: float64 \[16, 1, 8, 8\]; "),
    "no channel": ([{"x": x[0]} for x in X], r"a dict with x: float32 \[16, 8, 8\]; .*image_shape=\(8, 8\)"),
    "other size": ([{"x": x[:, :7]} for x in X], r"a dict with x: float32 \[16, 1, 7, 8\]; .*image_shape=\(1, 7, 8\)"),
    "as many pixels": ([{"x": x.reshape(1, 4, 16)} for x in X], r"a dict with x: float32 \[16, 1, 4, 16\]; "),
    "labels in words": (
        [{"x": x, "label": "cat"} for x in X],
        "a dict with x: .*, label: a list.*let label be a tensor",
    ),
}


def vae(**slots: Any) -> VAE:
    return VAE((1, 8, 8), 2, encoder=TINY, decoder=TINY, **slots)


def trainer(tmp_path: Path, **settings: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, max_epochs=1, enable_model_summary=False, **quiet, **settings
    )


def loader(data: Any) -> DataLoader[Any]:
    return DataLoader(data, batch_size=16)


GOOD = loader([{"x": x} for x in X])
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
]


@pytest.mark.parametrize("case", LOADERS)
def test_a_batch_that_is_none_is_told_what_one_is(case: str, tmp_path: Path) -> None:
    data, found = LOADERS[case]
    with pytest.raises(UserError, match=rf"^the train loader's first batch is {found}") as error:
        trainer(tmp_path).fit(vae(), loader(data))
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError, match=A_BATCH):
        trainer(tmp_path).fit(vae(), loader(data))


@pytest.mark.parametrize("label", [torch.zeros(15), torch.tensor(0)])
def test_labels_of_another_number_are_refused(label: torch.Tensor, tmp_path: Path) -> None:
    """A user's own collate function may make such labels."""
    batch = {"x": torch.zeros(16, 1, 8, 8), "label": label}
    with pytest.raises(UserError, match="let label be a tensor with a number, or a row of them, for each image"):
        trainer(tmp_path).fit(vae(), DataLoader([batch], batch_size=None))


RUNS: dict[str, Callable[[pl.Trainer, LatentVariableModel, Any], Any]] = {
    "sanity_check": lambda loop, model, bad: loop.fit(model, GOOD, bad),
    "validate": lambda loop, model, bad: loop.validate(model, bad, verbose=False),
    "test": lambda loop, model, bad: loop.test(model, bad, verbose=False),
    "predict": lambda loop, model, bad: loop.predict(model, bad),
}


@pytest.mark.parametrize("shape", [(3, 2), (7, 2)])
def test_a_size_of_minus_one_fits_every_size(shape: tuple[int, ...]) -> None:
    """A model of windows in training sees whole sequences in the test."""
    check_batch({"x": torch.zeros(4, *shape)}, None, (-1, 2), torch.float32, "test")
    for others in ((*shape, 1), (shape[0], 5)):
        wanted = r"a batch is a dict with x: a tensor \[B, any, 2\], .*change the data"
        with pytest.raises(UserError, match=wanted):
            check_batch({"x": torch.zeros(4, *others)}, None, (-1, 2), torch.float32, "test")


@pytest.mark.parametrize("stage", RUNS)
def test_every_stage_looks_at_its_first_batch(stage: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^the {stage} loader's first batch is a list .*{A_BATCH}"):
        RUNS[stage](trainer(tmp_path), vae(), loader(TensorDataset(X)))


def test_validation_without_a_sanity_check_looks_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^the validate loader's first batch is .*{A_BATCH}"):
        trainer(tmp_path, num_sanity_val_steps=0).fit(vae(), GOOD, loader(TensorDataset(X)))


@pytest.mark.skipif(find_compiler() is None, reason="torch.compile wants a C++ compiler")
def test_a_compiled_step_looks_before_it_is_compiled(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=A_BATCH):
        trainer(tmp_path, callbacks=[FastNetworks(compile=True)]).fit(vae(), loader(LOADERS["uint8"][0]))


def test_a_conditional_model_looks_before_its_condition_does(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=A_BATCH):
        trainer(tmp_path).fit(CVAE((1, 8, 8), encoder=TINY, decoder=TINY), loader(LOADERS["pairs"][0]))


class OnTheDevice(pl.LightningDataModule):
    """The loader gives bytes, and a Lightning hook makes x of them. The model checks the batch after the hook."""

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(TensorDataset((X * 255).byte()))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {"x": batch[0].float() / 255}


def test_what_a_hook_makes_of_a_batch_counts(tmp_path: Path) -> None:
    loop = trainer(tmp_path)
    loop.fit(vae(), datamodule=OnTheDevice())
    assert loop.global_step == 2


def test_doubles_are_right_in_a_model_of_doubles(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a dict with x: float32 .*a batch is a dict with x: float64"):
        trainer(tmp_path).fit(vae().double(), GOOD)


def test_a_loader_is_looked_at_once_in_each_call_of_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[str] = []
    monkeypatch.setattr(base, "check_batch", lambda *args: stages.append(args[-1]))
    loop, model = trainer(tmp_path), vae()
    loop.fit(model, GOOD, GOOD)
    assert stages == ["sanity_check", "train", "validate"]
    trainer(tmp_path).fit(model, GOOD)
    assert stages[3:] == ["train"]


def test_several_steps_a_call_want_a_data_module(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"speed\.steps_per_call needs a DataModule"):
        trainer(tmp_path, callbacks=[FastNetworks(steps_per_call=2)]).fit(vae(), GOOD)


@pytest.mark.parametrize(("scale", "said"), [(1.0, []), (255.0, ["x has values from 0 to 255"])])
def test_values_outside_the_unit_interval_are_said_once(
    scale: float, said: Sequence[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = loader([{"x": x * scale} for x in X])
    with caplog.at_level(logging.INFO):
        trainer(tmp_path).fit(vae(likelihood=DiagonalNormal), data, data)
    notes = [record.getMessage() for record in caplog.records if record.getMessage().startswith("x has values")]
    assert [note.partition(":")[0] for note in notes] == list(said)


# -- a model by itself ------------------------------------------------------------------------------------------------

HIERARCHIES = {"HVAE": HVAE((1, 8, 8), (3, 2)), "DLGM": DLGM((1, 8, 8), (3, 2))}
MODELS: dict[str, LatentVariableModel] = {"VAE": vae(), "CVAE": CVAE((1, 8, 8), 2), **HIERARCHIES}


@pytest.mark.parametrize("name", ["VAE", "HVAE", "DLGM"])
@pytest.mark.parametrize(
    ("latents", "found"),
    [
        (torch.zeros(4, 2), r"float32 \[4, 2\]"),
        ({"y": torch.zeros(4, 2)}, "a dict with y: float32"),
        (None, "NoneType"),
    ],
)
def test_latents_to_decode_have_names(name: str, latents: Any, found: str) -> None:
    first = "z" if name == "VAE" else "z1"
    with pytest.raises(UserError, match=rf'^{name}\.decode takes .*\{{"{first}": {first}.*; found .*{found}'):
        MODELS[name].decode(latents)


def test_a_latent_of_another_size_is_told_which_it_is() -> None:
    with pytest.raises(UserError, match=r"^MLP: its input is \[4, 3\]; it must be a tensor \[\.\.\., 2\]$"):
        vae().decode({"z": torch.zeros(4, 3)})


@pytest.mark.parametrize(
    ("x", "found"),
    [
        (X[0, 0], r"\[8, 8\]"),
        (X.reshape(32, 1, 4, 16), r"\[32, 1, 4, 16\]"),
        (X.numpy(), "ndarray"),
        ({"x": [X]}, "list"),
    ],
)
def test_an_image_to_encode_has_the_models_shape(x: Any, found: str) -> None:
    with pytest.raises(UserError, match=rf"its input is (of type )?{found}; it must be a tensor \[\.\.\., 1, 8, 8\]"):
        vae().encode(x)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("n", [0, -3, 2.5, "3", None, True])
def test_a_number_of_samples_is_a_whole_one(name: str, n: Any) -> None:
    with pytest.raises(UserError, match=rf"^{name}\.sample\(n\) draws n images: n is {n!r}; .*at least 1"):
        MODELS[name].sample(n)
    assert len(MODELS[name].sample(2)) == 2


def test_conditions_to_sample_at_are_as_many() -> None:
    model = CVAE((1, 8, 8), 2)
    with pytest.raises(UserError, match=r"c is \[2, 10\]; 3 conditions are \[3, 10\]"):
        model.sample(3, torch.eye(10)[:2])
    assert model.sample(2, torch.eye(10)[:2]).shape == (2, 1, 8, 8)

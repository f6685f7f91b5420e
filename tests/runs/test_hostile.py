"""Checkpoints with one false entry each end in a one-line error: nothing is deleted or fetched, memory is bounded."""

from __future__ import annotations

import copy
import io
import resource
import shutil
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn

from tests.helpers import DIGITS
from tests.runs.test_trust import Pickled
from vae_lightning.__main__ import main
from vae_lightning.callbacks import EMA, BestAndLast, ExactResume, FiniteSteps
from vae_lightning.data import Digits
from vae_lightning.distributions import Binomial
from vae_lightning.models import VAE
from vae_lightning.models.loading import load_model
from vae_lightning.models.restoring import check_restored, own_files
from vae_lightning.networks import MLP
from vae_lightning.runs.checkpoint_io import LAST, WholeFiles
from vae_lightning.types import UserError

Checkpoint = dict[str, Any]
MLP_4 = partial(MLP, hidden_sizes=(4,))
WEIGHT = "encoder.layers.1.weight"
GIB = 2**30
ONE_LINE = r"\A[^\n]{20,1000}\Z"


def model(**changes: Any) -> VAE:
    slots: dict[str, Any] = {
        "encoder": MLP_4,
        "decoder": MLP_4,
        "likelihood": partial(Binomial, num_steps=16),
        "optimizer": partial(torch.optim.Adam, lr=1e-3, fused=True),
        "scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=1),
    }
    return VAE((1, 8, 8), 4, **{**slots, **changes})


def fit(folder: Path, path: Path | None = None, epochs: int = 2, **changes: Any) -> pl.Trainer:
    """A fit of two steps an epoch with the callbacks of the command line, an average and a ModelCheckpoint."""
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_train_batches=2,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        plugins=[WholeFiles()],
        callbacks=[
            EMA(0.9),
            ModelCheckpoint(folder / "checkpoints" / "more", "{epoch}", monitor="val/loss", save_top_k=2),
            EarlyStopping("val/loss", patience=99),
            BestAndLast(),
            FiniteSteps(),
            ExactResume(),
        ],
    )
    trainer.fit(model(**changes), datamodule=Digits(batch_size=8), ckpt_path=path)
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("run")
    fit(folder, epochs=1)
    return folder


@pytest.fixture(scope="module")
def honest(run: Path) -> Checkpoint:
    return dict(torch.load(run / "checkpoints" / LAST, weights_only=True))


def put(*keys: Any, value: Any) -> Callable[[Checkpoint], None]:
    """Make a change of the value at `keys` in a checkpoint. A key may be an index, or the start of a callback's key."""

    def change(checkpoint: Checkpoint) -> None:
        place: Any = checkpoint
        for key in keys[:-1]:
            place = place[_key(place, key)]
        place[_key(place, keys[-1])] = value(place[_key(place, keys[-1])]) if callable(value) else value

    return change


def _key(place: Any, key: Any) -> Any:
    starts = [name for name in place if isinstance(name, str) and name.startswith(f"{key}{{")]
    return starts[0] if starts else key


def drop(*keys: Any) -> Callable[[Checkpoint], None]:
    def change(checkpoint: Checkpoint) -> None:
        place: Any = checkpoint
        for key in keys[:-1]:
            place = place[_key(place, key)]
        del place[_key(place, keys[-1])]

    return change


def with_attribute(state: dict[str, Any], name: str, value: Any) -> OrderedDict[str, Any]:
    state = OrderedDict(state)
    setattr(state, name, value)
    return state


ODD: dict[str, Any] = {"number": 3, "word": "x", "none": None, "list": [0], "tensor": torch.zeros(5)}
ENTRIES = {  # the entries of a checkpoint; the odd value, if any, that has the type of the entry
    **dict.fromkeys(("state_dict", "hyper_parameters", "loops", "callbacks", "optimizer_states", "lr_schedulers"), ""),
    **{"current_model_state": "", "averaging_state": "", "plateau": "", "pytorch-lightning_version": ""},
    **{"epoch": "number", "global_step": "number"},
}
TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "short": lambda _: torch.zeros(3),
    "scalar": lambda _: torch.zeros(()),
    "transposed": lambda weight: torch.zeros(weight.shape[::-1]),
    "sparse": lambda weight: weight.to_sparse(),
    "csr": lambda weight: weight.to_sparse_csr(),
    "quantised": lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
    "meta": lambda weight: weight.to("meta"),
    "complex": lambda weight: weight.to(torch.complex64),
    "whole": lambda weight: weight.long(),
    "bool": lambda weight: weight > 0,
    "expanded": lambda _: torch.zeros(1).expand(2**20, 2**10),
    "number": lambda _: 0.5,
    "none": lambda _: None,
    "dict": lambda weight: {"weight": weight},
}
FIT, ADAM, GROUP = (
    ("loops", "fit_loop"),
    ("optimizer_states", 0, "state", 0),
    ("optimizer_states", 0, "param_groups", 0),
)
PLACES: dict[str, tuple[Any, ...]] = {
    "weight": ("state_dict", WEIGHT),
    "average": ("current_model_state", WEIGHT),
    "adam": (*ADAM, "exp_avg"),
}
BATCHES = (*FIT, "epoch_loop.batch_progress")
LONG, ENCODER = "a" * 5000, ("hyper_parameters", "encoder")
DEEP: Any = 0
for _ in range(200):
    DEEP = [DEEP]
SHARED: Any = [0]
for _ in range(45):
    SHARED = [SHARED, SHARED]
MILLIONS: Any = [f"{n}" for n in range(30_000)]

CHANGES: dict[str, Callable[[Checkpoint], None]] = {
    **{
        f"{entry}-is-a-{name}": put(entry, value=value)
        for entry, fitting in ENTRIES.items()
        for name, value in ODD.items()
        if name != fitting
    },
    **{f"no-{entry}": drop(entry) for entry in ENTRIES if entry in ("loops", "callbacks", "global_step")},
    **{f"no-{entry}": drop(entry) for entry in ("state_dict", "hyper_parameters", "optimizer_states", "lr_schedulers")},
    "no-version": drop("pytorch-lightning_version"),
    "no-class-path": drop("hyper_parameters", "_class_path"),
    **{
        f"{place}-{name}": put(*keys, value=change)
        for place, keys in PLACES.items()
        for name, change in TENSORS.items()
    },
    **{f"{place}-absent": drop(*keys) for place, keys in PLACES.items()},
    "weight-too-many": put("state_dict", value=lambda state: {**state, "more": torch.zeros(1)}),
    "weights-that-shadow-a-method": put("state_dict", value=lambda state: with_attribute(state, "values", 7)),
    "metadata": put("state_dict", value=lambda state: with_attribute(state, "_metadata", 7)),
    "version-of-nothing": put("pytorch-lightning_version", value="x.y"),
    "version-of-old": put("pytorch-lightning_version", value="1.1.0"),
    "negative-step": put("global_step", value=-1),
    "true-step": put("global_step", value=True),
    "huge-step": put("global_step", value=10**400),
    "old-hparams": put("hparams", value={}),
    "old-scaler": put("native_amp_scaling_state", value={}),
    # loops
    "no-fit-loop": drop(*FIT),
    "fit-loop-a-list": put(*FIT, value=[]),
    "no-test-loop": drop("loops", "test_loop"),
    "no-progress": drop(*BATCHES),
    "no-count": drop(*BATCHES, "current", "processed"),
    "count-a-word": put(*BATCHES, "current", "ready", value="x"),
    "count-below-0": put(*BATCHES, "total", "ready", value=-5),
    "count-a-fraction": put(*BATCHES, "total", "ready", value=0.5),
    "count-that-is-a-method": put(*BATCHES, "total", value=lambda total: {**total, "reset": 3}),
    "last-batch-a-word": put(*BATCHES, "is_last_batch", value="no"),
    "steps-a-tensor": put(*FIT, "epoch_loop.state_dict", value={"_batches_that_stepped": torch.zeros(2)}),
    # callbacks
    **{
        f"{name}-state-{kind}": put("callbacks", name, value=value)
        for name in ("EMA", "FiniteSteps", "BestAndLast", "EarlyStopping", "ExactResume", "ModelCheckpoint")
        for kind, value in {"number": 3, "list": [1]}.items()
    },
    "ema-without-step": put("callbacks", "EMA", value={"x": 1}),
    "skipped-a-word": put("callbacks", "FiniteSteps", "skipped", value="x"),
    "score-of-five": put("callbacks", "EarlyStopping", "best_score", value=torch.zeros(5)),
    "patience-a-dict": put("callbacks", "EarlyStopping", "patience", value={}),
    "complete-a-number": put("callbacks", "BestAndLast", "complete", value=3),
    "seed-a-tensor": put("callbacks", "ExactResume", "seed", value=torch.zeros(3)),
    "data-of-tensors": put("callbacks", "ExactResume", "data", "class", value=torch.zeros(3)),
    "precision-of-two-lines": put("callbacks", "ExactResume", "precision", value="32\n\x1b[2J"),
    "averages-a-vector": put("averaging_state", "n_averaged", value=torch.zeros(3)),
    "averages-more": put("averaging_state", value=lambda state: {**state, "more": torch.zeros(1)}),
    "plateau-a-word": put("plateau", value={"values": {"val/loss": "x"}, "epochs": 0}),
    # optimizer and scheduler
    "no-optimizer": put("optimizer_states", value=[]),
    "two-optimizers": put("optimizer_states", value=lambda states: states * 2),
    "no-groups": put("optimizer_states", 0, "param_groups", value=[]),
    "two-groups": put("optimizer_states", 0, "param_groups", value=lambda groups: groups * 2),
    "fewer-parameters": put(*GROUP, "params", value=[0]),
    "other-parameters": put(*GROUP, "params", value=lambda params: params[::-1]),
    "parameters-of-words": put(*GROUP, "params", value=lambda params: [str(n) for n in params]),
    "rate-a-word": put(*GROUP, "lr", value="x"),
    "rate-a-vector": put(*GROUP, "lr", value=torch.zeros(3)),
    "betas-a-number": put(*GROUP, "betas", value=3),
    "betas-three": put(*GROUP, "betas", value=(0.9, 0.9, 0.9)),
    "no-betas": drop(*GROUP, "betas"),
    "fused-differentiable": put(*GROUP, "differentiable", value=True),
    "amsgrad-without-its-state": put(*GROUP, "amsgrad", value=True),
    "state-of-no-parameter": put("optimizer_states", 0, "state", value=lambda state: {**state, 99: state[0]}),
    "state-of-a-word": put("optimizer_states", 0, "state", value=lambda state: {**state, "x": state[0]}),
    "state-a-list": put(*ADAM, value=[1]),
    "state-without-step": drop(*ADAM, "step"),
    "step-a-vector": put(*ADAM, "step", value=torch.zeros(3)),
    "step-a-whole-number": put(*ADAM, "step", value=torch.tensor(3)),
    "step-a-number": put(*ADAM, "step", value=3.0),
    "more-in-the-state": put(*ADAM, value=lambda state: {**state, "max_exp_avg_sq": torch.zeros(3)}),
    "no-scheduler": put("lr_schedulers", value=[]),
    "scheduler-without-epoch": put("lr_schedulers", 0, value={}),
    "scheduler-at-a-word": put("lr_schedulers", 0, "last_epoch", value="x"),
    "scheduler-of-a-number": put("lr_schedulers", 0, "_last_lr", value=3),
    "scheduler-of-two": put("lr_schedulers", 0, "base_lrs", value=[0.1, 0.1]),
    "scheduler-without-a-method": put("lr_schedulers", 0, value=lambda state: {**state, "step": 3}),
    "scheduler-without-an-optimizer": put("lr_schedulers", 0, value=lambda state: {**state, "optimizer": 3}),
    # hyper-parameters
    "word-of-5000": put(*ENCODER, value=LONG),
    "key-of-5000": put("hyper_parameters", LONG, value=1),
    "class-of-5000": put("hyper_parameters", "_class_path", value=f"vae_lightning.models.{LONG}"),
    "number-of-400": put("hyper_parameters", "latent_size", value=10**400),
    "deep": put(*ENCODER, value=DEEP),
    "shared": put(*ENCODER, value=SHARED),
    "strings": put(*ENCODER, value=MILLIONS),
    "two-lines": put(*ENCODER, value="a\nb"),
    "arguments-a-list": put("hyper_parameters", "optimizer", "init_args", value=[1]),
    "class-a-number": put("hyper_parameters", "optimizer", "class_path", value=3),
    "bytes": put(*ENCODER, value=b"x"),
    "shared-in-callbacks": put("callbacks", "more", value=SHARED),
}


def test_there_are_many() -> None:
    assert len(CHANGES) > 180


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize", "ignore:.*callbacks used to create")
@pytest.mark.parametrize("case", CHANGES)
def test_each_ends_in_one_line(honest: Checkpoint, tmp_path: Path, case: str) -> None:
    """A fit refuses to resume from the file. Loading the model alone is refused too, or gives a model."""
    checkpoint = copy.deepcopy(honest) if "shared" not in case else {**honest, **_copies(honest)}
    CHANGES[case](checkpoint)
    path = tmp_path / LAST
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match=ONE_LINE):
        fit(tmp_path, path)
    with suppress(UserError):
        assert isinstance(load_model(path), VAE)


def _copies(honest: Checkpoint) -> Checkpoint:
    return {name: dict(honest[name]) for name in ("hyper_parameters", "callbacks")}


def test_the_honest_one_goes_on(honest: Checkpoint, tmp_path: Path) -> None:
    """The control: the unchanged checkpoint works, so the refusals above are due to the one change."""
    torch.save(honest, tmp_path / LAST)
    assert fit(tmp_path, tmp_path / LAST).global_step == 4
    assert isinstance(load_model(tmp_path / LAST), VAE)


class Patient(pl.Callback):
    """A callback of a user, whose number is None until the first validation."""

    seen: int | None = 0

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = state_dict["seen"]


def test_a_callback_of_the_users_own_may_keep_what_it_likes(honest: Checkpoint) -> None:
    callback = Patient()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[callback])
    checkpoint = {**honest, "callbacks": {callback.state_key: {"seen": None}}}
    checkpoint.pop("current_model_state")
    check_restored(checkpoint, model(), trainer)
    lying = {**checkpoint, "callbacks": {FiniteSteps().state_key: {"skipped": None, "in_a_row": 0}}}
    trainer.callbacks.append(FiniteSteps())  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"callback FiniteSteps.*skipped is None"):
        check_restored(lying, model(), trainer)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_state_that_is_laid_out_otherwise_is_the_same_state(honest: Checkpoint, tmp_path: Path) -> None:
    """Strides as of another memory format: the fused step would read the numbers in the wrong order."""
    turned = copy.deepcopy(honest)
    put(*ADAM, "exp_avg", value=lambda value: value.t().contiguous().t())(turned)
    weights = []
    for name, checkpoint in (("as-it-was", honest), ("turned", turned)):
        torch.save(checkpoint, tmp_path / name)
        weights.append(fit(tmp_path, tmp_path / name).lightning_module.state_dict()[WEIGHT])
    assert torch.equal(*weights)


# -- files that are not deleted, nor written --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_the_best_of_a_run_that_goes_on_is_its_own(run: Path, tmp_path: Path) -> None:
    """The honest case: after the folder has moved, the scores and files are the same as before."""
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    trainer = fit(moved, moved / "checkpoints" / LAST, epochs=1)
    ours, theirs = _checkpoint_callbacks(trainer)
    assert ours.best_model_path == str(moved / "checkpoints" / "best.ckpt")
    assert ours.best_model_score is not None
    assert ours.best_k_models == {ours.best_model_path: ours.best_model_score}
    assert theirs.best_model_path == str(moved / "checkpoints" / "more" / "epoch=0.ckpt")
    assert list(theirs.best_k_models) == [theirs.best_model_path]


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_the_worst_of_several_is_known_again(tmp_path: Path) -> None:
    """Of the two best files of a user's ModelCheckpoint, the worse one is replaced."""
    before = _checkpoint_callbacks(fit(tmp_path / "run", epochs=2))[1]
    moved = Path(shutil.copytree(tmp_path / "run", tmp_path / "moved"))
    after = _checkpoint_callbacks(fit(moved, moved / "checkpoints" / LAST, epochs=2))[1]
    for name in ("best_model_path", "kth_best_model_path"):
        assert Path(getattr(after, name)).name == Path(getattr(before, name)).name
    assert Path(after.kth_best_model_path).is_relative_to(moved)
    assert (after.kth_value, after.best_model_score) == (before.kth_value, before.best_model_score)
    assert before.kth_value != before.best_model_score


@pytest.mark.parametrize(("mode", "worst"), [("max", "low.ckpt"), ("min", "high.ckpt")])
def test_the_worst_is_by_the_order_that_the_callback_has(tmp_path: Path, mode: str, worst: str) -> None:
    callback = ModelCheckpoint(tmp_path, monitor="val/elbo", mode=mode, save_top_k=2)
    scores = {str(tmp_path / name): torch.tensor(score) for name, score in (("low.ckpt", -9.0), ("high.ckpt", -1.0))}
    for path in scores:
        Path(path).touch()
    taken = own_files(callback, {"dirpath": str(tmp_path), "best_k_models": scores}, tmp_path)
    assert Path(taken["kth_best_model_path"]).name == worst
    assert taken["kth_value"] == scores[str(tmp_path / worst)]


def test_the_callback_alone_takes_no_path_from_a_state(tmp_path: Path) -> None:
    """Also for a model whose `on_load_checkpoint` checks nothing."""
    callback = BestAndLast()
    callback.dirpath = str(tmp_path)
    lie = {"dirpath": "/x", "best_model_path": "/y/a.ckpt", "last_model_path": "/x/../y", "best_k_models": {"/y": 0.0}}
    callback.load_state_dict(lie)
    known = (callback.best_model_path, callback.last_model_path, callback.kth_best_model_path, callback.best_k_models)
    assert known == ("", "", "", {})


def _checkpoint_callbacks(trainer: pl.Trainer) -> tuple[ModelCheckpoint, ModelCheckpoint]:
    ours, theirs = sorted(trainer.checkpoint_callbacks, key=lambda callback: not isinstance(callback, BestAndLast))
    assert isinstance(ours, ModelCheckpoint)
    assert isinstance(theirs, ModelCheckpoint)
    return ours, theirs


LIES = {  # the folder that the state names, and the path of the file that it names
    "above": ("/x", "/x" + "/.." * 30 + "{victim}"),
    "plain": ("{folder}", "{victim}"),
    "beside": ("{folder}", "{folder}/../../victim"),
    "by-a-link": ("{folder}", "{folder}/link/victim"),
    "own-folder": ("{outside}", "{victim}"),
}


@pytest.mark.parametrize("name", ["BestAndLast", "ModelCheckpoint"])
@pytest.mark.parametrize("lie", LIES)
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_no_file_outside_is_deleted(run: Path, honest: Checkpoint, tmp_path: Path, name: str, lie: str) -> None:
    """Nor moved, whatever paths the state of a callback (ours or a user's) gives as best, worst and last."""
    outside, copied = tmp_path / "outside", Path(shutil.copytree(run, tmp_path / "run"))
    outside.mkdir()
    (outside / "victim").write_text("keep me")
    (tmp_path / "victim").write_text("keep me")
    (copied / "victim").write_text("keep me")
    folder = copied / "checkpoints" / ("more" if name == "ModelCheckpoint" else "")
    (folder / "link").symlink_to(outside)
    places = {"victim": outside / "victim", "folder": folder, "outside": outside}
    dirpath, path = (text.format(**places) for text in LIES[lie])
    low = torch.tensor(-1e9 if name == "BestAndLast" else 1e9)
    changed = copy.deepcopy(honest)
    state = changed["callbacks"][_key(changed["callbacks"], name)]
    state.update(dirpath=dirpath, best_model_path=path, kth_best_model_path=path, last_model_path=path)
    state.update(best_k_models={path: low}, kth_value=low, best_model_score=low)
    torch.save(changed, copied / "checkpoints" / LAST)
    fit(copied, copied / "checkpoints" / LAST, epochs=4)
    assert [file.read_text() for file in (outside / "victim", tmp_path / "victim", copied / "victim")] == [
        "keep me"
    ] * 3
    assert (copied / "checkpoints" / "best.ckpt").is_file()


# -- memory -----------------------------------------------------------------------------------------------------------


@contextmanager
def at_most(gigabytes: float) -> Iterator[None]:
    """Limit the memory that this process may take in addition to what it has."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + int(gigabytes * GIB), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


SIZES: dict[str, Callable[[Checkpoint], None]] = {
    "latents": put("hyper_parameters", "latent_size", value=10**9),
    "latents-of-4-GB": put("hyper_parameters", "latent_size", value=10**8),
    "hidden": put("hyper_parameters", "encoder", "init_args", "hidden_sizes", value=[10**5, 10**5]),
    "image": put("hyper_parameters", "image_shape", value=[1, 10**5, 10**5]),
    "levels": put(
        "hyper_parameters",
        "likelihood",
        value={
            "class_path": "vae_lightning.distributions.CategoricalLevels",
            "init_args": {"num_levels": 10**8},
        },
    ),
    "layers": put(
        "hyper_parameters",
        "prior",
        value={
            "class_path": "vae_lightning.distributions.FlowPrior",
            "init_args": {"num_steps": 10**9},
        },
    ),
    "components": put(
        "hyper_parameters",
        "prior",
        value={
            "class_path": "vae_lightning.distributions.MixtureOfNormals",
            "init_args": {"num_components": 10**9},
        },
    ),
    "linear": put(
        "hyper_parameters",
        "encoder",
        "init_args",
        "activation",
        value={
            "class_path": "torch.nn.Linear",
            "init_args": {"in_features": 10**5, "out_features": 10**5},
        },
    ),
}


@pytest.mark.parametrize("case", SIZES)
def test_a_model_may_not_ask_for_more_than_its_weights_account_for(
    honest: Checkpoint, tmp_path: Path, case: str
) -> None:
    changed = copy.deepcopy(honest)
    SIZES[case](changed)
    torch.save(changed, tmp_path / LAST)
    with at_most(2), pytest.raises(UserError, match="far larger than its weights"):
        load_model(tmp_path / LAST)


def rewritten(checkpoint: Checkpoint, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """The bytes of a checkpoint file whose zip members are changed by `change`."""
    before, after = io.BytesIO(), io.BytesIO()
    torch.save(checkpoint, before)
    with zipfile.ZipFile(before) as source, zipfile.ZipFile(after, "w", method) as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return after.getvalue()


def says_longer(contents: bytes) -> bytes:
    """The same file, with its zip directory repeated ten times."""
    end = contents.rindex(b"PK\x05\x06")
    (start,) = struct.unpack("<I", contents[end + 16 : end + 20])  # a search could find the weights' bytes
    directory = contents[start:end]
    count = struct.unpack("<H", contents[end + 10 : end + 12])[0] * 10
    tail = struct.pack("<HHII", count, count, len(directory) * 10, start)
    return contents[:start] + directory * 10 + contents[end : end + 8] + tail + contents[end + 20 :]


def takes(code: bytes) -> Callable[[str, bytes], bytes]:
    """Put a call at the start of the pickle, and discard its result."""
    return lambda name, data: data[:2] + code + b"0" + data[2:] if name.endswith("data.pkl") else data


FILES: dict[str, Callable[[Checkpoint], bytes]] = {
    "compressed": lambda honest: rewritten(
        {**honest, "more": torch.zeros(2**24)}, lambda _, data: data, zipfile.ZIP_DEFLATED
    ),
    "repeated-members": lambda honest: says_longer(rewritten(honest, lambda _, data: data)),
    "bytearray": lambda honest: rewritten(honest, takes(b"cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x04\x85R")),
    "float-tensor": lambda honest: rewritten(honest, takes(b"ctorch\nFloatTensor\n\x8a\x05\x00\x00\x00\x00\x02\x85R")),
    "record-shorter-than-its-storage": lambda honest: rewritten(
        honest, lambda name, data: data[:8] if name.endswith("data/0") else data
    ),
    "no-pickle": lambda honest: rewritten(honest, lambda name, data: b"" if name.endswith("data.pkl") else data),
    "not-torchs": lambda _: zip_of({"a": b"b"}),
}


def zip_of(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize("case", FILES)
def test_a_file_takes_no_more_memory_than_it_is_long(honest: Checkpoint, tmp_path: Path, case: str) -> None:
    path = tmp_path / LAST
    path.write_bytes(FILES[case](honest))
    assert path.stat().st_size < 3 * 2**20
    repeated = "(longer than the file|lies over another)"  # the second by a Python that looks for overlaps
    says = {"compressed": "is compressed", "repeated-members": repeated}.get(case, "not a readable")
    with at_most(0.5), pytest.raises(UserError, match=rf"last\.ckpt: .*{says}") as refused:
        load_model(path)
    assert "\n" not in str(refused.value)
    with at_most(0.5), pytest.raises(UserError):
        WholeFiles().load_checkpoint(path)


# -- words and pickles ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [load_model, VAE.load_from_checkpoint])
@pytest.mark.parametrize(
    ("place", "word"),
    [
        (("encoder", "init_args", "activation"), "Alexnet"),
        (("encoder", "init_args", "activation"), {"class_path": "Alexnet"}),
        (("encoder", "init_args", "activation"), "ForeignActivation"),
        (("encoder",), "ForeignNetwork"),
        (("encoder",), {"class_path": "ForeignNetwork"}),
    ],
)
def test_a_bare_word_is_a_class_of_a_trusted_module_alone(
    honest: Checkpoint, tmp_path: Path, how: Callable[[Path], Any], place: tuple[str, ...], word: Any
) -> None:
    """A short name selects no untrusted class, even if its module is imported. BUILT lists the built classes."""
    changed = copy.deepcopy(honest)
    put("hyper_parameters", *place, value=word)(changed)
    torch.save(changed, tmp_path / LAST)
    with pytest.raises(UserError, match=r"last\.ckpt: names \w+, here (torchmetrics|tests)\.[\w.]+, which is not of"):
        how(tmp_path / LAST)
    assert BUILT == []


BUILT: list[str] = []


class ForeignActivation(nn.ReLU):
    def __init__(self) -> None:
        super().__init__()
        BUILT.append("activation")


class ForeignNetwork(MLP):
    def __init__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> None:
        super().__init__(in_shape, out_shape)
        BUILT.append("network")


def test_a_bare_word_of_ours_is_known(honest: Checkpoint, tmp_path: Path) -> None:
    changed = copy.deepcopy(honest)
    put("hyper_parameters", "encoder", "init_args", "activation", value="Tanh")(changed)
    torch.save(changed, tmp_path / LAST)
    assert any(isinstance(module, nn.Tanh) for module in load_model(tmp_path / LAST).modules())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("weights_only", [None, False, True])
def test_a_fit_opens_no_pickle(honest: Checkpoint, tmp_path: Path, weights_only: bool | None, protocol: int) -> None:
    """A resume refuses the pickle, whatever `weights_only` the trainer passes. Protocol 4 hides the names."""
    torch.save({**honest, "more": Pickled(tmp_path / "opened")}, tmp_path / LAST, pickle_protocol=protocol)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=2, plugins=[WholeFiles()], default_root_dir=tmp_path, **quiet)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="more in it than plain data"):
        trainer.fit(model(), Digits(batch_size=8), ckpt_path=tmp_path / LAST, weights_only=weights_only)
    assert not (tmp_path / "opened").exists()


def test_a_pickle_in_a_checkpoint_would_be_seen(honest: Checkpoint, tmp_path: Path) -> None:
    """The control: the attack works without the checks."""
    torch.save({**honest, "more": Pickled(tmp_path / "opened")}, tmp_path / LAST)
    torch.load(tmp_path / LAST, weights_only=False)
    assert (tmp_path / "opened").exists()


# -- the command line -------------------------------------------------------------------------------------------------

COMMANDS = {
    "fit": ("fit", "-c", DIGITS, "--trainer.logger=false", "--trainer.max_epochs=2", "--ckpt_path"),
    "test": ("test", "-c", DIGITS, "--ckpt_path"),
    "sample": ("sample",),
}


@pytest.mark.parametrize(
    ("verb", "case"),
    [
        ("fit", "loops-is-a-number"),
        ("fit", "no-callbacks"),
        ("fit", "callbacks-is-a-number"),
        ("fit", "global_step-is-a-word"),
        ("test", "loops-is-a-number"),
        ("test", "weight-quantised"),
        ("sample", "state_dict-is-a-word"),
        ("sample", "weight-sparse"),
        ("sample", "word-of-5000"),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_a_command_ends_in_one_line(
    honest: Checkpoint, tmp_path: Path, verb: str, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = copy.deepcopy(honest)
    CHANGES[case](checkpoint)
    torch.save(checkpoint, tmp_path / LAST)
    runs = () if verb == "sample" else (f"--runs_dir={tmp_path}",)
    assert main([*COMMANDS[verb], str(tmp_path / LAST), *runs]) == 2
    error = capfd.readouterr().err.strip()
    assert error.startswith(f"vae-lightning: error: {tmp_path / LAST}: ")
    assert "\n" not in error

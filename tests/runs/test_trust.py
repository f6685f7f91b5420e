"""Loading an untrusted file runs no code of the file: no attack leaves its marker."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import DIGITS, REPOSITORY
from vae_lightning.__main__ import main
from vae_lightning.distributions import Binomial
from vae_lightning.models import VAE
from vae_lightning.models.loading import load_model
from vae_lightning.networks import MLP
from vae_lightning.types import UserError

TINY = partial(MLP, hidden_sizes=(4,))
MODULE = "marker_of_an_attack"
NAME = f"{MODULE}.Network"
HUB = {"class_path": "torch.hub.load", "init_args": {"source": "local", "model": "x"}}


@pytest.fixture(scope="module")
def honest() -> dict[str, Any]:
    model = VAE((1, 8, 8), 4, encoder=TINY, decoder=TINY, likelihood=partial(Binomial, num_steps=16))
    hparams = dict(model.hparams)
    whole = {"optimizer_states": [], "global_step": 0, "epoch": 0, "pytorch-lightning_version": "2.6.6"}
    return {**whole, "state_dict": model.state_dict(), "hyper_parameters": hparams}


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that importing the module of an attack writes, or a repository given to torch.hub."""
    path = tmp_path / "marker"
    for name in (MODULE, "hubconf"):
        (tmp_path / f"{name}.py").write_text(f"open({str(path)!r}, 'w').close()\nclass Network: ...\ndef f(*_): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(REPOSITORY)
    yield path
    assert not path.exists()
    assert MODULE not in sys.modules


def put(checkpoint: dict[str, Any], *keys: str, value: Any) -> dict[str, Any]:
    """A copy of a checkpoint with a value at a place in it."""
    changed = copy.deepcopy(checkpoint)
    place = changed
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return changed


ENCODER, ACTIVATION = ("encoder",), ("encoder", "init_args", "activation")
ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
NAMES: dict[str, tuple[tuple[str, ...], Any]] = {
    "model": (("_class_path",), NAME),
    "no-model": (("_class_path",), 3),
    "instantiator": (("_instantiator",), f"{MODULE}.f"),
    "instantiator-of-theirs": (("_instantiator",), "torch.hub.load"),
    "slot": (ENCODER, {"class_path": NAME}),
    "nested": (ACTIVATION, {"class_path": NAME}),
    "dict_kwargs": ((*ENCODER, "dict_kwargs"), {"x": {"class_path": NAME}}),
    "bare-name": (ENCODER, NAME),
    "in-a-list": (ACTIVATION, [["a", NAME]]),
    "as-a-key": ((NAME,), 1),
    "padded": (ENCODER, f" {NAME} "),
    "list-in-yaml": (ENCODER, f"- {NAME}"),
    "mapping-in-yaml": (ENCODER, f"{{class_path: {NAME}}}"),
    "nested-in-yaml": (ACTIVATION, f"{{class_path: {NAME}}}"),
    "lines-of-yaml": (ENCODER, f"class_path:\n  {NAME}"),
    "quoted-in-yaml": (ENCODER, f"'{NAME}'"),
    "escaped-in-yaml": (ENCODER, f'{{class_path: "{MODULE}\\x2eNetwork"}}'),
    "tag-in-yaml": (ENCODER, f"!!python/name:{NAME}"),
    "config-file": (ENCODER, "evil.yaml"),
    "config-file-by-its-path": (ENCODER, "/tmp/evil.yaml"),
    "config-file-in-a-folder": (ENCODER, "runs/evil.yaml"),
    "function": (("optimizer",), HUB),
    "function-of-ours": (("optimizer",), "vae_lightning.__main__.console"),
    "function-of-torch": (ACTIVATION, "torch.utils.collect_env.main"),
    "method": (ACTIVATION, "torch.nn.Module.to"),
    "no-plain-data": (ENCODER, torch.zeros(1)),
    "endless": (ENCODER, ENDLESS),
}


def load(path: Path) -> Any:
    return VAE.load_from_checkpoint(path)


@pytest.mark.parametrize("how", [load_model, load])
@pytest.mark.parametrize("case", NAMES)
def test_no_name_in_a_checkpoint_is_looked_up_unless_it_is_known(
    honest: dict[str, Any], marker: Path, how: Callable[[Path], Any], case: str
) -> None:
    keys, value = NAMES[case]
    if value is HUB:
        value = {**HUB, "init_args": {**HUB["init_args"], "repo_or_dir": str(marker.parent)}}  # type: ignore[dict-item]
    path = marker.with_name("a.ckpt")
    torch.save(put(honest, "hyper_parameters", *keys, value=value), path)
    with pytest.raises(UserError, match=r"a\.ckpt: (names|holds|_instantiator is|its|not|nested)") as caught:
        how(path)
    assert "\n" not in str(caught.value)


def test_no_file_is_read_for_a_word(honest: dict[str, Any], marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """jsonargparse accepts the name of a YAML file for a slot, and such a file may have a plain word as its name."""
    monkeypatch.chdir(marker.parent)
    Path("evil").write_text(f"class_path: {NAME}")
    torch.save(put(honest, "hyper_parameters", *ENCODER, value="evil"), marker.with_name("a.ckpt"))
    with pytest.raises(UserError, match=r"a\.ckpt: holds the word 'evil', and the present folder has a file"):
        load_model(marker.with_name("a.ckpt"))


def test_a_file_with_the_name_of_an_argument_is_in_nobodys_way(
    honest: dict[str, Any], marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(marker.parent)
    Path("encoder").write_text("my notes")
    Path("init_args").write_text("my notes")
    torch.save(honest, marker.with_name("a.ckpt"))
    load_model(marker.with_name("a.ckpt"))


@pytest.mark.parametrize("how", [load_model, load])
@pytest.mark.parametrize("key", ["hparams", "module_arguments"])
def test_hyper_parameters_of_old_releases_are_not_mixed_in(
    honest: dict[str, Any], marker: Path, how: Callable[[Path], Any], key: str
) -> None:
    path = marker.with_name("a.ckpt")
    torch.save({**honest, key: {"encoder": {"class_path": NAME}}}, path)
    with pytest.raises(UserError, match="not loaded"):
        how(path)


def test_hyper_parameters_of_a_file_beside_are_not_read(honest: dict[str, Any], marker: Path) -> None:
    torch.save(honest, marker.with_name("a.ckpt"))
    marker.with_name("h.yaml").write_text(f"encoder: {{class_path: {NAME}}}")
    with pytest.raises(UserError, match=r"h\.yaml: not read"):
        VAE.load_from_checkpoint(marker.with_name("a.ckpt"), hparams_file=marker.with_name("h.yaml"))


class OwnMLP(MLP):
    """A network in a package that is not ours."""


class OwnVAE(VAE):
    """A model in a package that is not ours."""


def test_what_is_known_loads(honest: dict[str, Any], tmp_path: Path) -> None:
    """Our models load everywhere. A model of another package loads only if the caller names its class."""
    torch.save(honest, tmp_path / "a.ckpt")
    for model in (load_model(tmp_path / "a.ckpt"), VAE.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=False)):
        assert all(torch.equal(value, honest["state_dict"][name]) for name, value in model.state_dict().items())
    own = OwnVAE((1, 8, 8), 4, encoder=partial(OwnMLP, hidden_sizes=(4,)), decoder=TINY)
    torch.save({**honest, "state_dict": own.state_dict(), "hyper_parameters": dict(own.hparams)}, tmp_path / "b.ckpt")
    assert isinstance(OwnVAE.load_from_checkpoint(tmp_path / "b.ckpt").encoder, OwnMLP)
    with pytest.raises(UserError, match=r"names tests\.runs\.test_trust\.OwnMLP, which is not of vae_lightning"):
        load_model(tmp_path / "b.ckpt")


def test_the_marker_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the attacks work without the checks."""
    (tmp_path / "a_module_of_the_control.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("a_module_of_the_control")
    assert (tmp_path / "marker").exists()
    torch.save(Pickled(tmp_path / "pickled"), tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "pickled").exists()


# -- pickles ----------------------------------------------------------------------------------------------------------


class Pickled:
    """Unpickling this object makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.path,)


def verb(*args: str) -> Callable[[Path], Any]:
    """Run a command on the checkpoint in this process; its error is raised."""

    def run(path: Path) -> None:
        code = main([arg.format(path) for arg in args] + ([] if args[0] == "sample" else [f"--runs_dir={path.parent}"]))
        if code:
            raise UserError("said so")

    return run


COMMANDS = {
    "sample": verb("sample", "{0}", "--output={0}.png"),
    "test": verb("test", "-c", DIGITS, "--ckpt_path={0}"),
    "fit": verb("fit", "-c", DIGITS, "--ckpt_path={0}", "--trainer.logger=false"),
    "fit-unsafe": verb("fit", "-c", DIGITS, "--ckpt_path={0}", "--trainer.logger=false", "--weights_only=false"),
}


@pytest.mark.parametrize("place", [(), ("state_dict", "x"), ("hyper_parameters", "encoder"), ("loops",), ("new",)])
def test_a_pickle_is_not_opened(
    honest: dict[str, Any], marker: Path, place: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a function call nor a command opens a pickle, wherever it stands, even if torch is told to trust it."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = marker.with_name("a.ckpt")
    torch.save(put(honest, *place, value=Pickled(marker)) if place else Pickled(marker), path)
    for how in (load_model, load, *(COMMANDS[name] for name in ("sample", "test", "fit-unsafe"))):
        with pytest.raises(UserError):
            how(path)
        assert not marker.exists()


@pytest.mark.parametrize(("command", "says"), [("test", "does not fit"), ("fit", "weights alone")])
def test_a_command_line_takes_no_class_from_a_checkpoint(
    honest: dict[str, Any], marker: Path, command: str, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The config alone chooses the classes. The checkpoint gives only weights, which do not fit in this test."""
    path = marker.with_name("a.ckpt")
    torch.save(put(honest, "hyper_parameters", "_class_path", value=NAME), path)
    with pytest.raises(UserError):
        COMMANDS[command](path)
    assert says in capfd.readouterr().err


# -- addresses --------------------------------------------------------------------------------------------------------

ADDRESSES = ["http://127.0.0.1:1/a.ckpt", "https://a.example/a.ckpt", "s3://a/b.ckpt", "gs://a/b.ckpt", "hf://a/b.ckpt"]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("fsspec.open", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.usefixtures("no_network", "marker")
def test_an_address_is_refused_and_not_fetched(address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runs = f"--runs_dir={tmp_path}"
    for args in (["sample", address], ["test", "-c", DIGITS, f"--ckpt_path={address}", runs]):
        assert main(args) == 2
        assert f"error: {address}: an address, expected a file on this machine; download" in capfd.readouterr().err
    for how in (load_model, VAE.load_from_checkpoint):
        with pytest.raises(UserError, match="an address, expected a file on this machine"):
            how(address)


# -- the configuration in a run's folder -----------------------------------------------------------------------------

CONFIGS = {
    "class": f"data: {{class_path: {NAME}}}",
    "not-a-data-set": "data: {class_path: torch.hub.load}",
    "nested": f"data: {{class_path: vae_lightning.data.Digits, init_args: {{batch_size: {{class_path: {NAME}}}}}}}",
    "hidden": f"data: {{class_path: vae_lightning.data.Digits, init_args: {{seed: '{{class_path: {NAME}}}'}}}}",
    "tag": f"data: !!python/object/apply:{NAME} []",
    "no-data": "model: 1",
    "list": "[1]",
    "null": "data: null",
    "text": "data",
}


@pytest.mark.parametrize("case", CONFIGS)
def test_the_configuration_beside_a_checkpoint_names_data_sets_of_ours_alone(
    honest: dict[str, Any], marker: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    path = marker.parent / "run" / "checkpoints" / "a.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(honest, path)
    (path.parent.parent / "config.yaml").write_text(CONFIGS[case])
    assert main(["reconstruct", str(path)]) == 2
    assert "config.yaml: " in capfd.readouterr().err

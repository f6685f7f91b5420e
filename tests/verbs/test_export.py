"""`vae-lightning export` on a run: files that other programs run, a model that loads again, a folder for the hub."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
import types
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from tests.helpers import DIGITS, REPOSITORY, only
from vae_lightning.__main__ import main
from vae_lightning.models import AIR, VAE, load_safetensors, save_safetensors
from vae_lightning.models.loading import load_model
from vae_lightning.networks import MLP
from vae_lightning.trace import Trace
from vae_lightning.types import Batch, UserError
from vae_lightning.verbs import export
from vae_lightning.verbs._card import card

QUICK = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.check_val_every_n_epoch=1")
QUIET = ("--trainer.logger=false", "--nll.num_samples=2", "--trainer.accelerator=cpu", "--model.latent_size=3")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the digits: two steps of training, and a test."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        patch.delenv("VAE_LIGHTNING_RUN_ID", raising=False)
        assert main(["train", "-c", DIGITS, *QUICK, *QUIET, f"--runs_dir={folder}"]) == 0
    return only(folder, "vae/digits/*")


PAGE = (REPOSITORY / "docs" / "export.md").read_text()


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The lines that each command of docs/export.md prints, by format."""
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        for line in commands.splitlines():
            args, out = shlex.split(line.replace("RUN", str(run)))[1:], io.StringIO()
            with redirect_stdout(out):
                assert main(args) == 0
            found[args[3]] = out.getvalue().splitlines()
        assert sorted(path.name for path in Path("for_torch").iterdir()) == ["decoder.pt2", "encoder.pt2"]
    return found


def test_onnx_runs_without_torch(run: Path, exported: dict[str, list[str]]) -> None:
    out, folder = exported["onnx"], run / "export"
    assert sorted(path.name for path in folder.glob("*.onnx*")) == ["decoder.onnx", "encoder.onnx"]  # weights inside
    assert out[0].startswith(f"encoder     {folder}/encoder.onnx  ")
    assert out[1] == "            x [batch, 1, 8, 8] -> z_mean [batch, 3], z_scale [batch, 3]"
    assert out[4] == "            z [batch, 3] -> x_mean [batch, 1, 8, 8]"
    assert len(out) == 6  # nothing of the exporter's own
    for line in (out[2], out[5]):
        found = re.fullmatch(
            r" +differs from the model by (\S+) at most \(batches of 1, 2, 3 and 17; test examples\)", line
        )
        assert found
        assert float(found[1]) < 1e-5


@pytest.mark.usefixtures("exported")
def test_the_lines_of_python_in_the_page_do_as_they_say(run: Path) -> None:
    x = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    here: dict[str, Any] = {"folder": run / "export", "x": x}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, here)
    expected = load_model(run / "checkpoints" / "best.ckpt")(torch.from_numpy(x)).detach()
    torch.testing.assert_close(torch.from_numpy(here["image"]), expected, rtol=0, atol=1e-5)
    assert here["images"].shape == (16, 1, 8, 8)


def test_safetensors_loads_into_the_same_model(run: Path, exported: dict[str, list[str]]) -> None:
    path = run / "export" / "model.safetensors"
    assert exported["safetensors"][1].startswith("difference  0.0e+00 at most from the model")
    model, again = load_model(run / "checkpoints" / "best.ckpt"), load_safetensors(path)
    assert type(again) is VAE
    assert dict(again.hparams) == dict(model.hparams)
    assert again.loaded_step == model.loaded_step == 2
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    assert config["hyper_parameters"]["latent_size"] == 3


def test_hub_writes_a_card_of_the_runs_own_numbers(run: Path, exported: dict[str, list[str]]) -> None:
    folder = run / "export" / "hub"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert not any("uploaded" in line for line in exported["hub"])
    results, text = json.loads((run / "results.json").read_text()), (folder / "README.md").read_text()
    metrics = results["metrics"]
    nll = f"{metrics['test/nll']:.2f} +- {metrics['test/nll_stderr']:.2f}"
    assert f"| test -log p(x), importance sampling with K = 2 | {nll} | nats per image" in text
    assert "355 test examples of Digits; likelihood Binomial; binarisation none; seed 0; precision 32-true" in text
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "vae_lightning"
    recipe = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    assert recipe["model"]["init_args"]["latent_size"] == 3
    assert recipe["trainer"] == {"max_epochs": 1}
    assert "data_dir" not in recipe["data"]["init_args"]
    assert str(run) not in text + (folder / "config.json").read_text()  # no place of this machine
    assert type(load_safetensors(folder)) is VAE
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    here: dict[str, torch.Tensor] = {}
    exec(code.replace('"model.safetensors"', repr(str(folder))), here)
    assert here["samples"].shape == (16, 1, 8, 8)


def test_a_card_of_a_run_with_a_beta_of_0_has_its_measures_and_no_bound() -> None:
    numbers = {"nll": 9e4, "elbo": -9e4, "kl": 9e4, "log_likelihood": -3.0, "exact_match": 0.5}
    metrics = {f"test/{name}": value for name, value in numbers.items()} | {"test/exact_match_stderr": 0.025}
    facts = {"untrained_kl": ["sentence"], "loss_note": "no bound", "measures": ["exact_match"]}
    text = card("toy", "Seq4", {"metrics": metrics, "units": {"exact_match": "share"}, **facts}, {})
    rows = re.findall(r"\| test (.*) \|", text)
    assert rows == ["exact_match | 0.500 +- 0.025 | share", "log_likelihood | -3 | nats"]
    assert "loss: no bound" in text


@pytest.mark.slow
def test_the_card_trains_the_model_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["export", str(run), "--format=hub", f"--output={tmp_path}"]) == 0
    recipe = re.findall(r"```yaml\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)[0]
    (tmp_path / "train.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "-c", "train.yaml", "--trainer.max_steps=1", "--trainer.logger=false"]) == 0


def test_upload_sends_the_folder_and_nothing_else(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[object] = []

    class HfApi:
        def create_repo(self, name: str, exist_ok: bool) -> None:
            sent.append((name, exist_ok))

        def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> str:
            if "refused" in repo_id:
                raise OSError("401 Client Error\nno token")
            sent.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
            return f"https://huggingface.co/{repo_id}"

    hub = types.ModuleType("huggingface_hub")
    hub.HfApi = HfApi  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setattr(export, "find_spec", lambda name: name)
    args = ["export", str(run), "--format=hub", f"--output={tmp_path}"]
    assert main([*args, "--upload=me/digits"]) == 0
    assert sent == [("me/digits", True), ("me/digits", ["README.md", "config.json", "model.safetensors"])]
    assert capsys.readouterr().out.splitlines()[-1] == "uploaded    https://huggingface.co/me/digits"
    assert main([*args, "--upload=me/refused"]) == 1
    error = capsys.readouterr().err
    assert error == (
        "vae-lightning: error: export: me/refused could not be uploaded (401 Client Error no token); the files are in "
        f"{tmp_path}\n"
    )


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_if_a_file_differs_none_is_written(
    run: Path, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "worst_difference", lambda one, _: 2e-4 * (one.name == part))
    (tmp_path / "encoder.pt2").write_text("an older file")
    assert main(["export", str(run), "--format=pt2", f"--output={tmp_path}"]) == 1
    differs = f"{part}.pt2: differs from the model by 2.0e-04, which is above 0.0001: nothing is written"
    assert differs in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["an older file"]


def test_pt2_and_a_run_without_its_data(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes((run / "checkpoints" / "best.ckpt").read_bytes())
    assert main(["export", str(tmp_path / "checkpoints" / "best.ckpt"), "--format=pt2"]) == 0
    assert "random images: the run's data are not here" in capsys.readouterr().out
    program = torch.export.load(tmp_path / "export" / "encoder.pt2").module()
    assert [value.shape for value in program(torch.rand(7, 1, 8, 8))] == [(7, 3), (7, 3)]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--format=onx"], r"invalid choice: 'onx' .*\(did you mean onnx\?\)"),
        ([], "the following arguments are required: --format"),
        (["--format=onnx", "--upload=a/b"], "--upload a/b needs --format hub"),
        (["--format=pt2", "--output=/dev/null/x"], "cannot be written .*choose another folder by --output"),
    ],
)
def test_a_mistake_is_one_line(run: Path, args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), *args]) == 2
    assert re.fullmatch(f"vae-lightning: error: .*{says}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(("form", "extra"), [("onnx", "export"), ("safetensors", "export"), ("hub", "hub")])
def test_a_missing_package_is_named_with_its_extra(
    run: Path, form: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda _: None)
    assert main(["export", str(run), f"--format={form}"]) == 2
    assert f"which is not installed: pip install 'vae_lightning[{extra}]'" in capsys.readouterr().err


@pytest.mark.parametrize(("form", "package"), [("onnx", "onnx"), ("safetensors", "safetensors")])
def test_a_package_that_fails_at_import_is_named_with_its_extra(
    run: Path,
    tmp_path: Path,
    form: str,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As after an upgrade of Python: the package is found, but its compiled part is not."""
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise ImportError('no module\\n_C')")
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["export", str(run), f"--format={form}"]) == 2
    assert capsys.readouterr().err == (
        f"vae-lightning: error: export: --format {form} needs {package}, which is installed but cannot be imported "
        f"(ImportError: no module _C): pip install --force-reinstall {package}, which comes with "
        "'vae_lightning[export]'\n"
    )
    if package == "safetensors":
        with pytest.raises(UserError, match=r"needs safetensors, which is installed but cannot be imported"):
            load_safetensors(_written(tmp_path / "model.safetensors"))


def _written(path: Path) -> Path:
    path.write_bytes(b"")
    return path


class OwnVAE(VAE):
    """A model whose q sees -x; its `infer` is that of VAE."""

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        return super().trace({**batch, "x": -batch["x"]}, num_samples, step)


def test_a_model_whose_infer_is_not_its_trace_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = OwnVAE((1, 8, 8), 3)
    monkeypatch.setattr(export, "load_model", lambda *_: model.eval())
    assert main(["export", str(run), "--format=pt2", f"--output={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vae-lightning: error: export: OwnVAE: infer differs from its trace in z_mean, z_scale: ")
    assert error.endswith("; --format safetensors serves every model\n")
    assert not list(tmp_path.iterdir())


# -- the file of weights ----------------------------------------------------------------------------------------------


def test_weights_that_share_memory_are_written() -> None:
    model = VAE((1, 2, 2), 2, encoder=MLP, decoder=MLP)
    model.decoder.layers[-1].bias = model.encoder.layers[-1].bias  # safetensors itself refuses this
    with pytest.MonkeyPatch.context() as patch:
        written: dict[Path, bytes] = {}
        patch.setattr("vae_lightning.models.weights_file.write_whole", written.__setitem__)
        save_safetensors(model, "model.safetensors")
    assert written[Path("model.safetensors")]


def test_every_model_has_a_file_of_weights(tmp_path: Path) -> None:
    model = AIR((1, 24, 24), num_steps=2)
    save_safetensors(model, tmp_path / "air.safetensors")
    assert type(load_safetensors(tmp_path / "air.safetensors")) is AIR


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (None, "cannot be read"),
        (b"", "not a model of vae-lightning export"),
        (b"\x08\0\0\0\0\0\0\0{}      ", "not a model of vae-lightning export"),
        (b"\xff" * 100, "not a model of vae-lightning export"),
    ],
)
def test_another_file_is_refused_in_one_line(contents: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(UserError, match=says) as error:
        load_safetensors(path)
    assert "\n" not in str(error.value)


def test_an_untrusted_class_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_safetensors(VAE((1, 2, 2), 2), path)
    contents = path.read_bytes()
    path.write_bytes(contents.replace(b"vae_lightning.models.vae.VAE", b"bad_lightning.models.vae.VAE"))
    with pytest.raises(UserError, match="which is not of vae_lightning"):
        load_safetensors(path)

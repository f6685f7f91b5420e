"""`vae-lightning translate` from the command line, on a model of two texts after two steps of training."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers import REPOSITORY, only
from vae_lightning.__main__ import main
from vae_lightning.data import ToyQueries
from vae_lightning.data.loading import data_of
from vae_lightning.models import VAE, Seq4, load_safetensors
from vae_lightning.models.loading import load_model
from vae_lightning.runs.folder import best_checkpoint

QUICK = (
    *("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"),
    *("--trainer.logger=false", "--trainer.accelerator=cpu", "--pictures.num_images=4", "--data.num_val=4"),
    *("--trainer.check_val_every_n_epoch=1", "--data.num_unlabelled=20", "--data.num_pairs=20", "--data.batch_size=8"),
)
LINES = ("how large is texas", "", "name the states along the zzz river", "  ", "count the rivers in ohio")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seq4")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        assert main(["fit", "-c", "configs/seq4/toy.yaml", *QUICK, f"--runs_dir={folder}"]) == 0
    return only(folder, "seq4/toy/*")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


def read_by_hand(run: Path, lines: list[str]) -> list[str]:
    model, data = load_model(best_checkpoint(run)), data_of(best_checkpoint(run), [])
    assert isinstance(model, Seq4)
    assert isinstance(data, ToyQueries)
    return data.decode("x", model.read(data.encode("sentence", lines)[0]))


def test_one_line_in_is_one_line_out(run: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line is what the model reads of it alone; an empty line stays empty; unknown words are counted."""
    assert main(["translate", str(run), str(file)]) == 0
    printed = capsys.readouterr()
    alone = [read_by_hand(run, [line])[0] if line.strip() else "" for line in LINES]
    assert printed.out == "\n".join(alone) + "\n"
    assert printed.err == "translate: the model does not know 1 of the words\n"
    assert main(["translate", str(run), str(file), f"--output={tmp_path / 'out.txt'}"]) == 0
    assert (tmp_path / "out.txt").read_text() == printed.out
    assert capsys.readouterr().out == ""


def test_lines_come_from_the_standard_input(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = b"answer area stateid texas\r\nanswer capital stateid ohio"
    for args in (["--reverse"], ["-", "--reverse"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        assert main(["translate", str(run), *args]) == 0
        assert capsys.readouterr().out.count("\n") == 2
    for other in (b"\xef\xbb\xbfhow large is texas\n", b"how large is texas\rhow large is ohio\r"):  # of other systems
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(other)))
        assert main(["translate", str(run)]) == 0
        printed = capsys.readouterr()
        assert printed.out.count("\n") == 1 + other.count(b"ohio")
        assert printed.err == ""
    terminal = io.TextIOWrapper(io.BytesIO(b""))
    monkeypatch.setattr(terminal.buffer, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert main(["translate", str(run)]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "translate: type a sentence a line, and Ctrl-D after the last one\n"


def test_attention_is_drawn_with_its_words(
    run: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "attention.png"
    assert main(["translate", str(run), str(file), f"--attention={path}"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("\n") == len(LINES)  # the path of the picture is no line of the translation
    assert printed.err.endswith(f"{path}\n")
    with Image.open(path) as picture:
        assert picture.width > 8 * 72  # a cell for each of seven words and the end
        height = picture.height
    file.write_text(LINES[0])
    assert main(["translate", str(run), str(file), f"--attention={path}"]) == 0
    with Image.open(path) as picture:
        assert picture.height < height - 100  # of one sentence, not of three


def test_forms_are_written_as_sentences(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model, data = load_model(best_checkpoint(run)), data_of(best_checkpoint(run), [])
    assert isinstance(model, Seq4)
    assert isinstance(data, ToyQueries)
    forms = [*data.unlabelled()[:3]]
    (tmp_path / "forms.txt").write_text("\n".join(forms))
    assert main(["translate", str(run), str(tmp_path / "forms.txt"), "--reverse"]) == 0
    expected = data.decode("sentence", model.write(data.encode("x", forms)[0]))
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize(
    ("text", "args", "says"),
    [
        (b"name ohio\n" + b"the " * 20, [], r"in.txt: line 2 has 20 words; a text of sentence has 1 to 19"),
        (b"caf\xe9", [], r"in.txt: line 1 is not in UTF-8"),
        (b"texas", ["--reverse", "--attention=a.png"], "leave --reverse out"),
        (b"texas", ["--output=/dev/null/x"], "cannot be written .*--output"),
        (b"texas", ["--output="], "cannot be written .*Is a directory.*--output"),
        (b"texas", ["--attention=/dev/null/x.png"], "cannot be written .*another file by --attention"),
        (b"texas", ["--attention=a.png", "--output=a.png"], "both name a.png"),
        (b"\n \n", ["--attention=a.png"], "no line has a sentence to look at"),
        ("texas".encode("utf-16-le"), [], "in.txt: holds zero bytes"),
    ],
)
def test_a_mistake_is_one_line(
    run: Path, tmp_path: Path, text: bytes, args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.txt").write_bytes(text)
    assert main(["translate", str(run), str(tmp_path / "in.txt"), *args]) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(f"vae-lightning: error: .*{says}.*\n", printed.err)
    assert printed.out == ""  # no text without its picture


def test_input_in_another_encoding_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9")))
    assert main(["translate", str(run)]) == 2
    message = r"vae-lightning: error: the standard input: line 1 is not in UTF-8 \(byte 0xe9\); .*\n"
    assert re.fullmatch(message, capsys.readouterr().err)


def test_a_missing_file_and_a_model_that_does_not_translate_are_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["translate", str(run), str(tmp_path / "none.txt")]) == 2
    assert re.fullmatch("vae-lightning: error: .*none.txt.*\n", capsys.readouterr().err)
    monkeypatch.setattr("vae_lightning.verbs.translate.load_model", lambda *_: VAE(image_shape=(1, 8, 8)))
    assert main(["translate", str(run)]) == 2
    message = "vae-lightning: error: .*: VAE of ToyQueries does not translate; .*seq4/toy\n"
    assert re.fullmatch(message, capsys.readouterr().err)


def test_a_run_whose_words_have_changed_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The numbers of the words would stand for others, and every translation would be wrong."""
    monkeypatch.setattr("vae_lightning.data.queries.queries.sentence_words", lambda: ["texas", "ohio"])
    assert main(["translate", str(run)]) == 2
    message = "vae-lightning: error: ToyQueries: the words of sentence are not those that the model was trained on.*\n"
    assert re.fullmatch(message, capsys.readouterr().err)


@pytest.mark.parametrize("form", ["safetensors", "hub"])
def test_an_exported_model_comes_with_its_words(run: Path, tmp_path: Path, form: str) -> None:
    pytest.importorskip("safetensors")
    assert main(["export", str(run), f"--format={form}", f"--output={tmp_path}"]) == 0
    words = json.loads((tmp_path / "words.json").read_text())
    numbers = [words["sentence"].index(word) for word in (*LINES[0].split(), "<end>")]
    model = load_safetensors(tmp_path / "model.safetensors")
    assert isinstance(model, Seq4)
    read = model.read(torch.tensor([numbers]))[0].tolist()
    text = " ".join(words["x"][number] for number in read[: read.index(0) if 0 in read else None])
    assert text == read_by_hand(run, [LINES[0]])[0]

"""What does not fit a model is one line: which value, where it is from, and what would fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.outside.commands import CASES, fit_flags, run
from tests.outside.table import Tumours
from tests.outside.tokens import Sentences
from vae_lightning.data import Examples, Split
from vae_lightning.runs import trust


@pytest.fixture(autouse=True)
def _trust_ends() -> Iterator[None]:
    yield
    trust._FINDER.places.clear()


class OtherSizes(Tumours):
    """Rows of five columns, where `x_shape` promises twelve."""

    def load(self, split: Split) -> Examples:
        examples = super().load(split)
        return Examples({**examples.fields, "x": examples.fields["x"][:, :5]})


class Unlike(Tumours):
    """A field with fewer rows than x."""

    def load(self, split: Split) -> Examples:
        fields = super().load(split).fields
        return Examples({**fields, "label": fields["label"][:7]})


class Unended(Sentences):
    """Sentences that go on to the last step."""

    def load(self, split: Split) -> Examples:
        fields = super().load(split).fields
        return Examples({"x": fields["x"].clamp(min=1), "length": torch.full_like(fields["length"], 8)})


WRONG = {  # 2 before a run begins, 1 during it; the model, the data and further flags; the message
    "no frames to count": (
        2,
        ("video.VideoVAE", "table.Tumours"),
        "VideoVAE needs num_frames, and the data set Tumours has none to give; choose other data",
    ),
    "no vocabulary": (
        2,
        ("tokens.SentenceVAE", "table.Tumours"),
        "SentenceVAE needs vocabulary, and the data set Tumours has none to give; choose other data",
    ),
    "no lengths": (
        1,
        ("tokens.SentenceVAE", "table.Tumours", "--model.vocabulary=7"),
        "SentenceVAE needs length of each example, and the batch has x, label; choose other data",
    ),
    "another vocabulary": (
        2,
        ("tokens.SentenceVAE", "tokens.Sentences", "--model.vocabulary=7"),
        "--model.vocabulary is 7, but Sentences has 11; leave the setting out",
    ),
    "another shape": (
        2,
        ("table.TableVAE", "table.Tumours", "--model.x_shape=[5]"),
        "--model.x_shape is [5], but Tumours has [12]; leave the setting out",
    ),
    "other sizes than promised": (
        1,
        ("table.TableVAE", "test_misfits.OtherSizes"),
        "x: a tensor [B, 12], and optionally other tensors [B, ...], such as label: int64 [B]; change the data, or "
        "build the model with x_shape=(5,)",
    ),
    "fields of several lengths": (
        1,
        ("table.TableVAE", "test_misfits.Unlike"),
        "the fields differ in length: x 400, label 7; row i of each belongs to example i",
    ),
    "numbers of words": (
        1,
        ("table.TableVAE", "tokens.Sentences"),
        "MLP: its input is int64 [25, 8]; it takes floating-point numbers",
    ),
    "clips without a length": (
        2,
        ("table.TableVAE", "video.MovingSquare"),
        "MLP: in_shape (-1, 1, 10, 10) has a size below 1; every size must be positive (-1 is a size that differs",
    ),
    "sentences without an end": (
        1,
        ("tokens.SentenceVAE", "test_misfits.Unended"),
        "the likelihood Classes gives no probability to a number of value 1, or an infinite density; choose a "
        "likelihood whose support has every number of x",
    ),
    "a map of nothing": (
        1,
        ("table.TableVAE", "table.Tumours", "--data.resident=mmap"),
        "Tumours: resident is mmap, but the data are not in a file that can be mapped",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_does_not_fit_is_one_line(fault: str, tmp_path: Path) -> None:
    exit_code, (model, data, *flags), message = WRONG[fault]
    case = CASES["table"]._replace(model=model, data=data)
    said = run("fit", *fit_flags(case, tmp_path, "r"), "--trainer.max_epochs=1", *flags, expect=exit_code)
    (line,) = [line for line in said.stderr.splitlines() if line.strip()]
    assert line.startswith("vae-lightning: error: ")
    assert message in line


def test_the_last_lines_name_no_folder_of_pictures_that_is_not_there(tmp_path: Path) -> None:
    settings = ("--trainer.max_epochs=1", "--pictures.num_images=0")
    said = run("train", *fit_flags(CASES["table"], tmp_path, "r"), *settings)
    assert "\nnext " in said.stdout
    assert "\npictures " not in said.stdout

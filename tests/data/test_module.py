"""A data set of any shape: splits, places, and loaders as those of images."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch

from tests.helpers import DIGITS, REPOSITORY
from vae_lightning.__main__ import main
from vae_lightning.data import DataModule, Digits, Examples, Loader
from vae_lightning.data.module import Split
from vae_lightning.storage.examples import Images
from vae_lightning.types import UserError


class Table(DataModule):
    """Rows of numbers: `x` float32 [3], `length`, and a name of the split in the first column."""

    x_shape = (3,)
    sizes: ClassVar[dict[str, int]] = {"train": 40, "val": 12, "test": 9}

    def load(self, split: Split) -> Examples:
        size = self.sizes[split]
        x = torch.arange(3.0 * size).view(size, 3)
        return Examples({"x": x, "length": torch.arange(size)})


def test_each_split_is_loaded_once_and_only_when_a_stage_needs_it() -> None:
    class Counted(Table):
        loaded: ClassVar[list[Split]] = []

        def load(self, split: Split) -> Examples:
            self.loaded.append(split)
            return super().load(split)

    data = Counted()
    data.setup("fit")
    data.setup("fit")
    assert Counted.loaded == ["train", "val"]
    data.setup("test")
    assert Counted.loaded == ["train", "val", "test"]


def test_training_sees_every_example_and_evaluation_keeps_the_order() -> None:
    data = Table(batch_size=16, seed=3)
    batches = list(data.train_dataloader())
    assert sorted(torch.cat([batch["length"] for batch in batches]).tolist()) == list(range(40))
    assert all(torch.equal(batch["x"][:, 0], 3.0 * batch["length"]) for batch in batches)
    evaluated = torch.cat([batch["length"] for batch in data.val_dataloader()])
    assert evaluated.tolist() == list(range(12))


def test_an_example_of_whole_numbers_stays_one() -> None:
    class Tokens(Table):
        def load(self, split: Split) -> Examples:
            return Examples({"x": torch.zeros(5, 4, dtype=torch.int64)})

    (batch,) = Tokens(batch_size=8).train_dataloader()
    assert batch["x"].dtype == torch.int64


def test_a_map_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="Table: resident is mmap, but the data are not in a file that can be mapped"):
        Table(resident="mmap").examples("train")


def test_check_names_the_split_without_examples() -> None:
    class Empty(Table):
        sizes: ClassVar[dict[str, int]] = {"train": 4, "val": 0, "test": 2}

    assert Empty().check() == ["val: no examples"]
    with pytest.raises(UserError, match=r"^val of Empty has no examples: there is nothing to evaluate"):
        Empty().val_dataloader()


def test_a_load_that_returns_no_examples_is_refused() -> None:
    class Plain(Table):
        def load(self, split: Split) -> Examples:
            return super().load(split).fields  # type: ignore[return-value]

    with pytest.raises(UserError, match="Plain: load\\('val'\\) returns a dict; it must return Examples"):
        Plain().examples("val")


def test_a_training_split_without_examples_is_refused() -> None:
    class Empty(Table):
        sizes: ClassVar[dict[str, int]] = {"train": 0, "val": 2, "test": 2}

    with pytest.raises(UserError, match="train: 0 examples for 1 processes: each needs one or more"):
        Empty().train_dataloader()


def test_the_text_of_a_data_set_loads_nothing() -> None:
    class Unreadable(Table):
        def load(self, split: Split) -> Examples:
            raise AssertionError

    assert str(Unreadable()) == "Unreadable"


def test_a_loader_of_one_rank_has_its_share() -> None:
    seen = [Loader(Table().load("train"), 8, train=True, rank=rank, world_size=2) for rank in range(2)]
    rows = [row for loader in seen for batch in loader for row in batch["length"].tolist()]
    assert sorted(rows) == list(range(40))


def test_a_run_without_test_images_says_so_and_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = Digits.load

    def without_test(self: Digits, split: Split) -> Images:
        images = load(self, split)
        return images if split != "test" else Images(images.pixels[:0], images.labels[:0], 16)  # type: ignore[index]

    monkeypatch.setattr(Digits, "load", without_test)
    monkeypatch.chdir(REPOSITORY)
    flags = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.logger=false", "--run_id=a"]
    assert main(["train", "-c", DIGITS, *flags, "--trainer.accelerator=cpu", f"--runs_dir={tmp_path}"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "test of Digits has no examples: there is nothing to evaluate" in error
    assert error.endswith(f"; trained, but not tested: {tmp_path}/vae/digits/a")

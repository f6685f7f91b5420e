"""Generated texts: which forms are in which split, labelled shares, both ways of training, padding, and words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import REPOSITORY
from vae_lightning.__main__ import main
from vae_lightning.cli.links import told
from vae_lightning.data import GeneratedTexts, GeneratedTranslation, ToyQueries
from vae_lightning.data.module import SPLITS
from vae_lightning.models import VAE
from vae_lightning.storage.loader import Loader
from vae_lightning.storage.transforms import Draw
from vae_lightning.synthetic import queries
from vae_lightning.types import END_TOKEN, PADDING, Batch, UserError
from vae_lightning.verbs import check_data

KINDS = pytest.mark.parametrize("kind", [ToyQueries, GeneratedTranslation])
SMALL: dict[str, Any] = {"num_unlabelled": 150, "num_val": 20, "num_test": 60}


def epoch(data: GeneratedTexts, number: int = 0) -> Iterator[Batch]:
    loader = data.train_dataloader()
    loader.set_epoch(number)
    return iter(loader)


@KINDS
def test_forms_of_the_test_are_new(kind: type[GeneratedTexts]) -> None:
    """400 pairs, each once; no x of them is in training, neither in a pair nor alone."""
    data = kind(num_unlabelled=500)
    known = {*data.unlabelled(), *(pair.x for pair in data.pairs("train"))}
    held_out = {split: {pair.x for pair in data.pairs(split)} for split in SPLITS[1:]}
    assert not known & held_out["test"]
    assert not known & held_out["val"]
    assert not held_out["val"] & held_out["test"]
    assert [len(set(data.pairs(split))) for split in SPLITS] == [50, 100, 400]
    assert len(data.unlabelled()) == 500
    assert data.facts()[-1] == "test: 0 of 400 x stand in train, too"


def test_a_tenth_of_the_queries_is_of_val_and_two_tenths_of_test() -> None:
    data, every = ToyQueries(**SMALL), queries.all_queries().values()
    splits = [data.split_of(query) for query in every]
    for split, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        assert splits.count(split) / len(every) == pytest.approx(share, abs=0.03)  # type: ignore[arg-type]


def test_the_test_may_be_seen_without_its_sentences_if_the_user_asks() -> None:
    data = ToyQueries(unlabelled_test=True, **SMALL)
    held_out = {pair.x for pair in data.pairs("test")}
    assert held_out & set(data.unlabelled())
    assert "0 of" not in data.facts()[-1]


def test_pools_are_nested_and_the_rest_depends_on_no_seed_of_the_run() -> None:
    few, many = ToyQueries(num_pairs=25, seed=1, **SMALL), ToyQueries(num_pairs=60, seed=2, **SMALL)
    other = ToyQueries(pool_seed=1, **SMALL)
    assert few.pairs("train") == many.pairs("train")[:25]
    assert few.pairs("train") != other.pairs("train")[:25]
    for data in (many, other):
        assert few.pairs("test") == data.pairs("test")
        assert few.unlabelled() == data.unlabelled()
    assert few.unlabelled()[:50] == ToyQueries(**{**SMALL, "num_unlabelled": 50}).unlabelled()
    assert few.pairs("test") != ToyQueries(query_seed=1, **SMALL).pairs("test")


@KINDS
def test_texts_end_once_and_are_padded(kind: type[GeneratedTexts]) -> None:
    data = kind(**SMALL)
    for split in SPLITS:
        batch = next(iter(data._loader(split, 500)))
        for field, length in (("x", "length"), ("sentence", "sentence_length")):
            tokens, counts = batch[field], batch[length]
            assert tokens.dtype == torch.int64
            assert tokens.shape[1] == data.max_length[field]
            place = torch.arange(tokens.shape[1])
            assert ((tokens == PADDING) == (place >= counts[:, None])).all()
            assert ((tokens == END_TOKEN) == (place == counts[:, None] - 1)).all()
            assert int(tokens.max()) < data.vocabulary[field]
        assert torch.equal(batch["known"], batch["sentence_length"] > 0)
        assert split == "train" or batch["known"].all()
        assert (batch["length"] > 1).all()


@KINDS
def test_a_batch_holds_the_texts(kind: type[GeneratedTexts]) -> None:
    data = kind(**SMALL)
    batch = data.examples("train").select(torch.arange(60))
    assert data.show(batch["x"]) == [*(pair.x for pair in data.pairs("train")), *data.unlabelled()[:10]]
    assert data.show_field("sentence", batch["sentence"])[:50] == [pair.sentence for pair in data.pairs("train")]
    assert data.show_field("sentence", batch["sentence"])[50:] == [""] * 10
    tokens, unknown = data.encode("sentence", ["how large is Texas", "how long is the snake"])
    assert unknown == 1
    assert data.decode("sentence", tokens) == ["how large is <unk>", "how long is the snake"]
    assert tokens.shape == (2, data.max_length["sentence"])


def test_sizes_are_told_to_a_model_by_field() -> None:
    data = ToyQueries(**SMALL)

    class Takes(VAE):
        def __init__(self, vocabulary: dict[str, int], max_length: dict[str, int], x_shape: tuple[int, ...]) -> None:
            """Never called."""

    assert told("vocabulary", data, Takes, None) == {"x": 43, "sentence": 78}
    assert told("max_length", data, Takes, None) == {"x": 10, "sentence": 20}
    assert told("x_shape", data, Takes, None) == (10,)
    with pytest.raises(
        UserError, match=r"--model.vocabulary is {'x': 9}, but ToyQueries has {'x': 43, 'sentence': 78}"
    ):
        told("vocabulary", data, Takes, {"x": 9})


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_share_of_each_batch_is_labelled(share: float) -> None:
    batches = list(epoch(ToyQueries(num_pairs=10, batch_size=16, labelled_share=share, **SMALL)))
    assert {int(batch["known"].sum()) for batch in batches} == {round(16 * share)}
    assert len(batches) == 10


@pytest.mark.parametrize("batch_size", [16, 53])  # 160 examples: ten whole batches; three, and one example
def test_both_ways_of_training_see_the_same_pairs_at_the_same_steps(batch_size: int) -> None:
    arms = [ToyQueries(num_pairs=10, batch_size=batch_size, use_unlabelled=use, **SMALL) for use in (True, False)]
    for number in (0, 1):
        semi, supervised = (list(epoch(data, number)) for data in arms)
        assert len(semi) == len(supervised)
        for both, labelled in zip(semi, supervised, strict=True):
            assert labelled["known"].all()
            assert len(labelled["x"]) == max(1, int(both["known"].sum()))
            if both["known"].any():
                assert all(torch.equal(values[both["known"]], labelled[name]) for name, values in both.items())
            assert all(labelled[name].dtype == values.dtype for name, values in both.items())


@pytest.mark.parametrize("use_unlabelled", [True, False])
def test_each_of_two_ranks_has_as_many_labelled_examples(use_unlabelled: bool) -> None:
    """So that the mean over ranks of means over known sentences is the mean over all. The last batch is short."""
    data = ToyQueries(num_pairs=11, batch_size=16, use_unlabelled=use_unlabelled, **SMALL)
    ranks = [
        Loader(data.examples("train"), 16, True, data.batch_transform("train"), rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    assert len(ranks[0]) == len(ranks[1]) == 5
    for first, second in zip(*ranks, strict=True):
        assert int(first["known"].sum()) == int(second["known"].sum()) == len(first["x"]) // (1 + use_unlabelled)
        assert len(first["x"]) == len(second["x"])


def test_a_batch_without_a_pair_becomes_one_of_a_pair() -> None:
    data = ToyQueries(num_pairs=10, use_unlabelled=False, **SMALL)
    examples, transform = data.examples("train"), data.batch_transform("train")
    for number in range(10, 23):
        index = torch.tensor([number])
        found = transform.apply(examples.select(index), Draw(index, 0, 0, len(examples)))
        assert found["known"].tolist() == [True]
        assert data.show_field("sentence", found["sentence"]) == [data.pairs("train")[number % 10].sentence]


def test_a_resumed_run_goes_on_with_the_same_pairs() -> None:
    data = ToyQueries(num_pairs=10, batch_size=16, use_unlabelled=False, **SMALL)
    whole = list(epoch(data, 3))
    loader = Loader(data.examples("train"), 16, True, data.batch_transform("train"), position=lambda: 4)
    loader.set_epoch(3)
    for before, after in zip(whole[4:], loader, strict=True):
        assert torch.equal(before["sentence"], after["sentence"])


def test_without_unlabelled_texts_every_row_is_labelled() -> None:
    data = ToyQueries(**{**SMALL, "num_unlabelled": 0}, batch_size=20)
    assert [len(batch["x"]) for batch in epoch(data)] == [20, 20, 10]
    assert data.examples("train").group is None


def test_a_batch_too_small_for_its_share_is_refused_before_a_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    flags = ("--data.batch_size=1", f"--runs_dir={tmp_path}", "--trainer.logger=false", "--trainer.accelerator=cpu")
    assert main(["fit", "-c", "seq4/toy", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "ToyQueries: labelled_share 0.5 of a batch of 1 is 0 examples, " in line
    assert "choose a larger --data.batch_size or another share" in line
    assert not list(tmp_path.rglob("*.*"))


def test_a_share_that_rounds_to_nothing_or_to_all_is_refused() -> None:
    for share, found in ((0.001, 0), (0.999, 64)):
        with pytest.raises(UserError, match=f"^ToyQueries: labelled_share {share} of a batch of 64 is {found} "):
            ToyQueries(**SMALL, batch_size=64, labelled_share=share).check_batch_size()
    ToyQueries(**{**SMALL, "num_unlabelled": 0}, batch_size=1).check_batch_size()


def test_references_are_all_sentences_of_the_grammar() -> None:
    for data in (ToyQueries(**SMALL), GeneratedTranslation(**SMALL)):
        pairs = data.pairs("test")[:20]
        for sentence, found in zip(pairs, data.references([pair.x for pair in pairs]), strict=True):
            assert sentence.sentence in found
            assert len(found) >= 4
        assert data.references(["no such form"]) == [[]]
    assert data.references(["lom teksa lar granda borgs li popula sagu"]) == [
        queries.paraphrases(queries.all_queries()["answer population largest city loc stateid texas"])
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_pairs": 0}, "num_pairs is 0; it must be 1 to 1,000,000"),
        ({"num_unlabelled": -1}, "num_unlabelled is -1; it must be 0 to 1,000,000"),
        ({"num_test": 2_000_000}, "num_test is 2,000,000; it must be 1 to"),
        ({"labelled_share": 1.0}, "labelled_share is 1.0; it must be above 0 and below 1"),
    ],
)
def test_bad_settings_are_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ToyQueries(**arguments)


@KINDS
def test_more_pairs_than_the_grammar_has_are_refused_before_they_are_drawn(kind: type[GeneratedTexts]) -> None:
    counts = {}
    for split, name in zip(SPLITS, ("num_pairs", "num_val", "num_test"), strict=True):
        with pytest.raises(UserError, match=rf"{name} is 1,000,000; {split} has [\d,]+ different pairs") as error:
            _ = kind(**{**SMALL, name: 1_000_000}).vocabulary
        counts[split] = int(str(error.value).split(" has ")[1].split()[0].replace(",", ""))
    assert sum(counts.values()) == sum(len(queries.paraphrases(query)) for query in queries.all_queries().values())


def test_more_pairs_than_there_are_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vae_lightning.data.queries._DRAWS", 1)
    with pytest.raises(UserError, match=r"60 pairs were drawn; \d+ of them are different and of test, and 60"):
        ToyQueries(**SMALL).pairs("test")


@pytest.mark.parametrize(
    ("field", "line", "message"),
    [
        ("sentence", "", "line 2 has 0 words; a text of sentence has 1 to 19, as in the data"),
        ("x", "answer " * 10, "line 2 has 10 words; a text of x has 1 to 9"),
        ("sentense", "texas", r"has the fields x and sentence, and no sentense \(did you mean sentence\?\)"),
    ],
)
def test_a_line_that_is_no_text_of_the_data_is_refused(field: str, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ToyQueries(**SMALL).encode(field, ["texas", line])


def test_check_data_tells_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    check_data.run({"class_path": "vae_lightning.data.ToyQueries", "init_args": SMALL})
    lines = capsys.readouterr().out.splitlines()
    fields = ["x int32 [10]", "length int64 []", "sentence int32 [20]", "sentence_length int64 []", "known bool []"]
    assert lines[0] == f"train: 200 examples: {', '.join(fields)}"
    assert "sentence: 78 words, 20 tokens at most; x: 43 words, 10 tokens at most; both with <end> and <unk>" in lines
    assert lines[-1] == "test: 0 of 60 x stand in train, too"

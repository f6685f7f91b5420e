"""The user's own pairs of texts and GeoQuery: reading, words, labelled pools, and one line for each bad file."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.helpers import REPOSITORY
from vae_lightning.__main__ import main
from vae_lightning.data import GeoQuery, ParallelText, Words
from vae_lightning.data.loading import build_data
from vae_lightning.data.texts import END, UNKNOWN
from vae_lightning.types import UNKNOWN_TOKEN, UserError
from vae_lightning.verbs import check_data

PAGE = (REPOSITORY / "docs" / "own_text.md").read_text()
TRAIN = "a red house\trotes Haus\n\na  house\tHaus\nthe red sun\tdie rote Sonne\nthe sun\tdie Sonne\n"
FILES = {
    "pairs.train.tsv": TRAIN,
    "pairs.val.tsv": "a sun\teine Sonne\n",
    "pairs.test.tsv": "the house\tdas Haus\nthat house\tdas Haus\n",
    "unlabelled.txt": "das rote Haus\ndas Haus\neine rote Sonne\n",
}


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the files of a small corpus, some of them with other contents, and returns their folder."""

    def write(others: dict[str, str | bytes] | None = None) -> Path:
        for name, text in {**FILES, **(others or {})}.items():
            (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path

    return write


def refused(folder: Path, **options: Any) -> str:
    """The one line that says what is wrong."""
    with pytest.raises(UserError) as error:
        ParallelText(str(folder), **options).setup("fit")
    assert "\n" not in str(error.value)
    return str(error.value).replace(f"{folder}/", "")


def test_pairs_and_lone_texts_are_read(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    data = ParallelText(str(write()), max_unknown=1, batch_size=3)
    data.setup("fit")
    batch = data.examples("train").select(torch.arange(6))
    assert data.show(batch["x"]) == [
        *("rotes Haus", "Haus", "die rote Sonne", "die Sonne"),
        *("das rote Haus", "eine rote Sonne"),  # das Haus is of the test
    ]
    assert data.decode("sentence", batch["sentence"])[:2] == ["a red house", "a house"]
    assert batch["known"].tolist() == [True] * 4 + [False] * 2
    assert batch["length"].tolist() == [3, 2, 4, 3, 4, 4]
    assert data.max_length == {"x": 4, "sentence": 4}
    assert data.words["x"].words == ("<end>", "<unk>", *("Haus", "Sonne", "rote", "das", "die", "eine", "rotes"))
    assert [len(rows["x"]) for rows in data.train_dataloader()] == [3, 3]
    printed = capsys.readouterr().out
    assert "test: unknown words: 1 of 4 in sentence, 0 of 4 in x" in printed
    assert "val: 0 of 1 x stand in train, too" in printed
    assert "test: 0 of 2 x stand in train, too" in printed
    assert "unlabelled.txt: 1 x of val or test are left out" in printed


def test_words_that_training_has_not_are_unknown(write: Write) -> None:
    data = ParallelText(str(write()), max_unknown=1)
    test = data.examples("test").select(torch.arange(2))
    assert (test["sentence"] == UNKNOWN_TOKEN).tolist() == [[False] * 4, [True, False, False, False]]
    rare = ParallelText(str(write()), max_unknown=1, min_count=2)
    assert rare.words["sentence"].words[2:] == ("a", "house", "red", "sun", "the")
    assert "rotes" not in rare.words["x"]
    assert len(ParallelText(str(write()), lowercase=True, max_unknown=1).words["x"].words) == 9


def test_a_line_is_read_as_the_data_are(write: Write) -> None:
    """In small letters, if the data are."""
    small = ParallelText(str(write()), lowercase=True, max_unknown=1)
    tokens, unknown = small.encode("sentence", ["The RED house"])
    assert unknown == 0
    assert small.decode("sentence", tokens) == ["the red house"]
    assert ParallelText(str(write()), max_unknown=1).encode("sentence", ["The RED house"])[1] == 2


def test_a_model_of_other_words_is_refused(write: Write) -> None:
    """A checkpoint keeps what the numbers of words stood for. A word renamed has the same number of words."""
    state = ParallelText(str(write()), max_unknown=1).state_dict()
    ParallelText(str(write({"pairs.test.tsv": "the sun\tdie Sonne\n"})), max_unknown=1).load_state_dict(state)
    renamed = ParallelText(str(write({"pairs.train.tsv": TRAIN.replace("red", "blue")})), max_unknown=1)
    with pytest.raises(UserError, match="ParallelText: the words of sentence are not those that the model was trained"):
        renamed.load_state_dict(state)
    renamed.load_state_dict({})  # an older checkpoint has none


def test_weights_of_other_words_but_as_many_start_no_fit(write: Write) -> None:
    """Also those of a run on data of another class. Where the numbers of words differ, the weights do not fit."""
    data = ParallelText(str(write()), max_unknown=1)
    start = {"OtherTexts": data.state_dict(), "hyper_parameters": {"vocabulary": data.vocabulary}}
    renamed = ParallelText(str(write({"pairs.train.tsv": TRAIN.replace("red", "blue")})), max_unknown=1)
    for checkpoint in (start, {**start, "hyper_parameters": {}}):
        with pytest.raises(UserError, match=r"^a.ckpt: its model knows other words of sentence than ParallelText"):
            renamed.check_start(checkpoint, "a.ckpt")
    data.check_start(start, "a.ckpt")
    longer = ParallelText(str(write({"pairs.train.tsv": f"{TRAIN}the blue sun\tdie blaue Sonne\n"})), max_unknown=1)
    longer.check_start(start, "a.ckpt")
    renamed.check_start({"state_dict": {}}, "a.ckpt")  # of images, or of an older release


def test_a_fit_from_the_weights_of_other_words_is_one_line(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    data = ParallelText(str(write()), max_unknown=1)
    model = {"_class_path": "vae_lightning.models.Seq4", "vocabulary": data.vocabulary}
    start = {"state_dict": {}, "hyper_parameters": model, "global_step": 1, "ParallelText": data.state_dict()}
    torch.save(start, tmp_path / "a.ckpt")
    write({"pairs.train.tsv": TRAIN.replace("red", "blue")})
    options = (f"--data.data_dir={tmp_path}", "--data.max_unknown=1", "--data.num_pairs=0", f"--runs_dir={tmp_path}")
    options += ("--trainer.accelerator=cpu", "--trainer.logger=false", f"--init_from={tmp_path}/a.ckpt")
    assert main(["fit", "-c", "seq4/translation", "--data=ParallelText", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/a.ckpt: its model knows other words of sentence than ParallelText" in line
    assert not list((tmp_path / "seq4").rglob("*.*"))


def test_the_names_of_end_and_unknown_are_unknown_words_in_a_text() -> None:
    words = Words(["a", END, UNKNOWN])
    assert words.words == (END, UNKNOWN, "a")
    assert words.encode([f"a {END} a {UNKNOWN}"], 6).tolist() == [[2, 1, 2, 1, 0, -1]]
    assert END not in words
    assert UNKNOWN not in words


def test_all_sentences_of_a_text_are_its_references(write: Write) -> None:
    data = ParallelText(str(write()))
    assert data.references(["das Haus", "Haus", "x"]) == [["the house", "that house"], ["a house"], []]


def test_a_pool_of_pairs_keeps_its_sentences(write: Write) -> None:
    """The pools are nested; the x of the other pairs stay, and the words are those of all."""
    folder = str(write())
    pools = [ParallelText(folder, num_pairs=n, max_unknown=1) for n in (1, 2, 3)]
    for few, many in itertools.pairwise(pools):
        assert few.pairs("train") == many.pairs("train")[:-1]
        assert few.words["sentence"].words == many.words["sentence"].words
    for data in pools:
        every = [*(pair.x for pair in data.pairs("train")), *data.unlabelled()]
        assert sorted(every) == sorted([*(line.split("\t")[1] for line in TRAIN.split("\n") if line), *every[4:]])
        assert len(every) == 6
    orders = {ParallelText(folder, num_pairs=1, pool_seed=seed).pairs("train")[0] for seed in range(12)}
    assert len(orders) > 1
    assert "4 pairs; --data.num_pairs is 5" in refused(write(), num_pairs=5)


def test_texts_of_the_test_are_used_if_the_user_asks(write: Write) -> None:
    assert "das Haus" in ParallelText(str(write()), unlabelled_test=True).unlabelled()
    assert not ParallelText(str(write({"unlabelled.txt": ""})), num_pairs=4).unlabelled()
    held_out = "das Haus\neine Sonne\ndas\n"  # of test, of val, and of neither
    assert ParallelText(str(write({"unlabelled.txt": held_out}))).unlabelled() == ["das"]


def test_files_of_other_systems_are_read(write: Write) -> None:
    """A byte order mark and both ends of lines."""
    plain = ParallelText(str(write())).pairs("train")
    other = b"\xef\xbb\xbf" + TRAIN.replace("\n", "\r\n").encode()
    assert ParallelText(str(write({"pairs.train.tsv": other}))).pairs("train") == plain


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("pairs.train.tsv", "a house Haus\n", "line 1 has 1 column; each line is a sentence, one tab, and its text x"),
        (
            "pairs.train.tsv",
            "a\tb\nc\td\te\n",
            "line 2 has 3 columns; each line is a sentence, one tab,",
        ),
        ("pairs.val.tsv", "a sun\tSonne\nthe sun\t \n", "line 2 has nothing in column 2; complete or delete it"),
        ("pairs.test.tsv", "\tHaus\n", "line 1 has nothing in column 1; complete or delete it"),
        ("unlabelled.txt", "Haus\na\tb\n", "line 2 has 2 columns; each line is one text x, without a tab"),
        ("pairs.train.tsv", "ok\tgut\nsun\tgr\xfcn\n".encode("latin-1"), "line 2 is not in UTF-8 (byte 0xfc)"),
        ("pairs.train.tsv", TRAIN.encode("utf-16-le"), "holds zero bytes, as UTF-16 does"),
        ("pairs.train.tsv", TRAIN.encode("utf-16"), "line 1 is not in UTF-8 (byte 0xff)"),
        ("pairs.val.tsv", "\n \n", "holds no pair for val"),
        ("pairs.val.tsv", "a sun\tSonne\n\t\n", "line 2 has nothing in column 1; complete or delete it"),
    ],
)
def test_a_bad_file_is_one_line(write: Write, name: str, contents: Any, message: str) -> None:
    assert refused(write({name: contents})).startswith(f"{name}: {message}")


def test_a_missing_file_is_one_line(write: Write) -> None:
    folder = write()
    (folder / "pairs.test.tsv").unlink()
    wanted = "pairs.test.tsv is not found; write a pair in each line: a sentence, a tab, and its text x"
    assert refused(folder) == wanted


def test_long_lines_are_counted_and_named(write: Write) -> None:
    folder = write({"pairs.train.tsv": TRAIN + "one two three four five\teins\n" + "a\tb c d e f g\n" * 6})
    found = "pairs.train.tsv: 7 of 11 lines have more than 4 words in a text: lines 6, 7, 8, 9, 10 and 2 more"
    assert refused(folder, max_words=4).startswith(f"{found}; the longest has 6: shorten them, raise --data.max_words")
    data = ParallelText(str(folder), max_words=4, long_lines="leave_out", max_unknown=1)
    assert len(data.pairs("train")) == 4
    assert len(ParallelText(str(folder), max_words=6, max_unknown=1).pairs("train")) == 11  # the limit is allowed
    assert f"{folder}/{found}; they are left out" in data.facts()


def test_wrong_files_are_refused_when_the_model_asks_for_sizes(write: Write) -> None:
    """Before a run has begun: the command then ends with exit code 2, and leaves no run behind."""
    for options in ({"num_pairs": 5}, {"max_unknown": 0.2}):
        with pytest.raises(UserError, match=r"num_pairs is 5|not known from training"):
            _ = ParallelText(str(write()), **{"max_unknown": 1, **options}).vocabulary


def test_too_many_unknown_words_are_one_line(write: Write) -> None:
    message = refused(write(), max_unknown=0.2)
    assert message.startswith("pairs.test.tsv: 25% of the words in sentence of test are not known from training (that)")
    ParallelText(str(write()), max_unknown=0.25).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_pairs": -1}, "num_pairs is -1; it must be at least 0"),
        ({"max_words": 0}, "max_words is 0; it must be at least 1"),
        ({"min_count": 0}, "min_count is 0 and max_unknown 0.2"),
        ({"max_unknown": 1.5}, "min_count is 1 and max_unknown 1.5"),
    ],
)
def test_bad_settings_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ParallelText(**options)


def test_check_data_lists_the_faults_of_all_files(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    def check(folder: Path, max_unknown: float = 0.2) -> str:
        arguments = {"data_dir": str(folder), "max_unknown": max_unknown}
        check_data.run({"class_path": "vae_lightning.data.ParallelText", "init_args": arguments})
        return capsys.readouterr().out

    with pytest.raises(UserError, match="ParallelText: 1 problem,"):
        check(write())
    assert "25% of the words in sentence of test" in capsys.readouterr().out
    with pytest.raises(UserError, match="ParallelText: 2 problems"):
        check(write({"pairs.val.tsv": "one\n", "unlabelled.txt": "one\ttwo\n"}))
    capsys.readouterr()
    assert "train: 6 examples: x int32 [4], length int64 []" in check(write(), max_unknown=0.3)


def test_the_options_of_the_page_are_those_of_the_data(write: Write) -> None:
    options = dict(re.findall(r"--data\.(\w+)=(\S+?)`", PAGE))
    options = {name: yaml.safe_load(value) for name, value in options.items()} | {"num_pairs": 3}
    assert len(options) == 7
    data = build_data(
        {"class_path": "vae_lightning.data.ParallelText", "init_args": {"data_dir": str(write()), **options}}
    )
    data.setup("fit")
    assert not {name: value for name, value in options.items() if getattr(data, name) != value}


@pytest.mark.slow
def test_the_command_of_the_page_checks_the_files(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (command, *_) = re.findall(r"^vae-lightning (.*)$", PAGE, re.MULTILINE)
    folder = write({"pairs.test.tsv": "the house\tdas Haus\n"})
    monkeypatch.chdir(folder.parent)
    assert main(shlex.split(command.replace("my_pairs", folder.name))) == 0
    assert "val: unknown words: 0 of 2 in sentence, 0 of 2 in x" in capsys.readouterr().out
    (folder / "pairs.val.tsv").write_text("a sun Sonne\n")
    assert main(shlex.split(command.replace("my_pairs", folder.name))) == 1
    assert "pairs.val.tsv: line 1 has 1 column" in capsys.readouterr().out


@pytest.mark.slow
def test_the_commands_of_the_page_train_and_translate(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write({"pairs.test.tsv": "the house\tdas Haus\n", "../sentences.txt": "a red sun\n\nthe house\n"})
    monkeypatch.chdir(folder.parent)
    _, train, translate = (
        shlex.split(line.replace("my_pairs", folder.name))
        for line in re.findall(r"^vae-lightning (.*)$", PAGE, re.MULTILINE)
    )
    quick = ("--trainer.max_epochs=1", "--trainer.logger=false", "--trainer.accelerator=cpu", "--nll.num_samples=1")
    assert main([*train, *quick, "--trainer.check_val_every_n_epoch=1"]) == 0
    assert "train: 4 pairs, 2 x without a sentence" in capsys.readouterr().out
    assert main(translate) == 0
    assert capsys.readouterr().out.count("\n") == 3
    assert Path("attention.png").is_file()
    train_file = folder / "pairs.train.tsv"
    train_file.write_text(train_file.read_text().replace("red", "blue"))
    run = "runs/seq4/translation/mine"
    test = ("test", "-c", f"{run}/config.yaml", f"--ckpt_path={run}", "--trainer.logger=false")
    for command in (translate, test, ("sample", run)):
        assert main([*command]) in (1, 2)
        assert "the words of sentence are not those that the model was trained on" in capsys.readouterr().err


def form(logic: str, split: str, *sentences: tuple[str, str]) -> dict[str, Any]:
    texts = [{"text": text, "question-split": where, "variables": {}} for text, where in sentences]
    return {"logic": [logic, "other"], "query-split": split, "sentences": texts, "variables": []}


GEO = [
    form("( A , capital ( var0 ) )", "train", ("what is the capital of var0", "train"), ("name it", "test")),
    form("( A , size ( var0 ) )", "dev", ("how large is var0", "train"), ("the size", "dev")),
    form("( A , river ( var0 ) )", "test", ("the river", "dev")),
]


def geo(folder: Path, contents: Any) -> str:
    (folder / "geoquery").mkdir(exist_ok=True)
    text = contents if isinstance(contents, str) else json.dumps(contents)
    (folder / "geoquery" / "geography-logic.txt").write_text(text)
    return str(folder)


def test_the_published_form_of_geoquery_is_read(tmp_path: Path) -> None:
    data = GeoQuery(geo(tmp_path, GEO))
    assert [[pair.sentence for pair in data.pairs(split)] for split in ("train", "val", "test")] == [
        ["what is the capital of var0", "how large is var0"],
        ["the size", "the river"],
        ["name it"],
    ]
    small = GeoQuery(geo(tmp_path, GEO), lowercase=True)
    assert small.pairs("test")[0].x == "( a , capital ( var0 ) )"
    by_query = GeoQuery(geo(tmp_path, GEO), by="query")
    assert [[pair.x for pair in by_query.pairs(split)] for split in ("train", "val", "test")] == [
        ["( A , capital ( var0 ) )"] * 2,
        ["( A , size ( var0 ) )"] * 2,
        ["( A , river ( var0 ) )"],
    ]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("[\n{,}]", "line 2 is not JSON"),
        ({"logic": []}, "is not the published file, a list of forms"),
        ([], "is not the published file"),
        ([{"logic": ["a"], "sentences": [{"text": "b"}], "query-split": "train"}], "is not the published file"),
        ([form("( A )", "train", (5, "train"))], "is not the published file"),  # type: ignore[arg-type]
        (GEO[:1], "holds no pair for val"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, contents: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"geography-logic.txt: {message}"):
        GeoQuery(geo(tmp_path, contents)).setup("fit")


def test_geoquery_is_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"geography-logic.txt is not found; copy it .* no licence is named for it"):
        GeoQuery(str(tmp_path)).setup("fit")

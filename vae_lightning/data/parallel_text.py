"""The user's pairs of texts: files of two columns, and texts that have no partner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vae_lightning.data.module import SPLITS, Split
from vae_lightning.data.texts import FIELDS, Pair, TextPairs, Words
from vae_lightning.noise import derive_seed
from vae_lightning.storage.files import BYTE_ORDER_MARK, read_file
from vae_lightning.types import UserError

LongLines = Literal["refuse", "leave_out"]
_NAMED = 5  # lines or words that a message names


class Line(NamedTuple):
    """A line of a file.

    Args:
        number: The line's number in the file, from 1; in files of another form the example's number.
        texts: The line's columns, words with one space between them.
    """

    number: int
    texts: tuple[str, ...]


def read_table(path: Path, num_columns: int, lowercase: bool = False) -> list[Line]:
    """Read a text in UTF-8 whose columns are separated by tabs; blank lines without a tab are left out.

    Args:
        path: The file.
        num_columns: The number of columns that each line must have.
        lowercase: Whether to make all letters small.

    Raises:
        UserError: if the file cannot be read, is not in UTF-8, or has a line with other columns or an empty one.
    """
    lines = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip() and "\t" not in line:
            continue
        columns = tuple(" ".join(column.split()) for column in (line.lower() if lowercase else line).split("\t"))
        if len(columns) != num_columns:
            found = f"{len(columns)} column{'s' * (len(columns) > 1)}"
            wanted = "a sentence, one tab, and its text x" if num_columns == 2 else "one text x, without a tab"
            raise UserError(f"{path}: line {number} has {found}; each line is {wanted}")
        if "" in columns:
            raise UserError(
                f"{path}: line {number} has nothing in column {columns.index('') + 1}; complete or delete it"
            )
        lines.append(Line(number, columns))
    return lines


def read_text(path: Path) -> str:
    """Read a file as UTF-8, with or without a byte order mark, lines ending in one line feed.

    Args:
        path: The file.

    Raises:
        UserError: if the file cannot be read, or is in another encoding.
    """
    return as_text(read_file(path), path)


def as_text(contents: bytes, where: object) -> str:
    """Return bytes in UTF-8 as a text, without a byte order mark, lines ending in one line feed.

    Args:
        contents: The bytes.
        where: What they were read from, for the message.

    Raises:
        UserError: if the bytes are of another encoding.
    """
    contents = contents.removeprefix(BYTE_ORDER_MARK)
    try:
        text = contents.decode()
    except UnicodeDecodeError as error:
        line = contents.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{where}: line {line} is not in UTF-8 (byte {contents[error.start]:#04x}); convert the text, for example "
            "by iconv -f ISO-8859-1 -t UTF-8"
        ) from error
    if "\0" in text:
        raise UserError(f"{where}: holds zero bytes, as UTF-16 does; convert the text by iconv -f UTF-16 -t UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


class ParallelText(TextPairs):
    """Your own pairs of texts, and texts without a partner: sentences with forms, or translations.

    `DATA_DIR/pairs.train.tsv`, `pairs.val.tsv` and `pairs.test.tsv` have a pair in each line: the sentence, a tab, and
    the text x that the model explains; words have spaces between them. `DATA_DIR/unlabelled.txt`, if it is there, has a
    text x in each line. For translation x is the target, and the sentence the source.

    The vocabulary has the words of all of pairs.train.tsv, for any `num_pairs`, and of unlabelled.txt. Other words are
    unknown; the run prints how many words are unknown.

    Args:
        data_dir: The folder of the files.
        num_pairs: The number of training pairs that keep their sentence, drawn at random; 0 for all. The other pairs
            lose their sentence, and keep x. The pairs of a smaller number are among those of a larger.
        max_words: The largest number of words in a text.
        long_lines: What happens to lines with longer texts: refuse ends the run, leave_out skips the lines and prints
            them.
        min_count: Words that the training texts hold less often are unknown.
        max_unknown: The largest share of unknown words in a field of a split.
        lowercase: Whether to make all letters small.
        unlabelled_test: Whether x of val and test in unlabelled.txt are used. Results are then of another task, in
            which the test's x were seen.
        pool_seed: The seed of the draw of `num_pairs`.
        kwargs: Arguments of `TextPairs`.

    Raises:
        UserError: if a number is not possible.
    """

    def __init__(
        self,
        data_dir: str = "data/pairs",
        *,
        num_pairs: int = 0,
        max_words: int = 64,
        long_lines: LongLines = "refuse",
        min_count: int = 1,
        max_unknown: float = 0.2,
        lowercase: bool = False,
        unlabelled_test: bool = False,
        pool_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir=data_dir, **kwargs)
        for name, number, smallest in (("num_pairs", num_pairs, 0), ("max_words", max_words, 1)):
            if number < smallest:
                raise UserError(f"{type(self).__name__}: {name} is {number}; it must be at least {smallest}")
        if min_count < 1 or not 0 <= max_unknown <= 1:
            raise UserError(
                f"{type(self).__name__}: min_count is {min_count} and max_unknown {max_unknown}; min_count must be at "
                "least 1, and max_unknown in [0, 1]"
            )
        self.num_pairs, self.max_words, self.long_lines, self.min_count = num_pairs, max_words, long_lines, min_count
        self.max_unknown, self.lowercase, self.unlabelled_test = max_unknown, lowercase, unlabelled_test
        self.pool_seed = pool_seed
        self.notes: list[str] = []

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return Path(self.data_dir)

    def file_of(self, split: Split) -> Path:
        """Return the file that a split is read from.

        Args:
            split: `train`, `val` or `test`.
        """
        return self.folder / f"pairs.{split}.tsv"

    def read_pairs(self, split: Split) -> list[Line]:
        """Return the lines of a split: a sentence and an x each.

        Args:
            split: `train`, `val` or `test`.

        Raises:
            UserError: if the file is missing or broken.
        """
        path = self.file_of(split)
        if not path.is_file():
            raise UserError(f"{path} is not found; write a pair in each line: a sentence, a tab, and its text x")
        return read_table(path, len(FIELDS), self.lowercase)

    def read_unlabelled(self) -> list[Line]:
        """Return the lines of unlabelled.txt: an x each; none if there is no such file.

        Raises:
            UserError: if the file is broken.
        """
        path = self.folder / "unlabelled.txt"
        return read_table(path, 1, self.lowercase) if path.is_file() else []

    @cached_property
    def all_pairs(self) -> Mapping[Split, list[Pair]]:
        """The pairs of each split's file, within the limit of words."""
        found: dict[Split, list[Pair]] = {}
        for split in SPLITS:
            lines = self._within_limit(self.file_of(split), self.read_pairs(split))
            found[split] = [Pair(*line.texts) for line in lines]
            if not lines:
                raise UserError(f"{self.file_of(split)}: holds no pair for {split}")
        return found

    @cached_property
    def _lone_texts(self) -> list[str]:
        """The texts of unlabelled.txt, within the limit of words."""
        return [line.texts[0] for line in self._within_limit(self.folder / "unlabelled.txt", self.read_unlabelled())]

    def _within_limit(self, path: Path, lines: list[Line]) -> list[Line]:
        words = {line.number: max(len(text.split()) for text in line.texts) for line in lines}
        long = [number for number, count in words.items() if count > self.max_words]
        if not long:
            return lines
        found = (
            f"{path}: {len(long):,} of {len(lines):,} lines have more than {self.max_words} words in a text: "
            f"{'line' if len(long) == 1 else 'lines'} {_some(map(str, long))}"
        )
        if self.long_lines == "refuse":
            raise UserError(
                f"{found}; the longest has {max(words.values())}: shorten them, raise --data.max_words, or pass "
                "--data.long_lines=leave_out"
            )
        self.notes.append(f"{found}; they are left out")
        return [line for line in lines if words[line.number] <= self.max_words]

    @cached_property
    def _order(self) -> list[int]:
        """The training pairs in the order in which they get a sentence."""
        total = len(self.all_pairs["train"])
        if self.num_pairs > total:
            raise UserError(f"{self.file_of('train')}: {total:,} pairs; --data.num_pairs is {self.num_pairs:,}")
        if self.num_pairs in (0, total):
            return list(range(total))
        return torch.randperm(total, generator=torch.Generator().manual_seed(derive_seed(self.pool_seed))).tolist()

    def pairs(self, split: Split) -> Sequence[Pair]:
        if split != "train" or not self.num_pairs:
            return self.all_pairs[split]
        return [self.all_pairs["train"][i] for i in self._order[: self.num_pairs]]

    @cached_property
    def _unlabelled(self) -> list[str]:
        hidden = self._order[self.num_pairs :] if self.num_pairs else []
        held_out = {pair.x for split in SPLITS[1:] for pair in self.all_pairs[split]}
        kept = [x for x in self._lone_texts if self.unlabelled_test or x not in held_out]
        if left_out := len(self._lone_texts) - len(kept):
            self.notes.append(f"unlabelled.txt: {left_out:,} x of val or test are left out")
        return [*(self.all_pairs["train"][i].x for i in hidden), *kept]

    def unlabelled(self) -> Sequence[str]:
        return self._unlabelled

    def find_words(self) -> Mapping[str, Words]:
        for split in SPLITS:  # here, so that a wrong file is refused before a run has begun
            self._check_unknown(split)
        return self._words_of_training

    @cached_property
    def _words_of_training(self) -> Mapping[str, Words]:
        train = self.all_pairs["train"]
        texts = {"x": [*(pair.x for pair in train), *self._lone_texts], "sentence": [pair.sentence for pair in train]}
        found = {}
        for field, lines in texts.items():
            counts = Counter(word for line in lines for word in line.split())
            often = [word for word, count in counts.items() if count >= self.min_count]
            found[field] = Words(sorted(often, key=lambda word: (-counts[word], word)))
        return found

    def find_longest(self) -> Mapping[str, int]:
        pairs = [pair for split in SPLITS for pair in self.all_pairs[split]]
        texts = {"x": [*(pair.x for pair in pairs), *self._lone_texts], "sentence": [pair.sentence for pair in pairs]}
        return {field: max(len(line.split()) for line in lines) for field, lines in texts.items()}

    def encode(self, field: str, lines: Sequence[str]) -> tuple[Tensor, int]:
        return super().encode(field, [line.lower() for line in lines] if self.lowercase else lines)

    def unknown_words(self, split: Split, field: str) -> tuple[list[str], int]:
        """Return the words of a split's field that are not known, with repeats, and the number of all its words.

        Args:
            split: `train`, `val` or `test`.
            field: `x` or `sentence`.
        """
        words = [word for pair in self.pairs(split) for word in getattr(pair, field).split()]
        return [word for word in words if word not in self._words_of_training[field]], len(words)

    def check(self) -> list[str]:
        reads: list[Callable[[], object]] = [
            *(partial(self.read_pairs, split) for split in SPLITS),
            self.read_unlabelled,
            lambda: self.all_pairs,
        ]
        problems = _problems(reads) or _problems([partial(self._check_unknown, split) for split in SPLITS])
        return problems or super().check()

    def _check_unknown(self, split: Split) -> None:
        for field in FIELDS:
            unknown, total = self.unknown_words(split, field)
            if len(unknown) > self.max_unknown * total:
                raise UserError(
                    f"{self.file_of(split)}: {len(unknown) / total:.0%} of the words in {field} of {split} are not "
                    f"known from training ({_some(dict.fromkeys(unknown))}); is it the right file? Add texts to "
                    f"training, or raise --data.max_unknown, which is {self.max_unknown:g}"
                )

    def facts(self) -> list[str]:
        lines = super().facts()
        for split in SPLITS:
            counts = [(field, *self.unknown_words(split, field)) for field in FIELDS]
            found = [f"{len(unknown):,} of {total:,} in {field}" for field, unknown, total in counts]
            lines.append(f"{split}: unknown words: {', '.join(found)}")
        return [*lines, *self.notes]


def _problems(checks: Iterable[Callable[[], object]]) -> list[str]:
    """The messages of the checks that fail, each once."""
    found = []
    for check in checks:
        try:
            check()
        except UserError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def _some(names: Iterable[str]) -> str:
    """The first names, and the number of the other names."""
    names = list(names)
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")

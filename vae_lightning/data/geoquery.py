"""The questions of GeoQuery with their logical forms, from a file that the user brings."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from vae_lightning.data.module import Split
from vae_lightning.data.parallel_text import Line, ParallelText, read_text
from vae_lightning.types import UserError

_SOURCE = "https://github.com/jkkummerfeld/text2sql-data"


class GeoQuery(ParallelText):
    """877 questions about the geography of the United States with their logical forms; you bring the file.

    The file is `data/non-sql-data/geography-logic.txt` of https://github.com/jkkummerfeld/text2sql-data; copy it to
    `DATA_DIR/geoquery/geography-logic.txt`. The program does not download the file, because the repository names no
    licence for the file. Names of places are replaced by var0, var1, ..., as in the file. Further forms may lie in
    `DATA_DIR/geoquery/unlabelled.txt`, one in each line. The score `exact_match` compares forms, not the answers that
    they give.

    Args:
        data_dir: The folder that holds `geoquery`.
        by: The published split. question: training may have the form of a test question, with another question. query:
            no form of test is in training.
        max_words: The largest number of words in a text.
        kwargs: Arguments of `ParallelText`.
    """

    def __init__(
        self,
        data_dir: str = "data",
        *,
        by: Literal["question", "query"] = "question",
        max_words: int = 128,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir=data_dir, max_words=max_words, **kwargs)
        self.by = by

    @property
    def folder(self) -> Path:
        return Path(self.data_dir) / "geoquery"

    def file_of(self, split: Split) -> Path:
        return self.folder / "geography-logic.txt"

    def read_pairs(self, split: Split) -> list[Line]:
        wanted = {"val": "dev"}.get(split, split)
        lines: list[Line] = []
        for entry in self._entries:
            for sentence in entry["sentences"]:
                where = sentence["question-split"] if self.by == "question" else entry["query-split"]
                if where == wanted:
                    texts = (sentence["text"], entry["logic"][0])
                    plain = tuple(" ".join((text.lower() if self.lowercase else text).split()) for text in texts)
                    lines.append(Line(len(lines) + 1, plain))
        return lines

    @cached_property
    def _entries(self) -> list[dict[str, Any]]:
        path = self.file_of("train")
        if not path.is_file():
            raise UserError(
                f"{path} is not found; copy it from data/non-sql-data of {_SOURCE}; it is not fetched, because no "
                "licence is named for it"
            )
        try:
            entries = json.loads(read_text(path))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {error.lineno} is not JSON ({error.msg}); copy the file again") from error
        if not isinstance(entries, list) or not entries or not all(map(_is_entry, entries)):
            raise UserError(f"{path}: is not the published file, a list of forms (`logic`) with their `sentences`")
        return entries


def _is_entry(entry: object) -> bool:
    """Whether an entry has the parts that are read, each of its type."""
    if not isinstance(entry, dict) or not isinstance(entry.get("query-split"), str):
        return False
    logic, sentences = entry.get("logic"), entry.get("sentences")
    if not (isinstance(logic, list) and logic and isinstance(logic[0], str) and logic[0].strip()):
        return False
    return isinstance(sentences, list) and all(
        isinstance(one, dict)
        and isinstance(one.get("question-split"), str)
        and isinstance(one.get("text"), str)
        and one["text"].strip()
        for one in sentences
    )

"""A page holds all it shows, asks for nothing, and shows each text as it is."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from vae_lightning.pictures import Page, line_chart, save_gif, save_png


class Reader(HTMLParser):
    """Collect the elements and the texts of a page, and check that each element ends."""

    empty = frozenset({"meta", "link", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.empty:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_page_holds_all_that_it_shows(tmp_path: Path) -> None:
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    save_png(image, tmp_path / "a.png")
    save_gif(image.expand(2, 3, 8, 8), tmp_path / "a.gif")
    hostile = '<script src="http://x.org/a.js">&amp;</script>\x00'
    page = Page(hostile)
    page.heading(hostile)
    page.heading(hostile, 3)
    page.text(hostile)
    page.text(hostile, is_note=True)
    page.table([hostile, "value"], [[hostile, 1.23456789], [None, "84.3 +- 0.2"]], hostile)
    page.chart(line_chart({hostile: [(0, 1), (1, 2)]}), hostile)
    page.picture(tmp_path / "a.png", hostile)
    page.picture((tmp_path / "a.gif").read_bytes())
    page.code(hostile)
    page.save(tmp_path / "deep" / "page.html")
    text = (tmp_path / "deep" / "page.html").read_text()
    reader = Reader(text)
    names = [name for name, _ in reader.elements]
    assert names.count("figure") == 3
    assert names.count("svg") == 1
    assert "script" not in names
    sources = [attributes["src"] or "" for name, attributes in reader.elements if name == "img"]
    assert [source[:15] for source in sources] == ["data:image/png;", "data:image/gif;"]
    assert base64.b64decode(sources[0].split(",")[1]) == (tmp_path / "a.png").read_bytes()
    assert all(
        not value or value.startswith("data:")
        for _, a in reader.elements
        for k, value in a.items()
        if k in ("src", "href")
    )
    assert reader.texts.count(hostile.replace("\x00", "\N{REPLACEMENT CHARACTER}")) >= 9
    numbers = [attributes for name, attributes in reader.elements if name == "td" and attributes]
    assert numbers == [{"class": "number"}] * 2
    assert "1.23457" in reader.texts


def test_a_file_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("<svg onload='alert(1)'>")
    with pytest.raises(ValueError, match=r"a\.png: it is neither PNG nor GIF"):
        Page("t").picture(tmp_path / "a.png")


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    Page("old").save(tmp_path / "page.html")
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(OSError, match="folder"):
        Page("new").save(tmp_path / "folder" / "page.html")
    Page("new").save(tmp_path / "page.html")
    assert "<title>new</title>" in (tmp_path / "page.html").read_text()
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []

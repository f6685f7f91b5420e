"""A page in one HTML file: texts, tables, charts and pictures. It needs no network and no script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from vae_lightning.pictures.curves import escaped
from vae_lightning.runs.whole_files import write_whole

_FORMATS = {b"\x89PNG\r\n\x1a\n": "png", b"GIF87a": "gif", b"GIF89a": "gif"}  # by the first bytes of a file
_STYLE = """
:root { color-scheme: light dark; --text: #1c1c1c; --page: #ffffff; --faint: #5f6368; --line: #d5d8dc; --band: #f4f5f7 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e4e4; --page: #17181a; --faint: #a0a5ab; --line: #3b3e43; --band: #222428 }
}
@media print {
  :root { color-scheme: light; --text: #000; --page: #fff; --faint: #444; --line: #bbb; --band: #fff }
  figure, tr { break-inside: avoid }
  h2, h3 { break-after: avoid }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 1000px;
       margin: 0 auto; padding: 1.5em 1em 4em }
h1 { font-size: 1.5em; overflow-wrap: anywhere } h2 { font-size: 1.2em; margin: 2em 0 .5em } h3 { font-size: 1em }
p.note, caption, figcaption { color: var(--faint); text-align: left; font-size: .9em }
div.wide { overflow-x: auto }
table { border-collapse: collapse; margin: .5em 0 1em; font-variant-numeric: tabular-nums }
th, td { text-align: left; vertical-align: top; padding: .2em .9em .2em 0; border-bottom: 1px solid var(--line);
         overflow-wrap: break-word }
th { font-weight: 600 } td.number { text-align: right; white-space: nowrap }
div.figures { display: flex; flex-wrap: wrap; gap: 1em; align-items: flex-start }
figure { margin: 0 0 1em; max-width: 100% } figure svg, figure img { max-width: 100%; height: auto; display: block }
pre { background: var(--band); padding: .7em; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .87em }
"""
# the browser is forbidden every request, also one that a text could smuggle in
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Page:
    """A page that is filled from top to bottom and written whole. All texts are escaped.

    Use it for what a person reads after a run, and sends to another person: the file needs nothing beside it.

        page = Page("My run")
        page.heading("Loss")
        page.chart(line_chart({"train": points}), "the loss of each epoch")
        page.save(Path("report.html"))

    Args:
        title: The title of the window and the first heading.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []
        self._figures: list[str] = []  # figures that follow each other stand side by side where there is room

    def heading(self, text: str, level: int = 2) -> None:
        """Add a heading.

        Args:
            text: The heading.
            level: 2 for a chapter, 3 for a part of it.
        """
        self._add(f"<h{level}>{escaped(text)}</h{level}>")

    def text(self, text: str, is_note: bool = False) -> None:
        """Add a paragraph.

        Args:
            text: The text.
            is_note: Whether it is written small, in a faint colour.
        """
        start = '<p class="note">' if is_note else "<p>"
        self._add(f"{start}{escaped(text)}</p>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> None:
        """Add a table. A column of numbers, which may be texts such as `84.3 +- 0.2` or `?`, is aligned to the right.

        Args:
            columns: The names of the columns; empty for a table without a first row.
            rows: The cells of each row; a float is written with 6 digits, None as an empty cell.
            caption: The text above the table.
        """
        head = "".join(f"<th>{escaped(name)}</th>" for name in columns)
        texts = [[_cell(value) for value in row] for row in rows]
        is_number = [all(map(_is_number, column)) and any(column) for column in zip(*texts, strict=True)]
        starts = ['<td class="number">' if right else "<td>" for right in is_number]
        lines = [
            "".join(f"{start}{escaped(text)}</td>" for start, text in zip(starts, row, strict=True)) for row in texts
        ]
        body = "\n".join(f"<tr>{line}</tr>" for line in lines)
        caption = f"<caption>{escaped(caption)}</caption>" if caption else ""
        head = f"<thead><tr>{head}</tr></thead>" if columns else ""
        self._add(f'<div class="wide"><table>{caption}{head}<tbody>\n{body}\n</tbody></table></div>')

    def chart(self, svg: str, caption: str = "") -> None:
        """Add a chart.

        Args:
            svg: What `line_chart` returns; it is not escaped.
            caption: The text below the chart.
        """
        self._add_figure(svg, caption)

    def picture(self, picture: Path | bytes, caption: str = "") -> None:
        """Add a picture, which becomes a part of the page.

        Args:
            picture: A PNG or GIF file, or its bytes.
            caption: The text below the picture.

        Raises:
            ValueError: if it is neither PNG nor GIF.
            OSError: if the file cannot be read.
        """
        contents = picture if isinstance(picture, bytes) else picture.read_bytes()
        form = next((form for start, form in _FORMATS.items() if contents.startswith(start)), None)
        if form is None:
            raise ValueError(f"{'the picture' if isinstance(picture, bytes) else picture}: it is neither PNG nor GIF")
        data = base64.b64encode(contents).decode()
        self._add_figure(f'<img alt="{escaped(caption)}" src="data:image/{form};base64,{data}">', caption)

    def code(self, text: str) -> None:
        """Add a text in letters of one width: a command, a configuration.

        Args:
            text: The text, with its line breaks.
        """
        self._add(f"<pre>{escaped(text)}</pre>")

    def html(self) -> str:
        """Return the page as HTML."""
        self._end_figures()
        head = [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<link rel="icon" href="data:,">\n<title>{escaped(self.title)}</title>\n<style>{_STYLE}</style>\n</head>',
        ]
        return "\n".join([*head, f"<body>\n<h1>{escaped(self.title)}</h1>", *self._parts, "</body>\n</html>\n"])

    def save(self, path: Path) -> None:
        """Write the page to a file, whole or not at all.

        Args:
            path: The HTML file.

        Raises:
            OSError: if the file cannot be written; an older file of that name stays unchanged.
        """
        write_whole(path, self.html().encode())

    def _add(self, part: str) -> None:
        self._end_figures()
        self._parts.append(part)

    def _add_figure(self, content: str, caption: str) -> None:
        below = f"<figcaption>{escaped(caption)}</figcaption>" if caption else ""
        self._figures.append(f"<figure>{content}{below}</figure>")

    def _end_figures(self) -> None:
        if self._figures:
            self._parts.append("\n".join(['<div class="figures">', *self._figures, "</div>"]))
            self._figures = []


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    """True of a number, of one with its error and a mark (-3.2 +- 0.1 *), of an unknown one and of an empty cell."""
    try:
        return (
            bool([float(part) for part in text.removesuffix(" *").replace("+-", " ").replace("?", "nan").split()])
            or not text
        )
    except ValueError:
        return False

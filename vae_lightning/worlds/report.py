"""The files of a comparison: dream.json, dream.txt, dream.html and, where states are images, dream.gif."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from vae_lightning.pictures import Picture, save_gif
from vae_lightning.pictures.curves import line_chart
from vae_lightning.pictures.page import Page
from vae_lightning.runs.whole_files import write_whole
from vae_lightning.worlds.agents import Curve
from vae_lightning.worlds.comparison import COLUMNS, Row, cells, summaries, table
from vae_lightning.worlds.rollout import CAPTION, SideBySide, curves

_CHART, _SMALL_CHART = (480, 300), (310, 230)  # pixels; three of the small ones stand side by side

NOTE = (
    "Each agent is tested greedily in the real world. An agent of the dream learns from dreamt steps alone, which rest "
    "on the real transitions of the model's training and validation, or on the whole recording; these are the same for "
    "the agents of all worlds. Learning curves show tests in the real world, from which no agent learns."
)
"""What a reader has to know of the table."""


@dataclass
class Report:
    """What a comparison has found so far. `save` writes it whole, after each world, so that nothing measured is lost.

    Args:
        folder: The folder of the files.
        title: The run that was dreamt of.
        settings: The settings of the comparison, for the files.
    """

    folder: Path
    title: str
    settings: Mapping[str, Any]
    rows: list[Row] = field(default_factory=list)
    scenes: dict[str, SideBySide] = field(default_factory=dict)
    picture: Picture | None = None

    def text(self) -> str:
        """Return the table as text, with the number of invalid states and a note that explains it."""
        dreamt = sum(row.steps for row in self.rows if row.teacher == "dream")
        invalid = sum(row.invalid for row in self.rows)
        return f"{self.title}\n\n{table(self.rows)}\n\n{invalid:,} of {dreamt:,} dreamt states were invalid. {NOTE}\n"

    def save(self) -> list[Path]:
        """Write the files; return their paths.

        Raises:
            OSError: if one cannot be written.
        """
        paths = [self.folder / f"dream.{ending}" for ending in ("json", "txt", "html", "gif")]
        plain = {
            "settings": dict(self.settings),
            "summary": [asdict(summary) for summary in summaries(self.rows)],
            "agents": [row.as_plain() for row in self.rows],
        }
        write_whole(paths[0], (json.dumps(plain, indent=1) + "\n").encode())
        write_whole(paths[1], self.text().encode())
        has_frames = self.picture is not None and self.picture.frames is not None
        if self.picture is not None and self.picture.frames is not None:
            save_gif(self.picture.frames, paths[3])
        self._page(paths[3] if has_frames else None).save(paths[2])
        return paths[: 4 if has_frames else 3]

    def _page(self, gif: Path | None) -> Page:
        page = Page(self.title)
        page.table(COLUMNS, [[text.replace(",", "") for text in cells(each)] for each in summaries(self.rows)])
        page.text(NOTE, is_note=True)
        page.heading("Learning curves")
        for name, series in learning_curves(self.rows).items():
            width, height = _SMALL_CHART if name.startswith("world") else _CHART
            page.chart(line_chart(series, name, "steps of the agent", "return in the real world", width, height))
        if gif is not None:
            page.heading("The same actions in the real world and in the dream")
            page.picture(gif, CAPTION)
        elif self.scenes:
            self._add_curves(page)
        page.heading("All agents")
        page.table(*_all_agents(self.rows))
        page.heading("Settings")
        page.code(json.dumps(dict(self.settings), indent=1))
        return page

    def _add_curves(self, page: Page) -> None:
        page.heading("The same actions in the real world and in the dream")
        page.text("The dream sees the first state alone. Each chart is one number of the observation.", is_note=True)
        for name, scene in self.scenes.items():
            for i, series in enumerate(curves(scene)):
                page.chart(line_chart(series, f"{name}, observation {i}", "step", "", *_SMALL_CHART))


def learning_curves(rows: Sequence[Row]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return the curves of each chart by its title: the mean over all worlds, then, if there are several, each world.

    A curve is the mean over seeds; the random agent, which does not learn, is a level line.

    Args:
        rows: The rows.
    """
    worlds = sorted({row.world for row in rows})
    charts = {"mean of all worlds": _series(rows)}
    if len(worlds) == 1:
        return {"": charts["mean of all worlds"]}
    return charts | {f"world {world}": _series([row for row in rows if row.world == world]) for world in worlds}


def _series(rows: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    series = {
        f"trained in {'the dream' if teacher == 'dream' else 'the real world'}": _mean_curve(
            [row.curve for row in rows if row.teacher == teacher]
        )
        for teacher in ("dream", "real")
    }
    random = [row.score.mean_return for row in rows if row.teacher == "random"]
    last = max((points[-1][0] for points in series.values() if points), default=0.0)
    series = {name: points for name, points in series.items() if points}
    return series | ({"random": [(0.0, fmean(random)), (last, fmean(random))]} if random else {})


def _mean_curve(found: Sequence[Curve]) -> list[tuple[float, float]]:
    """The mean at each step, which all curves of one teacher share."""
    values: dict[int, list[float]] = defaultdict(list)
    for curve in found:
        for step, value in curve:
            values[step].append(value)
    return [(float(step), fmean(values[step])) for step in sorted(values)]


def _all_agents(rows: Sequence[Row]) -> tuple[list[str], list[list[object]]]:
    """The columns and the rows of the page's long table."""
    columns = ["world", "seed", "trained in", "success", "steps / optimal", "return", "real transitions", "invalid"]
    return columns, [
        [
            *(row.world, row.seed, row.teacher, row.score.success, row.score.ratio, row.score.mean_return),
            *(row.real_transitions, f"{row.invalid:,} of {row.steps:,}" if row.teacher == "dream" else None),
        ]
        for row in rows
    ]

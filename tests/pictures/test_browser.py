"""A page in a real browser: nothing is asked of the network, nothing fails, and dark is dark.

Needs the package playwright and the program chromium; without them the test is skipped.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from vae_lightning.pictures import Page, bar_chart, line_chart, save_png

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_a_page_asks_for_nothing_and_shows_everything_in_light_and_dark(tmp_path: Path) -> None:
    api = pytest.importorskip("playwright.sync_api")
    save_png(torch.zeros(3, 8, 8, dtype=torch.uint8), tmp_path / "a.png")
    page = Page("<b>a run</b>")
    page.chart(line_chart({"a": [(0, 1), (1, 2)], "b": [(0, 2), (1, 1)]}, "title", "x", "y"))
    page.chart(bar_chart({"0": 1.0, "1": -2.0}, [0.1, None]))
    page.picture(tmp_path / "a.png", '<img src="http://x.org/a.png">')
    page.text('<script src="http://x.org/a.js"></script>')
    page.save(tmp_path / "page.html")
    (tmp_path / "a.png").unlink()
    seen = {}
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            tab = browser.new_context(color_scheme=scheme, offline=True).new_page()
            asked: list[str] = []
            said: list[str] = []
            tab.on("request", lambda request, asked=asked: asked.append(request.url[:5]))
            tab.on("console", lambda message, said=said: said.append(message.text))
            tab.goto(f"file://{tmp_path}/page.html")
            assert set(asked) <= {"file:", "data:"}
            assert asked.count("file:") == 1
            assert said == []
            assert tab.evaluate("document.images[0].naturalWidth") == 8
            boxes = [tab.locator("svg").nth(i).bounding_box() for i in range(2)]
            assert all(box and box["width"] > 300 for box in boxes)
            assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            seen[scheme] = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        browser.close()
    assert seen["light"] == "rgb(255, 255, 255)"
    assert seen["dark"] == "rgb(23, 24, 26)"

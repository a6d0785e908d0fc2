"""Makes results for tests of reports and figures: hostile names, two methods, evidence and images."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer

from tests.kit import tiny, toy
from tests.kit.factory import make_folder
from zsadbench.cli import report
from zsadbench.engine import encoder
from zsadbench.run.jobs import Request
from zsadbench.run.run import execute
from zsadbench.scoring.code import UserMethods

HOSTILE = "<img src=x onerror=alert(1)>"
CATEGORY = 'bolt"><script>alert(2)</script>'.replace("/", "")
CATEGORIES = (CATEGORY, "cloth")


def make_results(folder: Path) -> tuple[Path, Path]:
    """Write a data set of 20 images, run CLIP and a user's method on it; returns results and data."""
    data = make_folder(folder / "data" / "parts", CATEGORIES, each=5)
    name = data / CATEGORY / "test" / "hole"
    (name / "0.png").rename(name / f"{HOSTILE}.png")
    mask = data / CATEGORY / "ground_truth" / "hole"
    (mask / "0_mask.png").rename(mask / f"{HOSTILE}_mask.png")
    results = folder / "results"
    run(results, data, "clip")
    run(results, data, toy.write(folder))
    return results, data


def users(results: Path) -> UserMethods:
    """Return the user's method of results made here."""
    return UserMethods((f"{results.parent / 'mine.py'}:Mine",))


def run(results: Path, data: Path, method: str) -> None:
    """Run one method with the miniature towers."""

    request = Request(
        backbone="tiny-l14",
        weights="random",
        settings={"size": "42"},
        out=results,
        quiet=True,
        workers=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "load_clip", tiny.load)
        execute((method,), [str(data)], request)


def app() -> typer.Typer:
    """Return a program of the commands that show records."""
    program = typer.Typer()
    report.register(program)
    return program


class Page(HTMLParser):
    """What a browser would make of a page: its elements, ids, links and visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.path = path
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        """All text, white space folded."""
        return " ".join(" ".join(self.texts).split())

    @property
    def ids(self) -> list[str]:
        """Every id, in order."""
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]

    @property
    def links(self) -> list[str]:
        """Every address the page names."""
        names = ("href", "src", "xlink:href", "srcset", "action", "data", "poster")
        return [attributes[name] for _, attributes in self.elements for name in names if name in attributes]


def pages(site: Path) -> dict[str, Page]:
    """Return the pages of a site by name."""
    return {path.stem: Page(path) for path in sorted(site.glob("*.html"))}

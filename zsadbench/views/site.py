"""A folder of static pages: names that are safe, templates that escape, files that are equal every time."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ..boards import footer, metric_title, percent, sources, subtitle, title
from ..errors import RecordError, UsageError
from ..metrics import worth

STATIC = ("icon.svg", "report.js")
STYLE = "report.css"
"""A template too, so that the dark colours stand in it once."""
MARKER = ".zsad-report"
"""Its presence says that everything in the folder was written by a report and may be replaced."""


class Names:
    """Gives out file names made of what they stand for, each once, whatever the text holds."""

    def __init__(self) -> None:
        self._taken = {"index", "assets", "images"}

    def new(self, *parts: str) -> str:
        """Return a name of small letters, digits and hyphens that was not given out before."""
        stem = "-".join(filter(None, map(slug, parts)))[:80].strip("-") or "page"
        name, number = stem, 1
        while name in self._taken:
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name)
        return name


def slug(text: str) -> str:
    """Return ``text`` reduced to small ASCII letters and digits, joined by hyphens."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


class Site:
    """The folder a report is written to; what an earlier report left there is replaced.

    Raises:
        UsageError: if the folder holds anything that is not a report.
        RecordError: if a file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        import jinja2  # an extra: only who writes pages needs it
        from markupsafe import Markup

        self.folder = folder
        self.files, self.bytes = 0, 0
        self._make_room()
        self.write(MARKER, b"Written by zsad report, which replaces everything in this folder.\n")
        assets = resources.files("zsadbench.views") / "static"
        for name in STATIC:
            self.write(f"assets/{name}", assets.joinpath(name).read_bytes())
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("zsadbench.views", "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals |= {
            "metric_title": metric_title,
            "percent": percent,
            "markup": Markup,
            "worth": worth,
        }
        self._templates.globals |= {
            "title": title,
            "subtitle": subtitle,
            "footer": footer,
            "sources": sources,
        }

        style = self._templates.from_string(assets.joinpath(STYLE).read_text(encoding="utf-8"))
        self.write(f"assets/{STYLE}", f"{style.render()}\n".encode())

    def page(self, name: str, template: str, context: Mapping[str, Any]) -> None:
        """Write ``name.html`` from a template."""
        html = self._templates.get_template(template).render({**context, "page": name})
        self.write(f"{name}.html", html.encode())

    def write(self, name: str, content: bytes) -> None:
        """Write one file of the site.

        Raises:
            RecordError: if it cannot be written.
        """
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise RecordError(
                f"{path}: cannot be written ({error.strerror or error}); free space or choose another --out"
            ) from None
        self.files += 1
        self.bytes += len(content)

    def _make_room(self) -> None:
        if not self.folder.exists() or not any(self.folder.iterdir() if self.folder.is_dir() else [None]):
            return
        if not (self.folder / MARKER).is_file():
            raise UsageError(f"{self.folder}: exists and is not a report; choose an empty folder with --out")
        for path in self.folder.iterdir():
            if path.name in ("assets", "images") and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.suffix in (".html", ".csv"):
                path.unlink()

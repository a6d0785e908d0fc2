"""Looks over the built site: ``python docs/_build/check.py build/site`` lists what is wrong and exits with 1.

Every page has a title, a description, one h1 and texts for its pictures; links and anchors lead somewhere;
nothing is asked of another host.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ASKS = {
    ("script", "src"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("video", "src"),
    ("link", "href"),
}
"""Attributes whose address a browser fetches by itself."""
HARMLESS = ("canonical", "next", "prev", "alternate", "edit")
_REMOTE = re.compile(r"""(?:@import\s+|url\(\s*)["']?(https?:)?//""")


class Page(HTMLParser):
    """What is looked at of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.problems: list[str] = []
        self.asked: list[str] = []
        self.headings = 0
        self.described = ""
        self.title = ""
        self._in_title = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag says."""
        said = {name: value or "" for name, value in attrs}
        self.ids |= {said[name] for name in ("id", "name") if said.get(name) and tag != "meta"}
        self.headings += tag == "h1"
        self._in_title = tag == "title"
        if tag == "meta" and said.get("name") == "description":
            self.described = said.get("content", "")
        if tag == "img" and not said.get("alt", "").strip():
            self.problems.append(f"a picture without a text: {said.get('src')}")
        if tag == "a" and "href" in said:
            self.links.append(said["href"])
        wanted = [said[name] for kind, name in ASKS if kind == tag and name in said]
        self.asked += [address for address in wanted if said.get("rel") not in HARMLESS]

    def handle_endtag(self, tag: str) -> None:
        """Leave the title."""
        self._in_title = self._in_title and tag != "title"

    def handle_data(self, data: str) -> None:
        """Read the title."""
        if self._in_title:
            self.title += data


def problems(site: Path) -> Iterator[str]:
    """Yield what is wrong with the site in a folder, page by page."""
    titles: dict[str, str] = {}
    descriptions: dict[str, str] = {}
    for path in sorted(set(site.rglob("*.html")) - {site / "404.html"}):
        name = path.relative_to(site).as_posix()
        page = _read(path)
        said = [*page.problems, *_heads(page), *_strangers(page), *_broken(page, path, site)]
        for kind, known, own in (
            ("title", titles, page.title),
            ("description", descriptions, page.described),
        ):
            if (first := known.setdefault(own, name)) != name:
                said.append(f"has the {kind} of {first}")
        yield from (f"{name}: {problem}" for problem in said)
    for path in (*site.rglob("*.css"), *site.rglob("*.svg")):
        if _REMOTE.search(path.read_text()):
            yield f"{path.relative_to(site)}: asks something of another host"


@cache
def _read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def _heads(page: Page) -> Iterator[str]:
    if not page.title.strip():
        yield "no title"
    if len(page.described) < 20:
        yield f"no description worth the name: {page.described!r}"
    if page.headings != 1:
        yield f"{page.headings} headings of the first level"


def _strangers(page: Page) -> Iterator[str]:
    yield from (f"asks {address} of another host" for address in page.asked if urlsplit(address).netloc)


def _broken(page: Page, path: Path, site: Path) -> Iterator[str]:
    for link in page.links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        place = unquote(parts.path)
        target = site / place.lstrip("/") if place.startswith("/") else path.parent / place
        target = target / "index.html" if target.is_dir() else target
        if place and not target.exists():
            yield f"the link {link} leads nowhere"
        elif parts.fragment and target.suffix != ".png":
            anchors = _read(target if place else path).ids
            if unquote(parts.fragment) not in anchors:
                yield f"the anchor of {link} is not there"


if __name__ == "__main__":
    found = list(problems(Path(sys.argv[1])))
    print("\n".join(found) or f"{len(list(Path(sys.argv[1]).rglob('*.html')))} pages are in order")
    sys.exit(bool(found))

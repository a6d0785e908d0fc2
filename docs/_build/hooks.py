"""What MkDocs is told beyond mkdocs.yml: pages made in the build, and links that leave the docs.

MkDocs calls ``on_config``, ``on_files`` and ``on_page_markdown`` by name.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import normpath, relpath
from typing import Any

import commonmark
import examples
import outputs
import pages
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
TAKEN = {
    "CONTRIBUTING.md": (
        "project/contributing.md",
        "How to add a method, a dataset or a change, and what a change must pass.",
    ),
    "CHANGELOG.md": (
        "project/changelog.md",
        "What changed for people who use zsadbench, version by version.",
    ),
    "SECURITY.md": (
        "project/security.md",
        "How to report a vulnerability, and what zsadbench does with files it is given.",
    ),
    "CODE_OF_CONDUCT.md": ("project/code-of-conduct.md", "How people treat each other in this project."),
    "datasets/README.md": (
        "reference/descriptions.md",
        "The keys of a dataset description: where files lie, what is normal, which mask is whose.",
    ),
    "results/boards/demo.md": (
        "project/demo-board.md",
        "The committed board of the demo, rebuilt and compared by CI.",
    ),
}
"""Files of the repository that are pages too: where they stand in the site, and their description."""
TITLES = {"results/boards/demo.md": "The board of the demo"}
_ROLE = re.compile(r":(?:class|meth|func|data|mod|attr):<code>[~.]*")
_LINK = re.compile(r"(?<!!)\[([^\]\[]*)\]\(([^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Fill the entries of the navigation that stand in angle brackets."""
    config.nav = [_filled(entry) for entry in config.nav]
    return config


def _filled(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {title: _filled(value) for title, value in entry.items()}
    if isinstance(entry, list):
        return [_filled(value) for value in entry]
    return pages.navigation(entry[1:-1]) if entry.startswith("<") else entry


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made in the build and those taken from beside the docs."""
    made = {path: text for path, text in pages.made().items() if files.get_file_from_path(path) is None}
    taken = {
        place: _taken(source, about) for source, (place, about) in TAKEN.items() if (ROOT / source).exists()
    }
    for path, content in {**made, **taken, **_pictures(files)}.items():
        files.append(File.generated(config, path, content=content))
    return files


def _pictures(files: Files) -> dict[str, bytes]:
    """Return the pictures that commands of the docs write, by their place in the site."""
    return {
        f"{file.src_uri.rpartition('/')[0]}/made/{name}": content
        for file in files.documentation_pages()
        if file.abs_src_path and outputs.asked(text := Path(file.abs_src_path).read_text())
        for name, content in outputs.pictures(text).items()
    }


def _taken(source: str, description: str) -> str:
    text = (ROOT / source).read_text()
    if source in TITLES:
        text = re.sub(r"\A#+ .*\n", "", text)
        text = f"# {TITLES[source]}\n\n{text}"
    return f'---\ndescription: "{description}"\nsource: {source}\n---\n{text}'


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Put in what is made for a page, mark its examples, turn links that leave the docs, indent lists."""
    path = page.file.src_uri
    source = page.meta.get("source", f"docs/{path}")
    text = pages.completed(path, markdown)
    text = outputs.shown(text) if page.meta.get("outputs") else text
    text = examples.marked(text)
    text = _LINK.sub(lambda link: f"[{link[1]}]({_target(link[2], source, path, files)})", text)
    return commonmark.lists(text)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Take the marks of Sphinx out of docstrings, which people read in code too."""
    return _ROLE.sub(r"<code>", html).replace("::</p>", ":</p>")


def _target(link: str, source: str, path: str, files: Files) -> str:
    """Return where a link of a file of the repository leads in the site."""
    address, _, anchor = link.partition("#")
    if not address or ":" in address:
        return link
    place = normpath(f"{source.rpartition('/')[0]}/{address}") if "/" in source else normpath(address)
    found = TAKEN[place][0] if place in TAKEN else place.removeprefix("docs/")
    if place == "README.md":
        found = "index.md"
    if files.get_file_from_path(found) is None:
        return link
    return relpath(found, path.rpartition("/")[0] or ".") + (f"#{anchor}" if anchor else "")

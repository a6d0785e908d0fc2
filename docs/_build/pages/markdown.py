"""Pieces of a page."""

from __future__ import annotations

import re
from collections.abc import Iterable


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    lines = [list(head)]
    lines += [["--"] * len(lines[0])] + [[_cell(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def page(title: str, description: str, *parts: str) -> str:
    """Return a page with its front matter; empty parts are left out."""
    return (
        f'---\ndescription: "{description}"\n---\n# {title}\n\n'
        + "\n\n".join(part for part in parts if part)
        + "\n"
    )


def sentence(text: str) -> str:
    """Return the first sentence of a help text, on one line."""
    return " ".join(text.split("\n\n")[0].split()).replace('"', "'")

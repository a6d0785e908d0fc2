"""The commands in the docs: which run in CI, and which need something that CI has not.

A fenced block of commands runs, page by page and in order, unless a comment before it says what it needs:

    <!-- needs data -->

``python docs/_build/examples.py PAGE...`` prints the commands of pages that run, for a shell to carry out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NEEDS = {
    "data": "Needs images of your own or a dataset that you have fetched.",
    "weights": "Needs CLIP weights, which are fetched on first use or given as a file.",
    "network": "Needs the network.",
    "clone": "Runs in a clone of the repository.",
    "package": "Needs the package that it imports, which zsadbench does not bring.",
    "machines": "Needs the extra `cluster`, and the machines or devices it names.",
    "yours": "Needs a repository and a method of your own.",
}
"""What a block may need, and how the site says so."""
_BLOCK = re.compile(r"(?:^ *<!-- needs ([\w ]+?) -->\n)?^( *)```(\w*)\n(.*?)^ *```$", re.M | re.S)
COMMAND = re.compile(
    r"(?:\$ )?((?:zsad|make|git|python3?|pip|uv|export|cat|mkdir|cp|docker|\.venv/bin/\S+)\b.*)"
)


@dataclass(frozen=True)
class Block:
    """A fenced block: language, lines, what it needs, the number of its first line, its end in the text."""

    language: str
    lines: tuple[str, ...]
    needs: tuple[str, ...]
    line: int
    end: int

    @property
    def commands(self) -> list[str]:
        """The commands, a continued line joined to its first one."""
        if self.language not in ("", "bash", "console"):
            return []
        joined = "\n".join(self.lines).replace("\\\n", " ").splitlines()
        return [line.strip() for line in joined if COMMAND.match(line.strip())]

    @property
    def runs(self) -> bool:
        """Whether the block runs in CI."""
        return bool(self.commands) and not self.needs


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    for found in _BLOCK.finditer(text):
        lines = tuple(line[len(found[2]) :] for line in found[4].splitlines())
        yield Block(
            found[3],
            lines,
            tuple((found[1] or "").split()),
            text.count("\n", 0, found.start()) + 1,
            found.end(),
        )


def marked(text: str) -> str:
    """Return a page in which every block that needs something says so."""
    return _BLOCK.sub(_with_note, text)


def _with_note(found: re.Match[str]) -> str:
    if not found[1]:
        return found[0]
    said = " ".join(NEEDS[need] for need in found[1].split())
    fence = found[0].split("-->\n", 1)[1]
    return f"{found[2]}*{said}*{{ .needs }}\n\n{fence}"


def script(text: str) -> str:
    """Return what the blocks of a page that run hold, in order, for a folder of the page's own."""
    return "\n".join("\n".join(block.lines) for block in blocks(text) if block.runs)


if __name__ == "__main__":
    print("\n".join(script(Path(page).read_text()) for page in sys.argv[1:]))

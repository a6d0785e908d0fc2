"""Text from outside made safe where it leaves: for a terminal, for Markdown, for a cell of CSV.

Names of folders, records, checkpoints and options may hold anything: escape sequences, marks that turn the
direction of writing, markup, formulas.  HTML is escaped by its templates, LaTeX by ``boards/latex.py``.
"""

from __future__ import annotations

import re
import sys
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

_MARKUP = re.compile(
    r"[\\`*\[\]<|~&$]"
    r"|(?<!\w)_|_(?!\w)"  # inside a word it is no emphasis
    r"|:(?=//)|(?<=\bwww)\."  # bare addresses become links
    r"|^>|^[#+\-=](?=[#+\-=]*(?:\s|$))|(?<=^\d)[.)]"  # quotations, headings, lists and rules
)
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")


def terminal(text: object) -> str:
    """Return text as one line that a terminal shows and does not obey: odd characters become escapes.

    Odd are those that Python does not print: control characters, line separators, marks of direction, signs
    without width, halves of surrogate pairs.
    """
    line = str(text)
    return line if line.isprintable() else "".join(map(_shown, line))


def _shown(sign: str) -> str:
    return sign if sign.isprintable() else ascii(sign)[1:-1]


def block(text: object) -> str:
    """Return text of several lines, each made safe as by :func:`terminal`."""
    return "\n".join(map(terminal, str(text).split("\n")))


def say(text: object = "", stream: TextIO | None = None) -> None:
    """Print text, made safe, to ``stream`` (standard output); what its encoding lacks becomes an escape."""
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    print(block(text).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def put(content: str) -> None:
    """Print the content of a file: as it is where it goes to a pipe or file, made safe on a terminal."""
    sys.stdout.write(block(content) if sys.stdout.isatty() else content)


class _Console(Console):
    """A console to which every plain text is only text."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return ``text`` made safe; rich asks for it before it measures."""
        return super().render_str(block(text), **options)


def console(*, stderr: bool = False, width: int | None = None, soft_wrap: bool = False) -> Console:
    """Return a rich console that reads neither markup nor emoji in plain texts, and makes them safe.

    ``width`` is used where the output goes to a file or pipe, which has none.
    """
    plain: dict[str, Any] = {"stderr": stderr, "soft_wrap": soft_wrap}
    plain |= dict.fromkeys(("highlight", "markup", "emoji"), False)
    made = _Console(**plain)
    return made if made.is_terminal or width is None else _Console(width=width, **plain)


def markdown(text: object) -> str:
    """Return text of one line in which Markdown reads no markup, link, image or HTML."""
    return _MARKUP.sub(r"\\\g<0>", terminal(" ".join(str(text).split("\n"))))


def csv_cell(text: str) -> str:
    """Return text that no spreadsheet takes for a formula; :func:`csv_text` gives it back."""
    return f"'{text}" if _FORMULA.match(text) else text


def csv_text(cell: str) -> str:
    """Return the text that :func:`csv_cell` made ``cell`` of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell[1:]) else cell

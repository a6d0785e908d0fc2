"""Lists as GitHub reads them, put into the form that Python-Markdown wants."""

from __future__ import annotations

import re

_ITEM = re.compile(r"( *)([-*+]|\d{1,3}[.)]) +(?=\S)")
_FENCE = re.compile(r" *(```|~~~)")
WIDTH = 4
"""Spaces that Python-Markdown asks for a level of a list."""


def lists(text: str) -> str:
    """Return ``text`` with a blank line before every list and with its levels indented by four spaces."""
    return "\n".join(_Lines().read(text.splitlines())) + "\n"


class _Lines:
    """Walks over the lines and knows the open levels: the columns of the mark and of the text behind it."""

    def __init__(self) -> None:
        self.levels: list[tuple[int, int]] = []
        self.done: list[str] = []
        self.fenced = ""

    def read(self, lines: list[str]) -> list[str]:
        for line in lines:
            self._fence_or(line)
        return self.done

    def _fence_or(self, line: str) -> None:
        mark = _FENCE.match(line)
        if self.fenced:
            self._put(line)
            if mark and mark[1] == self.fenced:
                self.fenced = ""
        elif mark:
            self._close(line)
            self.fenced = mark[1]
            self._put(line)
        elif item := _ITEM.match(line):
            self._item(line, item)
        else:
            self._close(line)
            self._put(line)

    def _item(self, line: str, item: re.Match[str]) -> None:
        column = len(item[1])
        if not self.levels and column >= WIDTH:  # code by indentation
            self._put(line)
            return
        if not self.levels and self.done and self.done[-1].strip():
            self.done.append("")
        while self.levels and column < self.levels[-1][1]:
            self.levels.pop()
        self.levels.append((column, item.end()))
        self.done.append(" " * (WIDTH * (len(self.levels) - 1)) + line[column:])

    def _close(self, line: str) -> None:
        """Leave the levels that a line no longer belongs to; a line right below an item stays in it."""
        if not line.strip() or (self.done and self.done[-1].strip() and not _blocks(line)):
            return
        column = len(line) - len(line.lstrip())
        while self.levels and column < self.levels[-1][1]:
            self.levels.pop()

    def _put(self, line: str) -> None:
        if not self.levels or not line.strip():
            self.done.append(line)
            return
        text = self.levels[-1][1]
        own = len(line) - len(line.lstrip())
        self.done.append(" " * (WIDTH * len(self.levels) + max(0, own - text)) + line.lstrip())


def _blocks(line: str) -> bool:
    """Tell whether a line starts a block that ends a list even without a blank line before it."""
    return bool(re.match(r"#{1,6} |```|~~~|\|", line))

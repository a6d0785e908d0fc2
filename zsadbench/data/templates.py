"""Path templates of the dataset descriptions, ``{class}/test/{specie}/{stem}.png``.

``{name}`` captures a piece without ``/``, ``{name:a|b}`` one of the listed strings, ``{ext}`` stands
for any image suffix (``{ext:png|jpg}`` for these), ``{name:03}`` pads a number when the template is
filled.  A template that ends in ``/`` stands for a folder.  Suffixes are compared without regard to
case, everything else with regard to it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ..samples import nfc

SUFFIXES = (
    *("png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp"),
    *("jpe", "jfif", "mpo", "apng", "gif", "pgm", "ppm", "pbm", "pnm"),
    *("jp2", "j2k", "j2c", "jpc", "jpf", "jpx"),
)
"""Suffixes of what ``images.decode`` reads; masks are looked for in this order."""

UNREAD = (
    *("tga", "heic", "heif", "avif", "exr", "hdr", "pfm", "jxl", "dib", "psd", "svg", "eps", "dcm", "dicom"),
    *("dng", "raw", "cr2", "cr3", "nef", "arw", "orf", "rw2"),
)
"""Suffixes of images that are not read: such a file is never left out without a word."""

LONGEST = 1024
"""Characters of a name that is matched; file systems know none that is longer."""

MOST_PIECES = 100
"""Literal texts and captures in one name of a template."""

_TOKEN = re.compile(r"\{([^{}]*)\}")
_NAME = re.compile(r"([A-Za-z_]\w*)(?::(.+))?", re.DOTALL)
_DRIVE = re.compile(r"[A-Za-z]:")


def is_image(name: str, suffixes: tuple[str, ...] = SUFFIXES) -> bool:
    """Tell whether a file name has the suffix of an image."""
    return "." in name and name.rpartition(".")[2].lower() in suffixes


class TemplateError(ValueError):
    """A template that cannot be understood, or a value that does not fit it."""


def unsafe(path: str) -> str:
    """Return why a relative path of a table or template is refused, or the empty string."""
    if "\\" in path:
        return "has a backslash; write the path with '/'"
    if path.startswith("/") or _DRIVE.match(path):
        return "is absolute; make it relative to the dataset's folder by removing the leading folders"
    if ".." in path.split("/"):
        return "has a '..' part and could leave the dataset's folder; write it without"
    if "\0" in path:
        return "has a NUL character; correct it"
    return ""


@dataclass(frozen=True)
class Token:
    """One ``{...}`` of a template."""

    name: str
    choices: tuple[str, ...] = ()
    width: int = 0

    @classmethod
    def parse(cls, text: str) -> Token:
        """Parse what stands between the braces."""
        match = _NAME.fullmatch(text)
        if not match:
            raise TemplateError(f"'{{{text}}}' is not a capture; write {{name}}, {{name:a|b}} or {{name:03}}")
        name, spec = match[1], match[2]
        if spec is None:
            return cls(name)
        if spec.isdigit() and spec.startswith("0"):
            return cls(name, width=int(spec))
        choices = tuple(nfc(choice) for choice in spec.split("|"))
        if "" in choices:
            raise TemplateError(f"'{{{text}}}' has an empty alternative")
        return cls(name, choices)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What ``{ext}`` stands for."""
        return self.choices or SUFFIXES


Piece = str | Token


@dataclass(frozen=True)
class Segment:
    """One folder or file name of a template: a literal name, or a pattern with captures.

    ``suffix`` is the number of characters at its end that are compared without regard to case.
    """

    pieces: tuple[Piece, ...]
    suffix: int = field(default=0, compare=False)

    @cached_property
    def literal(self) -> str | None:
        """The name itself when nothing is captured and case counts everywhere."""
        return None if self.suffix or self.tokens else "".join(map(str, self.pieces))

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        """The captures of this name, in order."""
        return tuple(piece for piece in self.pieces if isinstance(piece, Token))

    @cached_property
    def _repeated(self) -> tuple[str, int]:
        """The capture that must hold the same text again later in this name, and the last place of it."""
        names = [piece.name if isinstance(piece, Token) else "" for piece in self.pieces]
        twice = [place for place, name in enumerate(names) if name not in ("", "ext", *names[place + 1 :])]
        return next(((names[place], place) for place in twice if names[place] in names[:place]), ("", -1))

    def match(self, name: str) -> dict[str, str] | None:
        """Return the captures of ``name``, or None; of several ways the one whose first captures are longest.

        It takes at most as many steps as the square of the name's length for each piece (its cube, where a
        capture comes again), whatever the template.
        """
        if self.literal is not None:
            return {} if name == self.literal else None
        if "/" in name or len(name) > LONGEST:
            return None
        return self._fit(name, 0, 0, {}, set())

    def _fit(
        self, name: str, number: int, start: int, found: dict[str, str], dead: set[tuple[int, int, str]]
    ) -> dict[str, str] | None:
        """Match the rest of ``name`` with the pieces from ``number`` on; ``dead`` was tried in vain."""
        if number == len(self.pieces):
            return found if start == len(name) else None
        again, last = self._repeated
        state = number, start, found.get(again, "") if number <= last else ""
        if state in dead:
            return None
        piece = self.pieces[number]
        captures = isinstance(piece, Token) and piece.name != "ext"
        for end in self._ends(name, number, start, found):
            taken = found | {piece.name: name[start:end]} if captures else found  # type: ignore[union-attr]
            if (fits := self._fit(name, number + 1, end, taken, dead)) is not None:
                return fits
        dead.add(state)
        return None

    def _ends(self, name: str, number: int, start: int, found: Mapping[str, str]) -> Iterable[int]:
        """Yield where the piece may end that begins at ``start``."""
        piece = self.pieces[number]
        if isinstance(piece, str):
            cut = len(piece) - self.suffix * (number == len(self.pieces) - 1)
            return _after(name, start, (piece[:cut],), (piece[cut:],))
        if piece.name == "ext":
            return _after(name, start, ("",), piece.suffixes)
        if piece.name in found:
            return _after(name, start, (found[piece.name],))
        if piece.choices:
            return _after(name, start, piece.choices)
        shortest, longest = self._lengths[number + 1]
        return range(len(name) - shortest, max(start, len(name) - longest - 1), -1)

    @cached_property
    def _lengths(self) -> list[tuple[int, int]]:
        """The fewest and the most characters that the pieces from each one on can take."""
        lengths = [(0, 0)]
        for piece in reversed(self.pieces):
            if isinstance(piece, str):
                sizes = [len(piece)]
            elif piece.name == "ext":
                sizes = [*map(len, piece.suffixes)]
            else:
                sizes = [*map(len, piece.choices)] or [1, LONGEST]
            lengths.append((lengths[-1][0] + min(sizes), lengths[-1][1] + max(sizes)))
        return lengths[::-1]


def _after(name: str, start: int, texts: Iterable[str], suffixes: Iterable[str] = ("",)) -> Iterator[int]:
    """Yield where a text and a suffix end that stand at ``start``; the suffix in any case."""
    for text in texts:
        if name.startswith(text, start):
            for suffix in suffixes:
                end = start + len(text) + len(suffix)
                if name[end - len(suffix) : end].lower() == suffix.lower():
                    yield end


@dataclass(frozen=True)
class Template:
    """A parsed path template."""

    text: str
    segments: tuple[Segment, ...] = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Template:
        """Parse and check a template; raises ``TemplateError`` with the reason."""
        if not text:
            raise TemplateError("the template is empty")
        reason = unsafe(_TOKEN.sub("x", text))
        if reason:
            raise TemplateError(f"'{text}' {reason}")
        # A choice may not hold "/", so splitting before parsing is safe.
        names = [name for name in text.split("/") if name not in ("", ".")]
        if not names:
            raise TemplateError(f"'{text}' names no file")
        return cls(text, tuple(_segment(name, number == len(names)) for number, name in enumerate(names, 1)))

    @property
    def names_folder(self) -> bool:
        """Whether it stands for a folder: it ends in ``/``."""
        return self.text.endswith("/")

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        """Every capture, in order."""
        return tuple(token for segment in self.segments for token in segment.tokens)

    @cached_property
    def names(self) -> frozenset[str]:
        """The names that are captured or filled, without ``ext``."""
        return frozenset(token.name for token in self.tokens) - {"ext"}

    def match(self, path: str) -> dict[str, str] | None:
        """Return the captures of a path, or None; a name used twice must match the same text."""
        names = path.split("/")
        if len(names) != len(self.segments):
            return None
        captured: dict[str, str] = {}
        for segment, name in zip(self.segments, names, strict=True):
            found = segment.match(name)
            if found is None or not all(captured.get(k, v) == v for k, v in found.items()):
                return None
            captured |= found
        return captured

    def fill(self, values: Mapping[str, str], suffix: str = "{ext}") -> str:
        """Return the path made of ``values``, with ``suffix`` for ``{ext}``.

        Raises ``TemplateError`` where a value that is to be padded is no whole number.
        """
        return "/".join(
            ["".join([_filled(piece, values, suffix) for piece in s.pieces]) for s in self.segments]
        )

    def fill_all(self, values: Mapping[str, str]) -> list[str]:
        """Return the paths made of ``values``: one, or one per suffix where the template has ``{ext}``."""
        suffixes = next((token.suffixes for token in self.tokens if token.name == "ext"), ("",))
        path = self.fill(values, "\0")
        return [path.replace("\0", suffix) for suffix in suffixes]

    def outline(self) -> str:
        """Return the template as people read it: ``{a|b}`` instead of ``{name:a|b}``."""
        shown = []
        for segment in self.segments:
            pieces = (
                piece if isinstance(piece, str) else "{" + ("|".join(piece.choices) or piece.name) + "}"
                for piece in segment.pieces
            )
            shown.append("".join(pieces))
        return "/".join(shown) + "/" * self.names_folder


def _segment(text: str, last: bool) -> Segment:
    pieces: list[Piece] = []
    end = 0
    for match in _TOKEN.finditer(text):
        pieces += [text[end : match.start()], Token.parse(match[1])]
        end = match.end()
    pieces = [nfc(p) if isinstance(p, str) else p for p in (*pieces, text[end:]) if p != ""]
    if any(isinstance(piece, str) and ("{" in piece or "}" in piece) for piece in pieces):
        raise TemplateError(f"'{text}' has a brace without its partner")
    names = Counter(piece.name for piece in pieces if isinstance(piece, Token) and piece.name != "ext")
    if sum(count > 1 for count in names.values()) > 1 or len(pieces) > MOST_PIECES:
        raise TemplateError(f"'{text}' repeats more than one capture in one name; capture less")
    ends = pieces[-1] if last and isinstance(pieces[-1], str) and "." in pieces[-1] else ""
    return Segment(tuple(pieces), len(ends) - ends.rfind(".") - 1 if ends else 0)


def _filled(piece: Piece, values: Mapping[str, str], suffix: str) -> str:
    if isinstance(piece, str):
        return piece
    if piece.name == "ext":
        return suffix
    value = values[piece.name]
    if piece.width:
        try:
            return f"{int(value):0{piece.width}}"
        except ValueError:
            raise TemplateError(f"'{value}' of '{piece.name}' is not a whole number") from None
    return value

"""Path templates of the dataset descriptions, ``{class}/test/{specie}/{stem}.png``.

``{name}`` captures a piece without ``/``, ``{name:a|b}`` one of the listed strings, ``{ext}`` stands
for any image suffix (``{ext:png|jpg}`` for these), ``{name:03}`` pads a number when the template is
filled.  A template that ends in ``/`` stands for a folder.  Suffixes are compared without regard to
case, everything else with regard to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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

    def pattern(self) -> str:
        """Return the regular expression for the text that is captured."""
        return "|".join(map(re.escape, self.choices)) if self.choices else "[^/]+"


Piece = str | Token


@dataclass(frozen=True)
class Segment:
    """One folder or file name of a template: a literal name, or a pattern with captures."""

    pieces: tuple[Piece, ...]
    pattern: re.Pattern[str] | None = field(compare=False)

    @cached_property
    def literal(self) -> str | None:
        """The name itself when nothing is captured and case counts everywhere."""
        return None if self.pattern else "".join(map(str, self.pieces))

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        """The captures of this name, in order."""
        return tuple(piece for piece in self.pieces if isinstance(piece, Token))

    def match(self, name: str) -> dict[str, str] | None:
        """Return the captures of ``name``, or None."""
        if self.pattern is None:
            return {} if name == self.literal else None
        found = self.pattern.fullmatch(name)
        return found.groupdict() if found else None


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
    has_suffix = last and isinstance(pieces[-1], str) and "." in pieces[-1]
    if not has_suffix and Token not in map(type, pieces):
        return Segment(tuple(pieces), None)
    seen: set[str] = set()
    pattern = ""
    for number, piece in enumerate(pieces, 1):
        if isinstance(piece, str):
            cut = piece.rfind(".") + 1 if has_suffix and number == len(pieces) else len(piece)
            pattern += re.escape(piece[:cut]) + f"(?i:{re.escape(piece[cut:])})"
        elif piece.name == "ext":
            pattern += f"(?i:{'|'.join(map(re.escape, piece.suffixes))})"
        elif piece.name in seen:
            pattern += f"(?P={piece.name})"
        else:
            pattern += f"(?P<{piece.name}>{piece.pattern()})"
            seen.add(piece.name)
    return Segment(tuple(pieces), re.compile(pattern, re.DOTALL))


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

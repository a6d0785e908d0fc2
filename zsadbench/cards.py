"""Finds and reads the TOML files of the toolkit: method cards and dataset descriptions.

The files lie in the sub-packages ``zsadbench.methods`` and ``zsadbench.datasets``; the name of a
file without its suffix is the id.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from .errors import DatasetError, MethodError, ZsadError, suggest
from .files import stand_in

T = TypeVar("T")
Key = str | int
Kind = Literal["datasets", "methods"]

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_ENTRY = re.compile(r"\s*((?:\"[^\"]*\"|'[^']*'|[\w-]+)(?:\s*\.\s*(?:\"[^\"]*\"|'[^']*'|[\w-]+))*)\s*=")
_PART = re.compile(r"\"([^\"]*)\"|'([^']*)'|([\w-]+)")
_TYPES = {
    str: "a string",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


def card_paths(kind: Kind) -> dict[str, Path]:
    """Return the shipped TOML files of one kind by id, sorted."""
    found = {}
    for entry in resources.files(f"zsadbench.{kind}").iterdir():
        path = Path(str(entry))
        if path.suffix == ".toml":
            found[path.stem] = path
    return dict(sorted(found.items()))


def card_path(kind: Kind, name: str) -> Path:
    """Return the shipped TOML file called ``name``; an unknown id is refused with the nearest one."""
    paths = card_paths(kind)
    if name in paths:
        return paths[name]
    error, word = (DatasetError, "dataset") if kind == "datasets" else (MethodError, "method")
    raise error(f"Unknown {word} '{name}'.{suggest(name, paths)}")


def read_toml(path: Path, error: type[ZsadError] = DatasetError) -> dict[str, Any]:
    """Return the contents of a TOML file; ``error`` is raised with file and line when it is not one."""
    return Card.read(path, error).data


@dataclass(frozen=True)
class Card:
    """A TOML file with its text, so that a mistake is reported with its line."""

    path: Path
    data: dict[str, Any] = field(repr=False)
    text: str = field(repr=False)
    error: type[ZsadError] = DatasetError

    @classmethod
    def read(cls, path: Path, error: type[ZsadError] = DatasetError) -> Card:
        """Read ``path``; a missing file, other encodings than UTF-8 and bad syntax raise ``error``."""
        try:
            content = path.read_bytes()
            if other := stand_in(content[:512]):
                raise error(f"{path}: {other}.")
            text = content.decode("utf-8-sig")
        except FileNotFoundError:
            raise error(f"{path}: no such file; check the spelling of the path.") from None
        except UnicodeDecodeError:
            raise error(f"{path}: not UTF-8 text; save it with that encoding.") from None
        except OSError as exc:
            raise error(f"{path}: cannot be read ({exc.strerror}).") from None
        return cls.parse(text, path, error)

    @classmethod
    def parse(cls, text: str, path: Path, error: type[ZsadError] = DatasetError) -> Card:
        """Parse ``text``; ``path`` is only named in messages."""
        try:
            return cls(path, tomllib.loads(text), text, error)
        except tomllib.TOMLDecodeError as exc:
            raise error(f"{path}: not valid TOML: {exc}. Correct that line.") from None
        except RecursionError:
            raise error(f"{path}: not valid TOML: nested too deeply. Write it flatter.") from None

    def line(self, *keys: Key) -> int:
        """Return the line (from 1) on which a key stands, or that of its nearest enclosing table."""
        positions = _positions(self.text)
        for end in range(len(keys), 0, -1):
            if keys[:end] in positions:
                return positions[keys[:end]]
        return 1

    def fail(self, reason: str, *keys: Key) -> NoReturn:
        """Raise the card's error with file and line of a key."""
        raise self.error(f"{self.path}:{self.line(*keys)}: {reason}")

    def known_keys(self, table: Mapping[str, Any], allowed: Iterable[str], *keys: Key) -> None:
        """Refuse keys that are not in ``allowed``."""
        allowed = tuple(allowed)
        for name in table:
            if name not in allowed:
                near = suggest(name, allowed)
                near = near if near.startswith(" Did") else ""
                self.fail(f"unknown key '{name}'.{near} Allowed: {', '.join(allowed)}.", *keys, name)

    def take(self, table: Mapping[str, Any], name: str, kind: type[T], default: T | None, *keys: Key) -> T:
        """Return ``table[name]`` of the wanted type; without a default a missing key is refused."""
        if name not in table:
            if default is None:
                self.fail(f"the key '{name}' is missing; add {name} = {_TYPES[kind]}.", *keys)
            return default
        value = table[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.fail(f"'{name}' must be {_TYPES[kind]}, not {value!r}.", *keys, name)
        return value


def _positions(text: str) -> dict[tuple[Key, ...], int]:
    """Map every key path of a TOML text to its line; arrays of tables are counted from 0."""
    found: dict[tuple[Key, ...], int] = {}
    counts: dict[str, int] = {}
    table: tuple[Key, ...] = ()
    quote = ""
    for number, line in enumerate(text.splitlines(), 1):
        if quote:
            quote = "" if quote in line else quote
            continue
        if header := _HEADER.match(line):
            table = _parts(header[2])
            if header[1] == "[[":
                counts[header[2]] = counts.get(header[2], -1) + 1
                table = (*table, counts[header[2]])
            found.setdefault(table[:1], number)
            found.setdefault(table, number)
        elif entry := _ENTRY.match(line):
            names = _parts(entry[1])
            for end in range(1, len(names) + 1):
                found.setdefault((*table, *names[:end]), number)
            quote = next((q for q in ('"""', "'''") if line.count(q) == 1), "")
    return found


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(a or b or c for a, b, c in _PART.findall(dotted))

"""Rooms: packages whose public names are loaded when first used (PEP 562), so that listing needs no torch.

A room's ``__init__`` imports its names under ``TYPE_CHECKING``, where people and type checkers read them,
lists them in ``__all__`` and ends with ``room(__name__)``.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class Room(ModuleType):
    """A package that knows where its public names live."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in _homes(self.__name__):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        home, original = _homes(self.__name__)[name]
        return getattr(import_module(home, self.__name__), original)

    def __setattr__(self, name: str, value: object) -> None:
        # Importing a module binds it in its package; there a public name of the same spelling comes first.
        if not (isinstance(value, ModuleType) and name in self.__all__):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__all__, *(name for name in vars(self) if name.startswith("__"))})


def room(package: str) -> None:
    """Let ``package`` load the names of its ``if TYPE_CHECKING`` block when they are first used."""
    sys.modules[package].__class__ = Room


@cache
def _homes(package: str) -> dict[str, tuple[str, str]]:
    """Return public name -> (module relative to ``package``, name there)."""
    spec = find_spec(package)
    source = spec.loader.get_source(package)  # type: ignore[union-attr]
    blocks = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
    return {
        alias.asname or alias.name: ("." * node.level + (node.module or ""), alias.name)
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

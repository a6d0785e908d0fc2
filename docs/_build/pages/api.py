"""A page for each room, from ``__all__`` and docstrings; nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from .markdown import page, sentence, table

ROOT = Path(__file__).parents[3]
ROOMS = (
    "",
    "metrics",
    "images",
    "data",
    "clip",
    "method",
    "records",
    "engine",
    "scoring",
    "run",
    "boards",
    "training",
    "views",
    "deploy",
    "demo",
    "bench",
)
GROUND = ("errors", "inputs", "samples", "maps", "prompts")
"""Modules of the ground floor that people use; the rest of it serves the rooms."""
MODULES = (*ROOMS, *GROUND)


def name_of(room: str) -> str:
    """Return the module's full name."""
    return f"zsadbench.{room}" if room else "zsadbench"


@cache
def _source(room: str) -> ast.Module:
    folder = _folder(room)
    return ast.parse((folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")).read_text())


def _folder(module: str) -> Path:
    return ROOT.joinpath("zsadbench", *filter(None, module.split(".")))


def public_names(room: str) -> list[str]:
    """Return what a room offers (``__all__``), or what a module of the ground floor defines."""
    for node in _source(room).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return sorted(name for name in ast.literal_eval(node.value) if not name.startswith("__"))
    kinds = (ast.ClassDef, ast.FunctionDef)
    return sorted(
        node.name for node in _source(room).body if isinstance(node, kinds) and not node.name.startswith("_")
    )


def index() -> str:
    """Return the page that lists the modules."""
    rows = [
        (f"[`{name_of(room)}`]({name_of(room)}.md)", sentence(ast.get_docstring(_source(room)) or ""))
        for room in MODULES
    ]
    return page(
        "Python API",
        "Every public name of the package, room by room, from its docstring.",
        "`zsadbench` itself holds what most scripts need, the rooms hold the parts.",
        table(("module", "what it is for"), rows),
    )


def page_of(room: str) -> str:
    """Return the page of one module."""
    doc = ast.get_docstring(_source(room)) or ""
    homes = {name: _home(room, name) for name in public_names(room)}
    described = {name: home for name, home in homes.items() if not name.isupper()}
    constants = table(
        ("constant", "value"), ((f"`{name}`", _constant(homes[name])) for name in homes if name.isupper())
    )
    parts = [f"::: {home}" for home in described.values()]
    return page(
        name_of(room),
        sentence(doc),
        doc,
        *parts,
        *(["## Constants", constants] if len(described) < len(homes) else []),
    )


def _constant(home: str) -> str:
    """Return a constant's value as it is written, shortened."""
    module, _, name = home.removeprefix("zsadbench.").rpartition(".")
    text = ast.unparse(dict(_assigned(_source(module)))[name])
    return f"`{text if len(text) < 90 else text[:80] + ' ...'}`"


def _assigned(module: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Yield the names that a module assigns at its top, each with what is assigned."""
    for node in module.body:
        if isinstance(node, ast.AnnAssign) and node.value and isinstance(node.target, ast.Name):
            yield node.target.id, node.value
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if isinstance(target, ast.Name):
                yield target.id, node.value
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                names = (one.id for one in target.elts if isinstance(one, ast.Name))
                yield from zip(names, node.value.elts, strict=True)


def _home(module: str, name: str) -> str:
    """Return the full path under which ``name`` is defined, following the imports of rooms and modules."""
    parts = ("zsadbench", *filter(None, module.split(".")))
    package = parts if _folder(module).is_dir() else parts[:-1]
    for node in ast.walk(_source(module)):
        if not (isinstance(node, ast.ImportFrom) and node.level):
            continue
        for alias in node.names:
            if name == (alias.asname or alias.name):
                base = package[1 : len(package) - node.level + 1]
                return _home(".".join((*base, *(node.module or "").split("."))).strip("."), alias.name)
    return ".".join((*parts, name))

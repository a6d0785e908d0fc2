"""Docstrings of what is public: arrays have shapes, errors are named."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest
from pages import api

ARRAY = re.compile(r"\b(Tensor|NDArray|ndarray|Mask|Evidence)\b")
SHAPE = re.compile(
    r"\((?:[\w *+/-]{1,12}|\.\.\.)(?:, ?(?:[\w *+/-]{1,12}|\.\.\.))*,?\)(?<=[,\w.]\))|any shape|one number",
    re.I,
)
RAISES = re.compile(r"\bRaises\b")


def functions(module: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the public functions of a module and the public methods of its classes, each with its name."""
    home = import_module(api.name_of(module))
    for name in api.public_names(module):
        thing = getattr(home, name)
        if inspect.isfunction(thing):
            yield name, thing
        if inspect.isclass(thing) and thing.__module__.startswith("zsadbench"):
            for inner, member in vars(thing).items():
                function = getattr(member, "__func__", member)
                if inner[0] != "_" and inspect.isfunction(function):
                    yield f"{name}.{inner}", function


def raised(function: Callable[..., Any]) -> set[str]:
    """Return the names of exceptions that the body of a function raises itself."""
    source = inspect.cleandoc("\n" + inspect.getsource(function))
    nodes = (node.exc for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Raise))
    calls = (node.func for node in nodes if isinstance(node, ast.Call))
    return {node.id for node in calls if isinstance(node, ast.Name)} - {"AssertionError"}


def faults(module: str) -> list[str]:
    """Return what the docstrings of a module leave out."""
    found = []
    for name, function in functions(module):
        doc = inspect.getdoc(function) or ""
        if raised(function) and not RAISES.search(doc):
            found.append(
                f"{name}: raises {', '.join(sorted(raised(function)))}, its docstring does not say so"
            )
        hints = " ".join(map(str, function.__annotations__.values()))
        if ARRAY.search(hints) and not SHAPE.search(doc):
            found.append(f"{name}: takes or returns arrays ({hints}) of no shape")
    return found


@pytest.mark.parametrize("module", api.MODULES)
def test_docstrings_of_public_names_tell_shapes_and_errors(module: str) -> None:
    assert not faults(module)

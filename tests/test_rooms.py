"""The house: rooms with a surface, one way up, nothing too large, and names of before that keep working."""

from __future__ import annotations

import ast
import pkgutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import zsadbench
from tests.kit.factory import make_folder
from tests.kit.method_of_0_1 import quality

PACKAGE = Path(zsadbench.__file__).parent
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
ROOMY = {"data", "boards", "metrics", "views", "demo", "cli"}
ALIASES = {"__init__", "prompts"}
"""Not counted among the modules of the ground floor: the package itself and a name of before."""


def imports(path: Path) -> set[str]:
    """Return the modules a file imports from, dotted as they are written, wherever they stand."""
    tree = ast.walk(ast.parse(path.read_text()))
    return {"." * node.level + (node.module or "") for node in tree if isinstance(node, ast.ImportFrom)}


def test_the_rooms_are_those_of_the_plan() -> None:
    planned = "metrics images data clip method records engine scoring run boards training"
    assert sorted(f"{planned} views deploy demo bench cli".split()) == ROOMS


def test_no_floor_and_no_module_is_crowded() -> None:
    ground = {path.stem for path in PACKAGE.glob("*.py")} - ALIASES
    assert len(ground) <= 10, sorted(ground)
    for room in ROOMS:
        files = [path.name for path in (PACKAGE / room).glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= (16 if room in ROOMY else 10), (room, files)
    for path in [*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("methods/*.py")]:
        assert len(path.read_text().splitlines()) <= 400, path


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_and_what_it_offers(room: str) -> None:
    module = import_module(f"zsadbench.{room}")
    assert module.__doc__ and len(module.__doc__.split(".")) > 1
    source = ast.parse((PACKAGE / room / "__init__.py").read_text())
    block = next(node for node in source.body if isinstance(node, ast.If))
    named = {alias.asname or alias.name for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    assert sorted(named) == sorted(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=f"'zsadbench.{room}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_rooms_import_rooms_not_their_files() -> None:
    for path in PACKAGE.rglob("*.py"):
        inside = ".." if path.parent != PACKAGE else "."
        for module in imports(path):
            room, _, file = module.removeprefix(inside).partition(".")
            assert not (module.startswith(inside) and room in ROOMS and file), f"{path}: {module}"
    for path in (PACKAGE.parent / "methods").glob("*.py"):
        for module in imports(path):
            parts = module.split(".")
            assert not (parts[0] == "zsadbench" and parts[1] in ROOMS and len(parts) > 2), f"{path}: {module}"


def test_walking_the_package_ends_and_finds_each_module_once() -> None:
    found = [module.name for module in pkgutil.walk_packages(zsadbench.__path__, "zsadbench.")]
    assert len(found) == len(set(found))
    assert "zsadbench.zsadbench" not in found and "zsadbench.tests" not in found
    assert {f"zsadbench.{room}" for room in ROOMS} <= set(found)


def test_a_public_name_goes_before_a_module_of_its_spelling() -> None:
    import_module("zsadbench.run.run")
    import_module("zsadbench.boards.compare")
    assert callable(zsadbench.run) and callable(zsadbench.compare)
    assert import_module("zsadbench.boards").compare is zsadbench.compare


def test_the_package_shows_its_public_names() -> None:
    assert set(zsadbench.__all__) <= set(dir(zsadbench))
    assert {"run", "score", "compare", "load_method", "load_dataset", "train"} <= set(zsadbench.__all__)


def test_a_method_file_of_0_1_runs(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "parts", categories=("bolt",), each=2)
    mine = f"{Path(__file__).parent / 'kit' / 'method_of_0_1.py'}:Mine"
    frame = zsadbench.run(mine, str(folder), out=tmp_path / "out", quiet=True)
    assert list(frame["category"]) == ["bolt"]
    assert 0 <= float(frame["pixel_auroc"][0]) <= 1
    maps, masks = torch.rand(2, 8, 8), np.zeros((2, 8, 8), bool)
    masks[1, :4] = True
    maps[1, :4] += 1
    assert quality(maps, torch.from_numpy(masks)) == 1.0

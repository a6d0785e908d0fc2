"""Rules that keep the wheel whole and the checkout harmless."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_on_disk_is_in_the_wheel() -> None:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "zsadbench").rglob("__init__.py")
    }
    mapped = {"zsadbench.methods", "zsadbench.datasets", "zsadbench.results"}
    assert found | mapped == set(SETUP["packages"])


def test_folders_of_data_are_never_packages() -> None:
    assert not (ROOT / "datasets" / "__init__.py").exists()
    assert not (ROOT / "results" / "__init__.py").exists()
    assert not [path for path in (ROOT / "methods").iterdir() if path.is_dir() and path.name != "__pycache__"]


def test_every_data_file_has_a_rule() -> None:
    rules = SETUP["package-data"]
    for package, folder in (("zsadbench.methods", "methods"), ("zsadbench.datasets", "datasets")):
        suffixes = {path.suffix for path in (ROOT / folder).iterdir() if path.is_file()} - {".py", ".md"}
        assert suffixes == {Path(rule).suffix for rule in rules[package]}
    backbones = {path.suffix for path in (ROOT / "zsadbench" / "clip" / "backbones").iterdir()}
    assert backbones <= {Path(rule).suffix for rule in rules["zsadbench.clip"]}


def test_templates_and_styles_are_in_the_wheel() -> None:
    views = ROOT / "zsadbench" / "views"
    rules = SETUP["package-data"]["zsadbench.views"]
    matched = {path for rule in rules for path in views.glob(rule)}
    others = {path for path in views.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert matched == others and others


def test_no_method_is_imported_by_a_statement() -> None:
    for path in [*(ROOT / "zsadbench").rglob("*.py"), *(ROOT / "methods").glob("*.py")]:
        assert "import zsadbench.methods." not in path.read_text(), path
        assert "from zsadbench.methods" not in path.read_text(), path

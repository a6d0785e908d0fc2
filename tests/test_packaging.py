"""Rules that keep the wheel whole and the checkout harmless."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import pytest

from zsadbench.environment import VERSION

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


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[0] == VERSION


def test_links_of_the_readme_work_where_the_package_is_shown() -> None:
    home = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]
    text = (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets and all(target.startswith("https://") for target in targets)
    for target in targets:
        if found := re.match(rf"{home}/(?:blob|raw)/main/([^#]+)", target):
            assert (ROOT / found[1]).exists(), target


@pytest.mark.parametrize(
    ("file", "before", "after", "said"),
    [
        ("CHANGELOG.md", "## 9.9.9", "## Unreleased", "CHANGELOG.md begins with 'Unreleased'"),
        ("CITATION.cff", "9.9.9", "9.9.8", "CITATION.cff does not say 9.9.9"),
        ("zsadbench/environment.py", "9.9.9", "9.9.8", "zsadbench/environment.py does not say 9.9.9"),
        (
            "dist/zsadbench-9.9.9.tar.gz",
            "",
            None,
            "not zsadbench-9.9.9-py3-none-any.whl, zsadbench-9.9.9.tar.gz",
        ),
    ],
)
def test_a_release_is_refused_where_its_parts_disagree(
    tmp_path: Path, file: str, before: str, after: str | None, said: str
) -> None:
    disagreements = runpy.run_path(str(ROOT / ".ci" / "release.py"))["disagreements"]
    for name, text in {
        "pyproject.toml": '[project]\nversion = "9.9.9"\n',
        "zsadbench/environment.py": '"""Doc."""\n\nVERSION = "9.9.9"\n',
        "CITATION.cff": "cff-version: 1.2.0\nversion: 9.9.9\n",
        "CHANGELOG.md": "# Changelog\n\n## 9.9.9\n",
        "dist/zsadbench-9.9.9.tar.gz": "",
        "dist/zsadbench-9.9.9-py3-none-any.whl": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(disagreements(tmp_path, tmp_path / "dist")) == []
    path = tmp_path / file
    if after is None:
        path.unlink()
    else:
        path.write_text(path.read_text().replace(before, after))
    assert [said in problem for problem in disagreements(tmp_path, tmp_path / "dist")] == [True]

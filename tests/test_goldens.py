"""Every stage of every method against arrays from the authors' own code.

``pytest tests/test_goldens.py --goldens DIR`` checks any folder ``DIR/<method>/*.npz``; the checks
of a method stand in ``tests/checkers/<method>.py`` and read seeds, sizes and classes from the files.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

# Few-shot WinCLIP+ is no zero-shot method: its files are only searched for anything zero-shot.
OUT_OF_SCOPE = {"winclip_fewshot": "few-shot-is-out-of-scope"}


def _label(path: Path) -> str:
    remark = next((text for start, text in OUT_OF_SCOPE.items() if path.stem.startswith(start)), "")
    return "-".join(filter(None, [f"{path.parent.name}/{path.stem}", remark]))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" in metafunc.fixturenames:
        folder: Path = metafunc.config.getoption("--goldens")
        files = sorted(folder.glob("*/*.npz"))
        metafunc.parametrize("golden", files, ids=[_label(path) for path in files])


def test_folder_has_goldens(pytestconfig: pytest.Config) -> None:
    folder: Path = pytestconfig.getoption("--goldens")
    assert list(folder.glob("*/*.npz")), f"{folder}: no <method>/*.npz"


def test_golden(golden: Path) -> None:
    module = f"tests.checkers.{golden.parent.name.replace('-', '_')}"
    importlib.import_module(module).check(golden)

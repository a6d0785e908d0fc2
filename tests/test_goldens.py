"""Every stage of every method against arrays from the authors' own code.

``pytest tests/test_goldens.py --goldens DIR`` checks any folder ``DIR/<method>/*.npz``; the checks
of a method stand in ``tests/checkers/<method>.py`` and read seeds, sizes and classes from the files.
``--device`` checks them on another device, ``--dtype bf16`` measures how far half precision is off, and
``--measured FILE`` appends a line of JSON for each file: so does ``zsad bench device``.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.checkers import common
from tests.kit.place import working_on
from zsadbench.engine import pick_device, pick_dtype

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


def test_golden(golden: Path, pytestconfig: pytest.Config) -> None:
    module = importlib.import_module(f"tests.checkers.{golden.parent.name.replace('-', '_')}")
    device, dtype = (pytestconfig.getoption(name) for name in ("--device", "--dtype"))
    common.begin_measuring(asserted=dtype == "fp32")
    said: dict[str, Any] = {"file": f"{golden.parent.name}/{golden.name}", "dtype": dtype, "failed": ""}
    try:
        with working_on(pick_device(device), pick_dtype(dtype)):
            module.check(golden)
    except Exception as error:
        said["failed"] = f"{type(error).__name__}: {error}"[:300]
        raise
    finally:
        if measured := pytestconfig.getoption("--measured"):
            with Path(measured).open("a") as file:
                file.write(json.dumps({**said, "errors": common.measured()}) + "\n")

"""Options and surroundings of every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from zsadbench.clip import random

GOLDENS = Path(__file__).parent / "goldens"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--goldens",
        type=Path,
        default=GOLDENS,
        metavar="DIR",
        help="folder of reference arrays, DIR/<method>/*.npz (default: tests/goldens)",
    )
    parser.addoption("--device", default="cpu", help="where the goldens are checked (default: cpu)")
    parser.addoption(
        "--dtype", default="fp32", help="number type of the image tower there; below fp32 nothing is asserted"
    )
    parser.addoption(
        "--measured", type=Path, metavar="FILE", help="append what the check of each golden has measured"
    )


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache of text anchors and digests out of the tests; workers of a session share one."""
    own = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "ZSAD_CACHE", str((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache")
        )
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two workers share two cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _noise_drawn_once() -> Iterator[None]:
    """Random weights are the same at every load of a miniature, and most of the load is drawing them."""
    draw = lru_cache(maxsize=2000)(random._draw)

    def copied(*what: Any) -> torch.Tensor:
        return draw(*what).clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random, "_draw", copied)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """What is flushed matters where the power may fail; tests of it put a watch in its place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where CI has the real images too, everything the tests need is there: a skipped test is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    skipped = reporter.stats.get("skipped", [])
    whole = os.environ.get("CI") and os.environ.get("ZSAD_DATA")
    if whole and skipped and exitstatus == pytest.ExitCode.OK:
        for report in skipped:
            reporter.write_line(f"skipped in CI: {report.nodeid}: {report.longrepr}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED

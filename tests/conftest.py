"""Options and surroundings of every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

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
    """Keep the user's cache of text anchors and digests out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZSAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two workers share two cores."""
    torch.set_num_threads(1)


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

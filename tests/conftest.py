"""Options and surroundings of every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

GOLDENS = Path(__file__).parent / "goldens"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--goldens",
        type=Path,
        default=GOLDENS,
        metavar="DIR",
        help="folder of reference arrays, DIR/<method>/*.npz (default: tests/goldens)",
    )


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache of text anchors and digests out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZSAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield

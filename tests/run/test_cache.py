"""Where the user's cache cannot be written or is damaged, a run costs more time and says the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.factory import make_folder
from tests.kit.terminal import call
from zsadbench.demo import data

RUN = ["-m", "clip", "--backbone", "tiny-l14", "--weights", "random", "--set", "size=28"]
RUN += ["--workers", "1", "-q"]


def a_file(folder: Path) -> Path:
    (folder / "cache").write_text("no folder")
    return folder / "cache"


def below_a_file(folder: Path) -> Path:
    return a_file(folder) / "deep"


def a_link_to_nothing(folder: Path) -> Path:
    (folder / "cache").symlink_to(folder / "gone" / "away")
    return folder / "cache"


def not_ours(folder: Path) -> Path:
    return Path("/proc/zsadbench")


def full_of_folders(folder: Path) -> Path:
    """Return a cache in which a file stands in the place of every folder."""
    for name in ("digests", "anchors", "demo"):
        (folder / "cache" / name).parent.mkdir(exist_ok=True)
        (folder / "cache" / name).touch()
    return folder / "cache"


CACHES = (a_file, below_a_file, a_link_to_nothing, not_ours, full_of_folders)


@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_that_cannot_be_written_changes_no_number(
    cache: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    parts = make_folder(tmp_path / "parts", categories=("bolt",), each=2)
    for name in ("kept", "lost"):
        if name == "lost":
            monkeypatch.setenv("ZSAD_CACHE", str(cache(tmp_path)))
        assert call("run", *RUN, "-d", parts, "--out", tmp_path / name) == 0
        assert call("compare", tmp_path / name, "--format", "csv") == 0
    out = capfd.readouterr().out.splitlines()
    lines = [line for line in out if line.startswith("parts,")]
    assert len(lines) == 2 and lines[0] == lines[1]


@pytest.mark.parametrize("cache", [one for one in CACHES if one is not a_link_to_nothing])
def test_the_demo_says_which_cache_it_cannot_be_rendered_into(
    cache: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ZSAD_CACHE", str(cache(tmp_path)))
    assert call("run", *RUN, "-d", "demo", "--out", tmp_path / "results") == 2
    err = capfd.readouterr().err
    assert "set ZSAD_CACHE to a folder that can be written" in err and err.count("\n") == 1


def test_a_full_disk_while_the_demo_is_rendered_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, image: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data, "_write_png", full)
    monkeypatch.setenv("ZSAD_CACHE", str(tmp_path))
    assert call("run", *RUN, "-d", "demo", "--out", tmp_path / "results") == 2
    assert "No space left on device" in capfd.readouterr().err
    assert not list((tmp_path / "demo").iterdir())

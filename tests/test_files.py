"""Files: writing follows the file system's rules, and a digest is remembered only while it holds."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from zsadbench import files
from zsadbench.errors import RecordError
from zsadbench.files import (
    PART,
    FileState,
    cache_dir,
    digest_of,
    hash_file,
    sha256_of,
    state_of,
    sweep,
    write_atomic,
)


def test_a_regular_file_is_replaced_whole_and_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.json"
    write_atomic(path, b"one")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(0o640)
    with path.open("rb") as before:
        write_atomic(path, b"two")
        assert before.read() == b"one"  # whoever reads the old file reads it to its end
    assert path.read_bytes() == b"two" and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("there", [True, False])
def test_what_a_link_points_to_is_replaced_and_the_link_stays(tmp_path: Path, there: bool) -> None:
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "a.json"
    if there:
        target.write_bytes(b"old")
    (tmp_path / "near").symlink_to("far")
    (tmp_path / "second.json").symlink_to(Path("near") / "a.json")
    (tmp_path / "first.json").symlink_to("second.json")
    write_atomic(tmp_path / "first.json", b"new")
    assert target.read_bytes() == b"new" and not target.is_symlink()
    assert (tmp_path / "first.json").is_symlink() and (tmp_path / "second.json").is_symlink()
    assert [file.name for file in target.parent.iterdir()] == ["a.json"]


def test_links_in_a_circle_are_said(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(RecordError, match=r"a: cannot be written \(Too many levels of symbolic links\)"):
        write_atomic(tmp_path / "a", b"")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"cannot be written \(Is a directory\)"):
        write_atomic(tmp_path, b"")
    assert tmp_path.is_dir()


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_atomic(pipe, b"through")
    reader.join(timeout=10)
    assert read == [b"through"] and stat.S_ISFIFO(pipe.lstat().st_mode)


def test_a_device_is_written_to_and_stays_one(tmp_path: Path) -> None:
    # A device of our own: as root, the old code would have destroyed that of the machine.
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_bytes(b"")
    except OSError:  # without the right to make devices that of the machine cannot be destroyed either
        device = Path("/dev/null")
        if os.access(device.parent, os.W_OK):
            pytest.fail("no device can be made here, though /dev can be written to")
    write_atomic(device, b"gone")
    (tmp_path / "link").symlink_to(device)
    write_atomic(tmp_path / "link", b"gone")
    assert stat.S_ISCHR(device.lstat().st_mode) and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
@pytest.mark.parametrize("redirected", [True, False])
def test_standard_output_is_written_to_wherever_it_goes(tmp_path: Path, name: str, redirected: bool) -> None:
    if name == "link":
        (tmp_path / "link").symlink_to("/dev/stdout")
        name = str(tmp_path / "link")
    code = (
        "import os, pathlib, sys; from zsadbench.files import write_atomic;"
        f"write_atomic(pathlib.Path({name!r}), b'content'); sys.exit(0)"
    )
    out = tmp_path / "out.txt"
    with out.open("wb") as stream:
        inode = out.stat().st_ino
        output = stream if redirected else subprocess.PIPE
        done = subprocess.run([sys.executable, "-c", code], stdout=output, check=True)
    assert (out.read_bytes() if redirected else done.stdout) == b"content"
    assert out.stat().st_ino == inode


def test_a_file_that_must_not_be_written_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"kept")
    path.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda where, mode: not (where == path and mode == os.W_OK))
    with pytest.raises(RecordError, match=r"a\.json: no permission to write"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"kept" and len(list(tmp_path.iterdir())) == 1


WRITERS = {
    "file": "write_atomic(folder / 'a.json', b'new')",
    "folder": "with draft_folder(folder / 'demo') as draft: (draft / 'a.png').touch(); os.fsync(0)",
}


@pytest.mark.parametrize("kind", WRITERS)
def test_work_of_a_killed_process_is_removed_and_that_of_a_live_one_stays(tmp_path: Path, kind: str) -> None:
    code = (
        "import os, pathlib, signal, sys; from zsadbench.files import draft_folder, write_atomic\n"
        "os.fsync = lambda handle: (print('there', flush=True), signal.pause())\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n{WRITERS[kind]}"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout and writer.stdout.readline() == b"there\n"
            (part,) = tmp_path.iterdir()
            assert part.name.endswith(PART)
            sweep(tmp_path)
            assert part.exists()  # its lock is held
        finally:
            writer.kill()
            writer.wait()
    files._sweep_once.cache_clear()
    write_atomic(tmp_path / "b.json", b"next")
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_a_file_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkstemp, made = tempfile.mkstemp, []

    def swept(**options: Any) -> tuple[int, str]:
        handle, name = mkstemp(**options)
        made.append(name)
        if len(made) == 1:
            sweep(tmp_path)
        return handle, name

    monkeypatch.setattr(tempfile, "mkstemp", swept)
    write_atomic(tmp_path / "a.json", b"new")
    assert len(made) == 2 and [path.read_bytes() for path in tmp_path.iterdir()] == [b"new"]


def test_a_user_without_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("ZSAD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert cache_dir().is_relative_to(tempfile.gettempdir())


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a.json", b"new")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match=r"link: the disk is full"):
        write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "link").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2


def test_names_as_long_as_the_system_allows_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)
    write_atomic(path, b"x")
    assert path.read_bytes() == b"x"


# Digests


def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files count as old enough at once."""
    monkeypatch.setattr(files, "SETTLING_NS", -(10**15))


def test_the_cache_of_digests_follows_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled(monkeypatch)
    path = tmp_path / "w.bin"
    path.write_bytes(b"one")
    first = sha256_of(path)
    monkeypatch.setattr(files, "hash_file", lambda path: "read again")
    assert sha256_of(path) == first
    path.write_bytes(b"other")
    assert sha256_of(path) == "read again"


@pytest.mark.parametrize("how", ["written", "renamed"])
def test_equal_size_and_time_do_not_hide_other_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    settled(monkeypatch)
    path = tmp_path / "w.bin"
    path.write_bytes(b"one")
    old, first = path.stat(), sha256_of(path)
    if how == "written":
        path.write_bytes(b"two")
    else:
        (tmp_path / "new").write_bytes(b"two")
        (tmp_path / "new").replace(path)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (old.st_size, old.st_mtime_ns)
    assert sha256_of(path) == hash_file(path) != first


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(b"one")
    first, old = sha256_of(path), path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert sha256_of(path) != first
    assert not FileState(3, 10, 20, 1).settled(20 + files.SETTLING_NS)
    assert FileState(3, 10, 20, 1).settled(21 + files.SETTLING_NS)


def test_the_state_of_a_file_is_that_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    state = state_of(tmp_path / "b")
    assert state and state == state_of(tmp_path / "a") and state.size == 3
    assert state_of(tmp_path / "none") is None


def test_odd_text_has_a_digest() -> None:
    assert digest_of({"a": "\udc80"}) != digest_of({"a": "\udc81"})

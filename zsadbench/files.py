"""Files: the user's cache, digests and when they hold, and writes that are whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from .errors import RecordError

SETTLING_NS = 2_000_000_000
"""A file that changed less than this ago may change again and keep its times: they are that coarse."""

PART = ".zsad.part"
"""Ends the names of files and folders in work; who works on one holds a lock on it."""

_STAND_INS = (
    (
        rb"version https://git-lfs\.github\.com/",
        "this is a Git LFS pointer, not the file it names; get that with git lfs pull, or download it",
    ),
    (
        rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|body|\?xml|!--)",
        "this is a page of HTML or XML, not the file; download the raw file, signed in where that is asked",
    ),
)
_STREAMS = ("/dev/std", "/dev/fd/", "/proc/")


def cache_dir() -> Path:
    """Return the user's cache folder: ``ZSAD_CACHE``, else the platform's."""
    if chosen := os.environ.get("ZSAD_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else _home() / ".cache") / "zsadbench"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a user without a name, as containers have them
        return Path(tempfile.gettempdir()) / f"zsadbench-{os.getuid()}"


def whole_path(name: str) -> str:
    """Return the whole path of a file, and the name of anything else as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_file() else name


class FileState(NamedTuple):
    """What a file shows without being read; while it stays the same, so does the content."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    def settled(self, now_ns: int) -> bool:
        """Tell whether a change after ``now_ns`` would have to show in the times."""
        return max(self.mtime_ns, self.ctime_ns) + SETTLING_NS < now_ns


def state_of(path: Path) -> FileState | None:
    """Return the state of a file, through links; None where there is none to be had, as of a folder."""
    try:
        found = path.stat()
    except OSError:
        return None
    if stat.S_ISDIR(found.st_mode):
        return None  # it does not show when a file in it is written again
    return FileState(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, read now."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, remembered in the cache by path and state."""
    state, now = state_of(path), time.time_ns()
    stamp = "|".join(map(str, (path.resolve(), *(state or ()))))
    note = cache_dir() / "digests" / hashlib.sha256(stamp.encode(errors="surrogatepass")).hexdigest()
    with suppress(OSError):
        if len(known := note.read_text()) == 64:
            return known
    digest = hash_file(path)
    if state and state.settled(now):
        with suppress(RecordError):  # a cache that cannot be written only costs time
            write_atomic(note, digest.encode())
    return digest


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def contents_digest(hashes: Mapping[str, str]) -> str:
    """Return the SHA-256 over a dataset's images: key -> SHA-256 of the file."""
    lines = "".join(f"{key}\t{digest}\n" for key, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode(errors="surrogatepass")).hexdigest()


def stand_in(start: bytes) -> str:
    """Return what a file is in place of the one that was meant, by its first bytes; else nothing."""
    for pattern, words in _STAND_INS:
        if re.match(pattern, start, re.IGNORECASE):
            return words
    return ""


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content``, by the rules of the file system.

    A regular file is replaced whole or not at all: written under a temporary name beside it, flushed to
    disk, renamed; it keeps its permissions.  Where ``path`` is a link, what it points to is replaced.
    Anything else (a device, a pipe, ``/dev/stdout``) stays what it is and is written to.

    Raises:
        RecordError: if the folder cannot be written or the disk is full; nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = _replaceable(path)
        if target is None:
            with path.open("wb") as stream:
                stream.write(content)
        else:
            _replace(target, content)
    except OSError as error:
        raise RecordError(_say(path, error)) from error


def _replaceable(path: Path) -> Path | None:
    """Return the regular file behind ``path``, there already or not; None for anything else."""
    with suppress(FileNotFoundError):  # a link that points nowhere yet is as good as a file
        if not stat.S_ISREG(path.stat().st_mode):  # raises for links in a circle
            return None
    while not str(path).startswith(_STREAMS):
        if not path.is_symlink():
            return path
        path = path.parent / path.readlink()
    return None


def _replace(path: Path, content: bytes) -> None:
    """Put a new file in the place of ``path``."""
    mode = 0o666 & ~_umask()
    if path.exists():
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        mode = stat.S_IMODE(path.stat().st_mode)
    _sweep_once(path.parent)
    handle, temporary = _part(path)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
            temporary.chmod(mode)
            temporary.replace(path)  # while the lock is held
    except BaseException:  # an interrupt too
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _part(path: Path) -> tuple[int, Path]:
    """Return a new file beside ``path``, opened and locked."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=PART, dir=path.parent)
        if _locked(handle):
            return handle, Path(name)
        os.close(handle)


@contextmanager
def draft_folder(final: Path) -> Iterator[Path]:
    """Make a folder beside ``final`` and give it that name in the end; where it fails nothing is left.

    Drafts of processes that have ended are removed first.  If another process was faster, its folder stays.

    Raises:
        OSError: if the folder cannot be written.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    sweep(final.parent)
    while True:
        draft = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=PART, dir=final.parent))
        handle = os.open(draft, os.O_RDONLY)
        if _locked(handle):
            break
        os.close(handle)
    try:
        yield draft
        draft.chmod(0o755)
        draft.rename(final)
    except OSError:
        if not final.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(handle)


def _locked(handle: int) -> bool:
    """Lock a new file; False where a process that sweeps the folder took it away before that."""
    with suppress(OSError):  # a file system without locks: nobody can sweep there
        fcntl.flock(handle, fcntl.LOCK_EX)
    return os.fstat(handle).st_nlink > 0


@cache
def _sweep_once(folder: Path) -> None:
    sweep(folder)


def sweep(folder: Path) -> None:
    """Remove the files and folders in work whose process has ended: nobody holds their lock."""
    for path in folder.glob(f".*{PART}"):
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(handle)


def _say(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path}: the disk is full; free some space and repeat the command, it goes on where it was"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path}: no permission to write; choose another folder with --out"
    return f"{path}: cannot be written ({error.strerror or error}); choose another folder with --out"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    with suppress(OSError):
        os.fsync(handle)
    os.close(handle)

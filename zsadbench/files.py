"""Files: the user's cache, digests and when they hold, and writes that are whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from .errors import RecordError

SETTLING_NS = 2_000_000_000
"""A file that changed less than this ago may change again and keep its times: they are that coarse."""

_STREAMS = ("/dev/std", "/dev/fd/", "/proc/")


def cache_dir() -> Path:
    """Return the user's cache folder: ``ZSAD_CACHE``, else the platform's."""
    if chosen := os.environ.get("ZSAD_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "zsadbench"


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
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:  # an interrupt too
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


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

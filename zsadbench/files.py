"""Files of our own: the user's cache, digests, and writes that are whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import RecordError


def cache_dir() -> Path:
    """Return the user's cache folder: ``ZSAD_CACHE``, else the platform's."""
    if chosen := os.environ.get("ZSAD_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "zsadbench"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, remembered in the cache by path, size and modification time."""
    stat = path.stat()
    stamp = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    note = cache_dir() / "digests" / hashlib.sha256(stamp.encode()).hexdigest()
    with suppress(OSError):
        if len(known := note.read_text()) == 64:
            return known
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    with suppress(RecordError):  # a cache that cannot be written only costs time
        write_atomic(note, digest.encode())
    return digest


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def contents_digest(hashes: Mapping[str, str]) -> str:
    """Return the SHA-256 over a dataset's images: key -> SHA-256 of the file."""
    lines = "".join(f"{key}\t{digest}\n" for key, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` under a temporary name beside ``path``, flush it to disk, then rename.

    Raises:
        RecordError: if the folder cannot be written or the disk is full; nothing is left behind.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise RecordError(_say(path, error)) from error
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

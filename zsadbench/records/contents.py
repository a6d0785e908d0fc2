"""The files an observation stands on: which bytes they held, and whether they still do.

``files.csv`` beside the evidence says of every image and mask what its SHA-256 was while the file had a
certain size, modification and change time and inode.  As long as those are the same, so is the content,
and a ``stat`` is all it costs to know.  It is a memory and no claim: the hashes that count stand in the
evidence and in the records.  Its last line is its own digest; one that does not hold is no memory.
"""

from __future__ import annotations

import csv
import hashlib
import io
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import DatasetError, RecordError
from ..files import FileState, digest_of, hash_file, state_of, write_atomic
from ..images import ahead, mask_files
from ..samples import Dataset
from .tables import as_csv

FILES_CSV = "files.csv"
_COLUMNS = ("kind", "key", *FileState._fields, "sha256")
_Name = tuple[str, str]


class Contents:
    """The images and masks of a dataset with the SHA-256 of each, read only where it is not known.

    ``verify`` reads every file that is asked for, whatever is remembered of it.  The state of all files is
    taken when this is made: what is read later can only be newer, so no memory is ever wrong.
    """

    def __init__(self, data: Dataset, *, verify: bool = False, workers: int | None = None) -> None:
        self.data, self.verify, self.workers = data, verify, workers
        masks = {
            s.key: {("mask", f"{s.key}|{file.name}"): file for file in mask_files(s.mask)}
            for s in data.samples
            if s.anomalous and s.mask is not None
        }
        self._masks = {key: list(names) for key, names in masks.items()}
        self._paths: dict[_Name, Path] = {("image", s.key): s.image for s in data.samples}
        self._paths |= {name: file for names in masks.values() for name, file in names.items()}
        self._taken = time.time_ns()
        self._states = {name: state_of(path) for name, path in self._paths.items()}
        self._remembered: dict[_Name, str] = {}
        self._read: dict[_Name, str] = {}

    def recall(self, run_dir: Path) -> None:
        """Remember what ``files.csv`` of an observation says of files that are still in the same state."""
        if self.verify:
            return
        with suppress(OSError, ValueError, csv.Error):
            body, digest = (run_dir / FILES_CSV).read_bytes().rsplit(b"\n", 2)[:2]
            if digest != _digest(body):
                return
            text = io.StringIO(body.decode(errors="surrogateescape"), newline="")
            for kind, key, size, mtime, ctime, inode, sha256 in csv.reader(text):
                state = self._states.get((kind, key))
                if state and (size, mtime, ctime, inode) == tuple(map(str, state)):
                    self._remembered[kind, key] = sha256

    def changed(self, observed: Mapping[str, str]) -> set[str]:
        """Return the keys of ``observed`` (key -> SHA-256) whose image is another one now."""
        doubtful = [name for key, sha256 in observed.items() if self._known(name := ("image", key)) != sha256]
        self._hash(doubtful)
        return {key for _, key in doubtful if self._read["image", key] != observed[key]}

    def images(self) -> dict[str, str]:
        """Return the SHA-256 of every image by its key; empty for a file that cannot be read."""
        names = [("image", sample.key) for sample in self.data.samples]
        return {key: sha256 for (_, key), sha256 in zip(names, self._all(names), strict=True)}

    def masks(self) -> dict[str, str]:
        """Return the SHA-256 of the mask of every anomalous image that has one, by the image's key.

        Of a mask in several files it is the digest over theirs, in the order of their names.
        """
        self._all([name for names in self._masks.values() for name in names])
        found = {key: self._all(names) for key, names in self._masks.items()}
        return {key: each[0] if len(each) == 1 else digest_of(each) for key, each in found.items()}

    def sizes(self) -> Iterator[tuple[Path, int]]:
        """Yield every image and mask with its size in bytes."""
        yield from ((self._paths[name], state.size) for name, state in self._states.items() if state)

    def learn(self, images: Mapping[str, str]) -> None:
        """Take over the SHA-256 of images that were read after this was made."""
        self._read |= {("image", key): sha256 for key, sha256 in images.items()}

    def keep(self, run_dir: Path) -> None:
        """Write what is known into ``files.csv`` of an observation."""
        lines = as_csv(chain([_COLUMNS], self._lines()), "surrogateescape")
        lines.write(_digest(lines.getbuffer()[:-1]) + b"\n")
        content = lines.getvalue()
        with suppress(OSError, RecordError):  # what cannot be remembered only costs time
            if not (path := run_dir / FILES_CSV).is_file() or path.read_bytes() != content:
                write_atomic(path, content)

    def _lines(self) -> Iterator[tuple[Any, ...]]:
        for name, state in self._states.items():
            sha256 = self._read.get(name, self._remembered.get(name))
            if state and sha256 is not None and state.settled(self._taken):
                yield *name, *state, sha256

    def _known(self, name: _Name) -> str | None:
        return self._read.get(name) or self._remembered.get(name)

    def _all(self, names: Sequence[_Name]) -> list[str]:
        self._hash(name for name in names if self._known(name) is None)
        return [self._known(name) or "" for name in names]

    def _hash(self, names: Iterable[_Name]) -> None:
        """Read files that were not read yet."""
        todo = [name for name in names if name not in self._read]
        if not todo:
            return
        paths = map(self._paths.__getitem__, todo)
        self._read.update(zip(todo, ahead(_sha256, paths, self.workers or 4, name="zsad-hash"), strict=True))


def _digest(body: bytes | memoryview) -> bytes:
    return b"digest," + hashlib.sha256(body).hexdigest().encode()


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or over those in the folder of a mask; empty where one cannot be read."""
    try:
        if path.is_dir():
            return digest_of([(file.name, hash_file(file)) for file in mask_files(path)])
        return hash_file(path)
    except (OSError, DatasetError):
        return ""

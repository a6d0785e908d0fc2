"""Looks at a dataset's folder: names and links only, no file is opened.

Hidden names and the folders that archivers leave behind are never seen.  Links are followed inside the
dataset's folder; one that leads out of it is reported, and so is one that leads nowhere or in a circle.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..samples import Problem, nfc
from .names import is_split, means_masks, words_of
from .templates import Template, is_image


@dataclass(frozen=True)
class Folder:
    """The names in one folder, sorted; linked folders come last."""

    real: str
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    """Linked names and where they really lead."""
    odd: Mapping[str, Problem] = field(default_factory=dict)
    """Names that cannot be used, and why: links that must not be followed, names that are no text."""

    @cached_property
    def folder_names(self) -> dict[str, str]:
        """Folders on disk by the NFC form of their names."""
        return {nfc(name): name for name in self.folders}

    @cached_property
    def file_names(self) -> dict[str, str]:
        """Files on disk by the NFC form of their names, as it is and with a lower-case suffix."""
        found = {nfc(name): name for name in self.files}
        for name in self.files:
            found.setdefault(lower_suffix(nfc(name)), name)
        return found


class Tree:
    """A folder with everything below it, listed on demand and once."""

    def __init__(self, root: Path, follow_outside: bool = False) -> None:
        self.root = root
        self.problems: dict[str, Problem] = {}
        self.entered: set[str] = set()
        self.passed: set[str] = set()
        """Folders with further folders that templates name, whether by a capture (``entered``) or not."""
        self.named: set[str] = set()
        self.leaves: set[str] = set()
        """Folders in which files were looked for."""
        self.spoken_of: set[str] = set()
        """Files, in form NFC, that some template or table means, used or not."""
        self._follow_outside = follow_outside
        self._real = os.path.realpath(root)
        self._folders: dict[str, Folder] = {}
        self._places: dict[str, str | None] = {}

    def folder(self, path: str) -> Folder:
        """Return the names in ``path`` (below the root, ``""`` for the root itself)."""
        if path not in self._folders:
            self._folders[path] = self._scan(path)
        return self._folders[path]

    @property
    def has_links(self) -> bool:
        """Tell whether a link was seen."""
        return any(folder.links for folder in self._folders.values())

    def real(self, path: str) -> str:
        """Return where a file really lies."""
        parent, _, name = path.rpartition("/")
        folder = self.folder(parent)
        return folder.links.get(name) or f"{folder.real}/{name}"

    def find(self, path: str) -> str | None:
        """Return the path on disk of a file, whose suffix may differ in case; None when there is none.

        A file behind a link that must not be followed counts as absent; the link is reported.
        """
        parent, _, name = nfc(path).rpartition("/")
        if parent not in self._places:
            self._places[parent] = self._find_folder(parent)
        place = self._places[parent]
        if place is None:
            return None
        folder = self.folder(place)
        known = folder.file_names.get(name) or folder.file_names.get(lower_suffix(name))
        return self._allowed(folder, place, known) if known else None

    def find_folder(self, path: str) -> str | None:
        """Return the path on disk of a folder; None when there is none."""
        return self._find_folder(nfc(path)) or None

    def walk(
        self, template: Template, split: str = "", classes: Collection[str] = ()
    ) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield path and captures of every file (or folder, if it names one) that fits ``template``.

        Where a folder name captures ``split`` or ``class``, folders of another split or of a class that
        is not listed are not descended into.
        """
        yield from _Walk(self, template, split, classes).below("", 0, {})

    def ignored(self) -> list[str]:
        """Return the folders that were seen beside others but fit no template.

        Beside folders that a template names as they are, only those that hold images count, and neither
        masks nor another split.
        """
        captured = (path for path in self._unnamed(self.entered))
        named = (path for path in self._unnamed(self.passed - self.entered) if self._may_be_meant(path))
        return sorted({*captured, *named})

    def unmatched(self) -> list[str]:
        """Return the files that no template or table means: beside those that one does, or deeper."""
        beside = [path for folder in sorted(self.leaves | self.passed) for path in self._files(folder)]
        deeper = [path for folder in self._unnamed(self.leaves) for path in self._files_below(folder)]
        return [path for path in dict.fromkeys(beside + deeper) if nfc(path) not in self.spoken_of]

    def _unnamed(self, folders: Collection[str]) -> Iterator[str]:
        """Yield the folders in ``folders`` that no template names."""
        for parent in sorted(folders):
            below = (_join(parent, name) for name in self.folder(parent).folders)
            yield from (path for path in below if path not in self.named)

    def _may_be_meant(self, path: str) -> bool:
        name = path.rpartition("/")[2]
        if means_masks(name) or any(is_split(word) for word in words_of(name)):
            return False
        inside = (path, *(_join(path, name) for name in self.folder(path).folders))
        return any(is_image(name) for folder in inside for name in self.folder(folder).files)

    def _files(self, path: str) -> list[str]:
        folder = self.folder(path)
        return [_join(path, name) for name in folder.files if name not in folder.odd]

    def _files_below(self, path: str) -> Iterator[str]:
        """Yield every file below a folder; links are not followed."""
        yield from self._files(path)
        folder = self.folder(path)
        for name in folder.folders:
            if name not in folder.links:
                yield from self._files_below(_join(path, name))

    def _find_folder(self, path: str) -> str | None:
        """Return the path on disk of a folder, or None."""
        place: str | None = ""
        for part in path.split("/"):
            if place is None or part in ("", "."):
                continue
            folder = self.folder(place)
            known = folder.folder_names.get(part)
            place = self._allowed(folder, place, known) if known else None
        return place

    def _allowed(self, folder: Folder, place: str, name: str) -> str | None:
        """Return the path of a name in a folder, unless it cannot be used, which is reported."""
        path = _join(place, name)
        if name in folder.odd:
            self.problems[path] = folder.odd[name]
            return None
        return path

    def _scan(self, path: str) -> Folder:
        real = self.real(path) if path else self._real
        files: list[str] = []
        folders: list[str] = []
        links: dict[str, str] = {}
        odd: dict[str, Problem] = {}
        try:
            with os.scandir(self.root / path) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        continue
                    if entry.is_symlink():
                        links[entry.name], reason = self._target(entry, real, _join(path, entry.name))
                        if reason:
                            odd[entry.name] = reason
                    is_folder = _is_dir(entry)
                    if not _is_text(entry.name):
                        odd[entry.name] = reason = _no_text(_join(path, entry.name))
                        if is_folder or is_image(entry.name):
                            self.problems[_join(path, entry.name)] = reason
                    if is_folder:
                        folders.append(entry.name)
                    elif _is_file(entry) or entry.name in odd:
                        files.append(entry.name)
        except OSError as exc:
            reason = Problem(
                "error", path or ".", f"the folder cannot be read ({exc.strerror})", "check its permissions"
            )
            self.problems[path] = reason
        return Folder(
            real, tuple(sorted(files)), tuple(sorted(folders, key=lambda n: (n in links, n))), links, odd
        )

    def _target(self, entry: os.DirEntry[str], folder: str, path: str) -> tuple[str, Problem | None]:
        """Return where a link leads, and why it must not be followed."""
        try:
            target = os.path.realpath(entry.path, strict=True)
        except OSError as exc:
            return "", Problem(
                "error",
                path,
                f"a link that leads nowhere ({exc.strerror})",
                "restore its target or remove it",
            )
        if f"{folder}/".startswith(f"{target}/"):
            return target, Problem("note", path, "a link back to a folder above it, not followed")
        if not self._follow_outside and not target.startswith(f"{self._real}/"):
            return target, Problem(
                "error",
                path,
                f"a link that leaves the dataset's folder (to {target})",
                "copy the file into the folder, or allow it with --follow-outside",
            )
        return target, None


@dataclass
class _Walk:
    tree: Tree
    template: Template
    split: str
    classes: Collection[str]
    seen: set[tuple[int, str]] = field(default_factory=set)

    def below(self, path: str, depth: int, captured: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
        tree, folder = self.tree, self.tree.folder(path)
        segment = self.template.segments[depth]
        last = depth == len(self.template.segments) - 1
        folders = self.template.names_folder or not last
        if last:
            tree.leaves.add(path)
        else:
            tree.passed.add(path)
        if not last and segment.tokens:
            tree.entered.add(path)
        for name in folder.folders if folders else folder.files:
            found = segment.match(nfc(name))
            if found is None or not all(captured.get(k, v) == v for k, v in found.items()):
                continue
            if last:
                tree.spoken_of.add(nfc(_join(path, name)))
            if self.classes and found.get("class", next(iter(self.classes))) not in self.classes:
                continue
            below = _join(path, name)
            if folders:
                tree.named.add(below)
            if self.split and found.get("split", self.split).lower() != self.split:
                continue
            if name in folder.odd:
                tree.problems[below] = folder.odd[name]
            elif last:
                yield below, captured | found
            elif self.enter(below, depth):
                yield from self.below(below, depth + 1, captured | found)

    def enter(self, path: str, depth: int) -> bool:
        """Tell whether a folder is new; one that a link shows a second time is not listed again."""
        place = (depth, self.tree.real(path))
        if place in self.seen:
            self.tree.problems[path] = Problem(
                "note", path, "a link to a folder that is already listed, not followed"
            )
            return False
        self.seen.add(place)
        return True


def amount(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun, ``1 image`` or ``2 images``."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def is_folder(path: Path) -> bool:
    """Tell whether ``path`` is a folder; one that may not be looked at is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def lower_suffix(name: str) -> str:
    """Return a file name with its suffix in lower case."""
    cut = name.rfind(".")
    return name[:cut] + name[cut:].lower() if cut > 0 else name


def _is_text(name: str) -> bool:
    return name.isprintable() or not any("\ud800" <= sign <= "\udfff" for sign in name)


def _no_text(path: str) -> Problem:
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    return Problem("error", shown, "its name is not UTF-8 text", "rename it, or leave it out with --skip-bad")


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False

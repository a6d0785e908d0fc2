"""Names files that are left out, so that partial data never look complete."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from .templates import UNREAD, is_image
from .tree import amount


def unread_images(root: Path, paths: Iterable[str]) -> list[str]:
    """Return those of ``paths`` (below ``root``) that are images under a suffix that is not looked for.

    The suffix tells, or the first bytes of the file, which are read.
    """
    others = [path for path in paths if not is_image(path)]
    if not others:
        return []
    from ..images import looks_like_image

    return [path for path in others if is_image(path, UNREAD) or looks_like_image(root / path)]


def by_folder(paths: Iterable[str]) -> str:
    """Return paths by folder, in words: how many images, and the first of them."""
    folders: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folders[path.rpartition("/")[0]].append(path)
    return some([f"{amount(len(found), 'image')} such as {found[0]}" for found in folders.values()], 4)


def some(names: Iterable[str], shown: int = 8) -> str:
    """Return names in a row, of many the first ones."""
    names = list(names)
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest

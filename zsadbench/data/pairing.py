"""Finds the path template by which masks belong to images, from names alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .names import TEST, TRAIN, masks_of, words_of

Parts = tuple[str, ...]
Images = dict[Parts, tuple[str, ...]]
"""Folder (its parts below the root) -> names of the images in it."""

_ENDINGS = ("_mask", "_gt", "_GT", "_label", "_seg", "-mask", "_segmentation", "_Segmentation")
_FORMS = ("{stem}_mask", "{stem}", *(f"{{stem}}{end}" for end in _ENDINGS[1:]), "mask_{stem}")


@dataclass(frozen=True)
class Seen:
    """A folder of images below a label folder, and what templates capture of its path."""

    parts: Parts
    kind: str
    below: str
    captured: Mapping[str, str]


def pair_masks(
    folders: Sequence[Seen], images: Images, masks: Images, others: Collection[str]
) -> tuple[tuple[str, ...], bool]:
    """Return templates of the masks of ``folders``, the one that finds most first, and whether all are found.

    A template is taken only where it gives every image a mask of its own; one that ends in ``/`` names a
    folder of masks per image.  ``others`` are the names of all categories and label folders: a path that
    holds one which is not the image's own is no mask of it.
    """
    known = {"/".join((*parts, stem(name))) for parts, names in masks.items() for name in names}
    known |= {f"{'/'.join(parts)}/" for parts in masks}
    candidates: dict[str, None] = {}
    for folder in folders:
        stems = {stem(name) for name in images[folder.parts]}
        for parts in masks:
            text = _abstract(parts, folder, others)
            if text and parts[-1] in stems:
                candidates[f"{text.rpartition('/')[0]}/{{stem}}/".lstrip("/")] = None
            elif text:
                candidates |= dict.fromkeys(f"{text}/{form}" for form in _FORMS)
    hits = {text: _hits(text, folders, images, known) for text in candidates}
    covered: set[tuple[Parts, str]] = set()
    chosen = []
    for text in sorted(hits, key=lambda text: -len(hits[text])):
        if not covered.issuperset(hits[text]):
            covered |= hits[text]
            chosen.append(text if text.endswith("/") else f"{text}.{{ext}}")
    return tuple(chosen), len(covered) == sum(len(images[folder.parts]) for folder in folders)


def ending_beside(folders: Iterable[Seen], images: Images) -> str:
    """Return the ending of masks that lie beside their images, ``_mask`` of 1.png and 1_mask.png, or none."""
    found: Counter[str] = Counter()
    for folder in folders:
        stems = {stem(name) for name in images[folder.parts]}
        found.update(end for end in _ENDINGS for one in stems if f"{one}{end}" in stems)
    return max(found, key=lambda end: found[end]) if found else ""


def twin_suffixes(folders: Iterable[Seen], images: Images) -> tuple[str, str] | None:
    """Return the suffixes of image and mask where most images are pairs such as 1.jpg and 1.png."""
    names = [(folder.parts, name) for folder in folders for name in images[folder.parts]]
    suffixes: dict[tuple[Parts, str], set[str]] = {}
    for parts, name in names:
        suffixes.setdefault((parts, stem(name)), set()).add(name.rpartition(".")[2].lower())
    pairs = Counter(frozenset(found) for found in suffixes.values() if len(found) == 2)
    for pair, count in pairs.most_common(1):
        photos, exact = pair & {"jpg", "jpeg"}, pair - {"jpg", "jpeg"}
        if len(photos) == 1 and 2 * count >= len(suffixes):
            return next(iter(photos)), next(iter(exact))
    return None


def stem(name: str) -> str:
    """Return a file name without its suffix."""
    return name.rpartition(".")[0]


def _abstract(parts: Parts, folder: Seen, others: Collection[str]) -> str:
    """Return a folder of masks as a template of what is captured of a folder of images, "" if not its masks.

    Every category in it must be the image's own; a name in it of another label folder rules it out.
    """
    pieces, used = [], set()
    if any({*"{}"} & {*part} for part in parts):
        return ""  # a template could not tell it from a capture
    for part in parts:
        name = next((n for n, value in folder.captured.items() if value == part and n not in used), None)
        if name is None:
            whose = masks_of(part)
            if whose and whose == words_of(folder.kind) and folder.kind in part:
                pieces.append(part.replace(folder.kind, "{specie}", 1))
                continue
            if part in others or part.lower() in TRAIN + TEST or (whose and _names(whose, others)):
                return ""
            pieces.append(part)
        else:
            used.add(name)
            pieces.append(f"{{{name}}}")
    owned = {"class", "group", "item"} & folder.captured.keys()
    return "/".join(pieces) if owned <= used else ""


def _names(words: list[str], names: Collection[str]) -> bool:
    return any(words_of(name) == words for name in names)


def _hits(
    text: str, folders: Sequence[Seen], images: Images, known: Collection[str]
) -> set[tuple[Parts, str]]:
    """Return the images for which a template finds a mask; none where two would share one."""
    found: dict[tuple[Parts, str], str] = {}
    for folder in folders:
        for name in images[folder.parts]:
            path = text.format(**folder.captured, stem=stem(name))
            if path in known:
                found[folder.parts, name] = path
    return set(found) if len(set(found.values())) == len(found) else set()

"""Finds out how a folder of images is laid out: which folders are categories, splits, labels and masks.

Names decide, and what lies where; no file is opened.  What names do not tell is asked for, never guessed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from .names import GENERIC, IMAGES, TEST, is_split, means_anomalous, means_masks, means_normal
from .pairing import Images, Parts, Seen, ending_beside, pair_masks, twin_suffixes
from .templates import is_image
from .tree import Tree

SPECIAL = set("{}|")
"""Characters that a path template cannot hold as text."""


@dataclass(frozen=True)
class Block:
    """One rule: the label folders that hold their images in the same way.

    ``below`` is what lies between label folder and file; ``kinds`` are the label folders, ``closed`` where
    others beside them must not be taken.
    """

    below: str
    kinds: tuple[str, ...]
    closed: bool
    masks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A layout that was found out.

    ``prefix`` is the template of the folders above the label folders, ``category`` the class where no
    capture gives it, ``label`` the rule where masks alone tell what is anomalous; ``suffix`` and
    ``exclude`` keep masks that lie beside the images apart; ``remarks`` are for the user.
    """

    prefix: str
    category: str
    categories: tuple[str, ...]
    normal: tuple[str, ...]
    blocks: tuple[Block, ...]
    label: str = ""
    suffix: str = "{ext}"
    exclude: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def masked(self) -> bool:
        """Whether masks were found."""
        return any(block.masks for block in self.blocks)


def image_folders(tree: Tree) -> Images:
    """Return every folder that holds images, with the images' names; a folder shown twice counts once."""
    found: Images = {}
    todo: list[Parts] = [()]
    seen: set[str] = set()
    while todo:
        parts = todo.pop()
        folder = tree.folder("/".join(parts))
        if folder.real in seen:
            continue
        seen.add(folder.real)
        if names := tuple(name for name in folder.files if is_image(name) and name not in folder.odd):
            found[parts] = names
        todo += [(*parts, name) for name in folder.folders if name not in folder.odd]
    return dict(sorted(found.items()))


def find_layout(images: Images, own: str, normal: str = "") -> Layout | None:
    """Return the layout of ``images`` below a folder called ``own``, or None where names do not tell it.

    ``normal`` names the folders of normal images where it is none of the usual names.
    """
    plain, masks = _without_masks(images, normal)
    is_normal = _asked(normal) if normal else means_normal
    parents = _label_parents(plain, is_normal)
    above = _above(parents, own) if parents else None
    if above:
        return _labelled(above, plain, masks, is_normal, bool(normal))
    return None if normal or parents else _paired(plain, masks, own)


def unnamed(images: Images) -> bool:
    """Tell whether a name holds a character that a template cannot hold."""
    return any(SPECIAL & set(part) for parts in images for part in parts)


def without_masks(images: Images, normal: str = "") -> Images:
    """Return the folders that are not called like folders of masks."""
    return _without_masks(images, normal)[0]


def _asked(name: str) -> Callable[[str], bool]:
    return lambda other: other.casefold() == name.rstrip("/").rpartition("/")[2].casefold()


def _without_masks(images: Images, normal: str) -> tuple[Images, Images]:
    """Return the folders of images, and those of masks."""
    below: dict[Parts, set[str]] = defaultdict(set)
    for parts in images:
        for depth, part in enumerate(parts):
            below[parts[:depth]].add(part)
    plain: Images = {}
    masks: Images = {}
    for parts, names in images.items():
        depths = range(len(parts))
        masked = any(_is_masks(parts[: depth + 1], below) for depth in depths)
        named = bool(normal) and any(_asked(normal)(part) for part in parts)
        (masks if masked and not named else plain)[parts] = names
    return plain, masks


def _is_masks(path: Parts, below: Mapping[Parts, Collection[str]]) -> bool:
    """Tell whether a folder is one of masks; a category called ``mask`` has test images in it."""
    beside = below[path[:-1]]
    if not means_masks(path[-1], beside):
        return False
    splits = [name for name in below[path] if is_split(name)]
    category = any(means_normal(kind) for split in splits for kind in below[(*path, split)])
    return not category or any(name.lower() in IMAGES for name in beside)


def _label_parents(images: Images, is_normal: Callable[[str], bool]) -> list[Parts]:
    """Return the folders that hold a folder of normal images, all equally deep: the most frequent depth."""
    by_depth: dict[int, set[Parts]] = defaultdict(set)
    for parts in images:
        for depth in (len(parts) - 1, len(parts) - 2):
            if depth >= 0 and is_normal(parts[depth]):
                by_depth[depth].add(parts[:depth])
                break
    if not by_depth:
        return []
    return sorted(by_depth[max(by_depth, key=lambda depth: (len(by_depth[depth]), -depth))])


@dataclass(frozen=True)
class _Above:
    """The folders above the label folders: those evaluated, their template and what its names capture."""

    parents: tuple[Parts, ...]
    prefix: str
    captures: Mapping[str, int]
    """Capture -> its place in a parent."""
    category: str
    categories: tuple[str, ...]
    split: bool


def _above(parents: Sequence[Parts], own: str) -> _Above | None:
    """Return the meaning of the folders above the label folders, or None where it cannot be told."""
    depth = len(parents[0])
    place = next((i for i in range(depth) if all(is_split(parent[i]) for parent in parents)), None)
    splits = {parent[place] for parent in parents} if place is not None else set()
    test = next((name for word in TEST for name in sorted(splits) if name.lower() == word), "")
    if splits and not test:
        return None
    kept = [parent for parent in parents if place is None or parent[place] == test]
    free = [i for i in range(depth) if i != place and not _says_nothing({parent[i] for parent in kept})]
    while len(free) > 1 and (same := [i for i in free[:-1] if len({parent[i] for parent in kept}) == 1]):
        free.remove(same[0])
    if len(free) > 2:
        return None
    captures = dict(zip(("class",) if len(free) == 1 else ("group", "item"), free, strict=False))
    texts = {i: f"{{{name}}}" for name, i in captures.items()}
    if place is not None:
        texts[place], captured = _split_text(test, splits)
        captures |= {"split": place} if captured else {}
    return _Above(
        parents=tuple(kept),
        prefix="".join(f"{texts.get(i, kept[0][i])}/" for i in range(depth)),
        captures=captures,
        category={0: own, 1: "", 2: "{group}_{item}"}[len(free)],
        categories=tuple(sorted({"_".join(parent[i] for i in free) for parent in kept})) if free else (own,),
        split=place is not None,
    )


def _says_nothing(names: Collection[str]) -> bool:
    return len(names) == 1 and next(iter(names)).lower() in GENERIC


def _split_text(test: str, splits: Collection[str]) -> tuple[str, bool]:
    """Return the template of a split folder, and whether it captures the split."""
    if test.lower() != "test":
        return test, False
    train = sorted(name for name in splits if name.lower() == "train")
    return f"{{split:{'|'.join([*(train or ['train'] * (test == 'test')), test])}}}", True


def _labelled(
    above: _Above, plain: Images, masks: Images, is_normal: Callable[[str], bool], any_other: bool
) -> Layout | None:
    """Return the layout where folders are labels; None where no folder is known to be anomalous."""
    depth = len(above.parents[0])
    places: dict[str, dict[str, list[Parts]]] = defaultdict(lambda: defaultdict(list))
    for parent in above.parents:
        below: dict[str, list[Parts]] = defaultdict(list)
        for parts in plain:
            if parts[:depth] == parent and len(parts) > depth:
                below[parts[depth]].append(parts)
        for kind, inside in below.items():
            text, folders = _below(inside, depth + 1)
            places[kind][text] += folders
    normal = [kind for kind in places if is_normal(kind)]
    others = [kind for kind in places if kind not in normal]
    if not above.split:
        others = [kind for kind in others if (any_other and not is_split(kind)) or means_anomalous(kind)]
        if not others:
            return None
    kinds = (*normal, *others)
    beside = any(len(parts) > depth and parts[:depth] in above.parents for parts in masks)
    texts = list(dict.fromkeys(text for kind in kinds for text in places[kind]))
    closed = not above.split or beside or len(texts) > 1
    blocks = tuple(
        Block(text, tuple(kind for kind in kinds if text in places[kind]), closed) for text in texts
    )
    layout = Layout(above.prefix, above.category, above.categories, tuple(normal), blocks)
    seen = _seen(above, {kind: places[kind] for kind in others}, depth)
    names = {parent[i] for parent in above.parents for i in above.captures.values()} | set(places)
    return _with_masks(layout, seen, plain, masks, names)


def _below(folders: Iterable[Parts], depth: int) -> tuple[str, list[Parts]]:
    """Return how the images lie below a label folder, and the folders that hold them."""
    folders = list(folders)
    if direct := [parts for parts in folders if len(parts) == depth]:
        return "", direct
    named = [parts for parts in folders if len(parts) == depth + 1 and parts[depth].lower() in IMAGES]
    if named:
        return f"{named[0][depth]}/", named[:1]
    return "{view}/", [parts for parts in folders if len(parts) == depth + 1]


def _seen(above: _Above, places: Mapping[str, Mapping[str, list[Parts]]], depth: int) -> list[Seen]:
    """Return every folder of images with what the templates capture of it."""
    found = []
    for kind, texts in places.items():
        for text, folders in texts.items():
            for parts in folders:
                captured = {name: parts[i] for name, i in above.captures.items()} | {"specie": kind}
                captured |= {"view": parts[depth + 1]} if text == "{view}/" else {}
                found.append(Seen(parts, kind, text, captured))
    return found


def _with_masks(
    layout: Layout, anomalous: Sequence[Seen], images: Images, masks: Images, names: Collection[str]
) -> Layout:
    """Return the layout with the masks that belong to its images, beside them or in folders of their own."""
    if end := ending_beside(anomalous, images):
        own = replace(layout, exclude=(f"*{end}.*",))
        return _masks_beside(own, f"{{stem}}{end}.{{ext}}")
    if twins := twin_suffixes(anomalous, images):
        return _masks_beside(replace(layout, suffix=twins[0]), f"{{stem}}.{twins[1]}")
    blocks = []
    for block in layout.blocks:
        own_images = [one for one in anomalous if one.below == block.below]
        blocks.append(replace(block, masks=pair_masks(own_images, images, masks, names)[0]))
    found = replace(layout, blocks=tuple(blocks))
    if not masks or found.masked:
        return found
    places = sorted({"/".join(parts) for parts in masks})
    if usual := _ground_truth(layout, masks):
        return usual
    remark = f"no mask is used: none of those in {places[0]} is named like an image; set `mask` and `masks`"
    return replace(found, remarks=(remark,))


def _ground_truth(layout: Layout, masks: Images) -> Layout | None:
    """Return the layout with MVTec AD's masks where there are some: then a wrong name is told by image."""
    head, split, _ = layout.prefix.rpartition("{split:")
    if not split or not any("ground_truth" in parts for parts in masks):
        return None
    forms = tuple(f"{head}ground_truth/{{specie}}/{{stem}}{end}.{{ext}}" for end in ("_mask", ""))
    return replace(layout, blocks=tuple(replace(block, masks=forms) for block in layout.blocks))


def _masks_beside(layout: Layout, name: str) -> Layout:
    """Return the layout with masks in the folders of the images."""
    blocks = [
        replace(block, masks=(f"{layout.prefix}{{specie}}/{block.below}{name}",)) for block in layout.blocks
    ]
    return replace(layout, blocks=tuple(blocks))


def _paired(plain: Images, masks: Images, own: str) -> Layout | None:
    """Return the layout of images beside masks without label folders: the masks tell what is anomalous."""
    places = [parts for parts in plain if not parts or parts[-1].lower() in IMAGES]
    parents = sorted({parts[:-1] for parts in places})
    below = {parts[-1] if parts else "" for parts in places}
    if not masks or len(below) != 1 or len({len(parent) for parent in parents}) != 1:
        return None
    above = _above(parents, own)
    if above is None:
        return None
    seen = [
        Seen(parts, "", "", {name: parts[i] for name, i in above.captures.items()})
        for parts in places
        if parts[:-1] in above.parents
    ]
    templates, complete = pair_masks(seen, plain, masks, {part for parent in parents for part in parent})
    if not templates:
        return None
    folder = next(iter(below))
    block = Block(f"{folder}/" if folder else "", (), closed=False, masks=templates)
    label = "mask" if complete else "mask-file"
    return Layout(above.prefix, above.category, above.categories, (), (block,), label)

"""Finds out how a user's folder is laid out and writes a description for it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from shlex import quote

from ..errors import DatasetError
from ..text import terminal
from .described import Description
from .descriptions import parse_description
from .layouts import Block, Layout, find_layout, image_folders, unnamed, without_masks
from .names import TRAIN, means_normal
from .pairing import Images
from .templates import SUFFIXES
from .tree import Tree

SATURATION = "defects_config.json"
"""MVTec LOCO's name of the file with the saturation of each kind of defect."""
PLAIN = frozenset({"good", "ok", "normal", "bad", "ko", "anomaly", "anomalous", "abnormal", "defective"})
"""Label folders whose layout goes before a list in the same folder."""


def describe_folder(folder: Path) -> Description:
    """Return the description of a folder whose layout is found out by itself.

    Known are the MVTec AD layout (of one or several categories), folders called ``good`` and ``bad`` or
    alike, below categories or not, images beside masks, a ``meta.json`` and AA-CLIP's ``full-shot.jsonl``.
    Raises ``DatasetError`` for others, with the command that answers what is open.
    """
    text, remarks = draft(folder)
    return replace(parse_description(text, folder / "(found out)"), remarks=remarks)


def draft(folder: Path, normal: str = "") -> tuple[str, tuple[str, ...]]:
    """Return a commented description (TOML) for ``folder``, and what the user should know of it.

    ``normal`` names the folder of the normal images where it is none of the usual names.
    Raises ``DatasetError`` where the layout is not known, saying what is missing or asking for it.
    """
    tree = Tree(folder)
    images = image_folders(tree)
    own = terminal(folder.resolve().name)  # its name may hold what no TOML file does
    layout = None if unnamed(images) else find_layout(images, own, normal)
    listed = "" if normal or (layout and _is_plain(layout)) else _listed(tree)
    if listed:
        more = _VALIDATION if listed is _RULE_META else ""
        return _HEAD.format(id=identifier(own), title=_quoted(own), masks="optional", more=more) + listed, ()
    if layout is None:
        raise DatasetError(f"{folder}: {_question(folder, images, normal)}")
    return _described(layout, own, images, _saturation(tree, layout)), layout.remarks


def identifier(name: str) -> str:
    """Return a name as an id."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_.-").lower() or "dataset"


def _is_plain(layout: Layout) -> bool:
    """Tell whether a layout is MVTec AD's, or good and bad: these go before a list in the same folder."""
    if layout.prefix in ("{class}/{split:train|test}/", "{split:train|test}/"):
        return set(layout.normal) <= PLAIN
    kinds = {kind for block in layout.blocks for kind in block.kinds}
    return not layout.prefix and bool(kinds) and kinds <= PLAIN


def _listed(tree: Tree) -> str:
    files = tree.folder("").files
    if "meta.json" in files:
        return _RULE_META
    return _RULE_JSONL if "full-shot.jsonl" in files else ""


def _question(folder: Path, images: Images, normal: str) -> str:
    """Return what is missing to describe ``folder``, with the command that answers it."""
    if not images:
        return f"no image in this folder or below it (looked for {', '.join(SUFFIXES)})."
    if unnamed(images):
        return "folders with '{', '}' or '|' in their names cannot be described; rename them."
    plain = list(without_masks(images, normal)) or list(images)
    shown = ", ".join(f"{'/'.join(parts) or '.'} ({len(images[parts])})" for parts in plain[:6])
    shown += f" and {len(plain) - 6} more" if len(plain) > 6 else ""
    if all(any(part.lower() in TRAIN for part in parts) for parts in plain):
        return (
            f"the layout is not known: all images lie in a training part ({shown}); what is evaluated "
            "belongs into test/."
        )
    if len(plain) == 1 and any(map(means_normal, plain[0])):
        return f"only normal images ({shown}); put anomalous ones into a folder beside them."
    if len(plain) == 1 and not normal:
        return (
            f"the layout is not known. The images have no labels ({shown}): use them with `zsad predict`, or "
            "sort them into folders such as good/ and bad/."
        )
    hand = "write a description by hand (keys: datasets/README.md), or list the images in a meta.json"
    if normal and not any(part.casefold() == normal.casefold() for parts in plain for part in parts):
        return f"no folder of images is called '{normal}'; there are {shown}."
    if normal and len(plain) == 1:
        return f"only normal images ({shown}); put anomalous ones into a folder beside them."
    if normal:
        return (
            f"'{normal}' has no folder of anomalous images beside it; there are {shown}. Move them there, "
            f"or {hand}."
        )
    names = [part for parts in plain for part in reversed(parts)]
    example = next(filter(means_normal, names), names[0])
    return (
        f"the layout is not known. Which folder holds normal images? There are {shown}. Name it, for example "
        f"`zsad datasets new {quote(str(folder))} --normal {quote(example)}` (then all others are "
        "anomalous), and run with the file this writes."
    )


def _saturation(tree: Tree, layout: Layout) -> str:
    """Return the template of the file that says how much of a defect must be found; empty without one."""
    inside = layout.prefix.startswith("{class}/")
    folders = [f"{category}/" for category in layout.categories] if inside else [""]
    if not any(tree.find(f"{folder}{SATURATION}") for folder in folders):
        return ""
    return ("{class}/" if inside else "") + SATURATION


def _described(layout: Layout, own: str, images: Images, saturation: str) -> str:
    """Return the description of a layout."""
    normal = set(layout.normal)
    needed = [b for b in layout.blocks if layout.label or not b.closed or not set(b.kinds) <= normal]
    masked = [block for block in needed if block.masks]
    masks = "none" if not masked else "required" if len(masked) == len(needed) else "optional"
    more = f"exclude = [{_list(layout.exclude)}]   # masks beside the images\n" if layout.exclude else ""
    more += "".join(f"# {remark}\n" for remark in layout.remarks)
    more += _VALIDATION if "{split:train|" in layout.prefix else ""
    head = _HEAD.format(id=identifier(own), title=_quoted(own), masks=masks, more=more)
    rules = [_rule(layout, block, saturation) for block in layout.blocks]
    return head + _classes(layout.categories) + "".join(rules)


def _rule(layout: Layout, block: Block, saturation: str) -> str:
    """Return one ``[[samples]]`` block."""
    kinds = f"{{specie:{'|'.join(block.kinds)}}}/" if block.closed else "{specie}/"
    above = layout.prefix + ("" if layout.label else kinds) + block.below
    fields = {
        "class": _quoted(layout.category) if layout.category else "",
        "image": _quoted(f"{above}{{stem}}.{layout.suffix}"),
        "mask": f"[{_list(block.masks)}]" if block.masks else "",
        "saturation": _quoted(saturation) if block.masks and saturation else "",
    }
    if layout.label:
        fields["label"] = f'"{layout.label}"   # an image is anomalous where its mask says so'
    elif block.closed and set(block.kinds) <= set(layout.normal):
        fields |= {"label": '"normal"', "mask": "", "saturation": ""}
    else:
        others = "the others are" if block.closed else "every other folder is"
        fields["normal_when"] = f"{{ specie = [{_list(layout.normal)}] }}   # {others} anomalous"
    return _RULE + "".join(f"{key} = {value}\n" for key, value in fields.items() if value)


def _classes(names: tuple[str, ...]) -> str:
    lines = "".join(f"{_quoted(name)} = {_quoted(name.replace('_', ' '))}\n" for name in names)
    return f"\n[classes]   # folder = words put into the prompt; order = report order\n{lines}"


def _list(texts: tuple[str, ...]) -> str:
    return ", ".join(map(_quoted, texts))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


_VALIDATION = 'validation = "train"   # the split whose normal images fix thresholds without a test label\n'

_HEAD = """\
# A dataset description. Check it with: zsad datasets check THIS_FILE
format = 1
id = "{id}"   # names the dataset in records and tables
title = {title}
domain = "industrial"   # or "medical", or a word of your own
license = "not stated"
url = "-"
masks = "{masks}"   # "required", "optional" or "none" (image metrics only)
{more}# mask_positive = ">0"   # which mask values are defects: ">0", ">127", or a list such as [1, 2]
# mask_mismatch = "nearest"   # accept masks of another size with the same aspect
# expect = {{ normal = 0, anomaly = 0 }}   # counts of the full test set; others give a warning
"""

_RULE = """
[[samples]]
# {name} captures one folder or file name, {name:a|b} one of these, {ext} is any image suffix; a mask template
# that ends in / is a folder of masks of one image, for example mask = "masks/{stem}/".
"""

_RULE_META = """
[[samples]]
table = "meta.json"   # paths in it are relative to this folder
records = "{split:train|test}/{class}"
columns = { image = "img_path", mask = "mask_path", specie = "specie_name", label = "anomaly" }
image = "{image}"
mask = "{mask}"
normal_when = { label = [0] }
anomaly_when = { label = [1] }
"""

_RULE_JSONL = """
[[samples]]
split = "test"
table = "full-shot.jsonl"   # paths in it are relative to this folder
columns = { class = "class_name", image = "image_path", mask = "mask_path", label = "label" }
image = "{image}"
mask = "{mask}"
normal_when = { label = [0] }
anomaly_when = { label = [1] }
"""

"""Finds out how a user's folder is laid out and writes a description for it."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import DatasetError
from .descriptions import Description, parse_description
from .templates import is_image
from .tree import Tree

NORMAL = ("good", "ok", "normal")
ANOMALOUS = ("bad", "ko", "anomaly", "anomalous", "abnormal", "defective")


def describe_folder(folder: Path) -> Description:
    """Return the description of a folder whose layout is found out by itself.

    Known are the MVTec AD layout (of one or several categories), a folder with ``good`` and ``bad``
    images, a ``meta.json`` and AA-CLIP's ``full-shot.jsonl``.  Raises ``DatasetError`` for others.
    """
    text = draft(folder)
    if text is None:
        images = Tree(folder).folder("").files
        unlabelled = any(is_image(name) for name in images)
        raise DatasetError(
            f"{folder}: the layout is not known. "
            + ("The images have no labels: use them with `zsad predict`. " if unlabelled else "")
            + "Known are <class>/test/good/ with defect folders beside it, good/ and bad/, meta.json and "
            "full-shot.jsonl; for anything else write a description with `zsad datasets new`."
        )
    return parse_description(text, folder / "(found out)")


def draft(folder: Path, normal: str = "") -> str | None:
    """Return a commented description (TOML) for ``folder``, or None when its layout is not known.

    ``normal`` names the folder of the normal images where it is none of the usual names.
    """
    tree = Tree(folder)
    names = (normal,) if normal else NORMAL
    found = (
        _mvtec(tree, names, several=True)
        or _mvtec(tree, names, several=False)
        or _labelled(tree, names, bool(normal))
        or _listed(tree)
    )
    if found is None:
        return None
    masks, classes, rule = found
    return (
        _HEAD.format(id=identifier(folder.resolve().name), title=_quoted(folder.resolve().name), masks=masks)
        + _classes(classes)
        + rule
    )


def identifier(name: str) -> str:
    """Return a name as an id."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_.-").lower() or "dataset"


Found = tuple[str, list[str], str]


def _mvtec(tree: Tree, normal: tuple[str, ...], several: bool) -> Found | None:
    """``<class>/test/<good>/`` for several classes, or ``test/<good>/`` for one."""
    tops = [f"{name}/" for name in tree.folder("").folders] if several else [""]
    normals: dict[str, str] = {}
    for top in tops:
        if "test" in tree.folder(top.rstrip("/")).folders:
            kinds = tree.folder(f"{top}test").folders
            if usual := [name for name in normal if name in kinds]:
                normals[top] = usual[0]
    if not normals:
        return None
    masked = any("ground_truth" in tree.folder(top.rstrip("/")).folders for top in normals)
    own = tree.root.resolve().name
    prefix = "{class}/" if several else ""
    rule = _RULE_MVTEC.format(
        fixed="" if several else f"class = {_quoted(own)}\n",
        prefix=prefix,
        mask=_MASK_MVTEC.format(prefix=prefix) if masked else "",
        normal=", ".join(map(_quoted, sorted(set(normals.values())))),
    )
    classes = [top.rstrip("/") for top in normals] if several else [own]
    return "required" if masked else "none", classes, rule


def _labelled(tree: Tree, normal: tuple[str, ...], any_other: bool) -> Found | None:
    """Folders of images, one of them normal."""
    folders = [name for name in tree.folder("").folders if _has_images(tree, name)]
    good = [name for name in folders if name in normal]
    bad = [name for name in folders if name not in normal and (any_other or name in ANOMALOUS)]
    if not good or not bad:
        return None
    own = tree.root.resolve().name
    rule = _RULE_LABELLED.format(
        name=_quoted(own), kinds="|".join([*good, *bad]), normal=", ".join(map(_quoted, good))
    )
    return "none", [own], rule


def _listed(tree: Tree) -> Found | None:
    files = tree.folder("").files
    if "meta.json" in files:
        return "optional", [], _RULE_META
    if "full-shot.jsonl" in files:
        return "optional", [], _RULE_JSONL
    return None


def _has_images(tree: Tree, folder: str) -> bool:
    return any(is_image(name) for name in tree.folder(folder).files)


def _classes(names: list[str]) -> str:
    if not names:
        return ""
    lines = "".join(f"{_quoted(name)} = {_quoted(name.replace('_', ' '))}\n" for name in names)
    return f"\n[classes]   # folder = words put into the prompt; order = report order\n{lines}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


_HEAD = """\
# A dataset description. Check it with: zsad datasets check THIS_FILE
format = 1
id = "{id}"   # names the dataset in records and tables
title = {title}
domain = "industrial"   # or "medical", or a word of your own
license = "not stated"
url = "-"
masks = "{masks}"   # "required", "optional" or "none" (image metrics only)
# mask_positive = ">0"   # which mask values are defects: ">0", ">127", or a list such as [1, 2]
# mask_mismatch = "nearest"   # accept masks of another size with the same aspect
# expect = {{ normal = 0, anomaly = 0 }}   # counts of the full test set; others give a warning
"""

_RULE_MVTEC = """
[[samples]]
# {{name}} captures one folder or file name, {{name:a|b}} one of these, {{ext}} is any image suffix.
{fixed}image = "{prefix}{{split:train|test}}/{{specie}}/{{stem}}.{{ext}}"
{mask}normal_when = {{ specie = [{normal}] }}   # every other folder is anomalous
"""

_MASK_MVTEC = (
    'mask = ["{prefix}ground_truth/{{specie}}/{{stem}}_mask.{{ext}}", '
    '"{prefix}ground_truth/{{specie}}/{{stem}}.{{ext}}"]\n'
)

_RULE_LABELLED = """
[[samples]]
# {{name:a|b}} captures one of the listed folders, {{stem}} a file name, {{ext}} is any image suffix.
class = {name}
image = "{{specie:{kinds}}}/{{stem}}.{{ext}}"
# mask = "masks/{{stem}}.png"   # with masks = "required"
normal_when = {{ specie = [{normal}] }}   # every other folder is anomalous
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

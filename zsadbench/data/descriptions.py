"""A dataset description: the parsed and checked form of a ``datasets/*.toml`` file.

A description says where the files of a dataset lie, which of them are normal, which mask belongs to
which image, and how its categories are called in prompts.  No dataset needs Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from ..cards import Card, Key, card_path
from ..errors import DatasetError
from ..samples import Expect, Masks, nfc
from .described import Description, Rule
from .templates import Segment, Template, TemplateError, unsafe

_ABOUT = ("format", "id", "title", "domain", "license", "url", "citation", "backbone")
_FILES = ("subroot", "exclude", "masks", "mask_positive", "mask_mismatch", "empty_mask")
_TOP = (*_ABOUT, *_FILES, "validation", "expect", "classes", "classes_from", "samples")
_LISTED = ("image", "mask", "table", "records", "columns", "separator", "parts")
_RULE = (*_LISTED, "normal_when", "anomaly_when", "label", "class", "split", "specie", "groups", "saturation")
_SPLITS = ("train", "val", "valid", "validation")
_LABELS = ("normal", "anomaly", "mask", "mask-file")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*")
_GROUP = re.compile(r"[A-Za-z]\w*")
_RESERVED = ("category", "method")  # what `compare --by` takes for something else


def read_description(path: Path) -> Description:
    """Read and check a description; raises ``DatasetError`` with file, line and remedy."""
    return _Parser(Card.read(path)).description()


def shipped_description(name: str) -> Description:
    """Return a description that comes with the toolkit."""
    return read_description(card_path("datasets", name))


def parse_description(text: str, path: Path) -> Description:
    """Check a description given as text; ``path`` is only named in messages."""
    return _Parser(Card.parse(text, path)).description()


class _Parser:
    """Turns one card into a ``Description`` and refuses whatever is wrong."""

    def __init__(self, card: Card) -> None:
        self.card = card

    def description(self) -> Description:
        card, data = self.card, self.card.data
        card.known_keys(data, _TOP)
        if card.take(data, "format", int, None) != 1:
            card.fail("this version reads format = 1.", "format")
        name = card.take(data, "id", str, None)
        if not _ID.fullmatch(name):
            card.fail(f"id '{name}' may hold letters, digits, '_', '-' and '.' only.", "id")
        classes = self.classes()
        masks = self.choice(data, "masks", ("required", "optional", "none"), None)
        blocks = self.blocks()
        return Description(
            path=card.path,
            id=name,
            title=card.take(data, "title", str, None),
            domain=card.take(data, "domain", str, None),
            license=card.take(data, "license", str, "not stated"),
            url=card.take(data, "url", str, "-"),
            citation=card.take(data, "citation", str, "").strip(),
            backbone=card.take(data, "backbone", str, ""),
            validation=self.choice(data, "validation", _SPLITS, None) if "validation" in data else "",
            subroot=self.folders(),
            exclude=self.strings(data, "exclude", []),
            masks=cast(Masks, masks),
            mask_positive=self.mask_positive(),
            mask_mismatch=self.choice(data, "mask_mismatch", ("error", "nearest"), "error"),
            empty_mask=self.choice(data, "empty_mask", ("keep", "error", "drop"), "keep"),
            expect=self.expect(classes),
            classes=classes,
            rules=tuple(self.rule(block, i, masks, classes) for i, block in enumerate(blocks)),
        )

    def blocks(self) -> list[dict[str, Any]]:
        blocks = self.card.take(self.card.data, "samples", list, None)
        if not blocks or not all(isinstance(block, dict) for block in blocks):
            self.card.fail("'samples' must be written as [[samples]] blocks, at least one.", "samples")
        return blocks

    def choice(
        self, table: Mapping[str, Any], name: str, allowed: tuple[str, ...], default: str | None
    ) -> str:
        value = self.card.take(table, name, str, default)
        if value not in allowed:
            self.card.fail(f"'{name}' must be one of {', '.join(allowed)}, not '{value}'.", name)
        return value

    def strings(self, table: Mapping[str, Any], name: str, default: Any, *keys: Key) -> tuple[str, ...]:
        """A string or a list of strings."""
        value = table.get(name, default)
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
            self.card.fail(f"'{name}' must be a string or a list of strings, not {value!r}.", *keys, name)
        return tuple(values)

    def folders(self) -> tuple[str, ...]:
        folders = self.strings(self.card.data, "subroot", ["."])
        for folder in folders:
            if reason := unsafe(folder):
                self.card.fail(f"subroot '{folder}' {reason}.", "subroot")
        return folders or (".",)

    def mask_positive(self) -> str | tuple[int, ...]:
        value = self.card.data.get("mask_positive", ">0")
        if isinstance(value, str) and re.fullmatch(r"(alpha)?>\s*\d+", value):
            return value.replace(" ", "")
        if isinstance(value, list) and value and all(type(v) is int and v >= 0 for v in value):
            return tuple(value)
        self.card.fail(
            f'\'mask_positive\' must be ">N", "alpha>N" or a list of values such as [1, 2], not {value!r}.',
            "mask_positive",
        )

    def classes(self) -> dict[str, str]:
        card, data = self.card, self.card.data
        if "classes_from" in data:
            if "classes" in data:
                card.fail("give either [classes] or classes_from, not both.", "classes_from")
            other = card.take(data, "classes_from", str, None)
            try:
                return dict(shipped_description(other).classes)
            except DatasetError as exc:
                card.fail(f"classes_from: {exc}", "classes_from")
        if "classes" not in data:
            return {}
        table = card.take(data, "classes", dict, None)
        if not table:
            card.fail("[classes] is empty; list the classes, or remove it to discover them all.", "classes")
        for key, words in table.items():
            if not isinstance(words, str) or not words.strip():
                card.fail(f"class '{key}' needs words for the prompt, not {words!r}.", "classes", key)
        return {nfc(key): words.strip() for key, words in table.items()}

    def expect(self, classes: Mapping[str, str]) -> Expect | None:
        card = self.card
        if "expect" not in card.data:
            return None
        table = card.take(card.data, "expect", dict, None)
        card.known_keys(table, ("normal", "anomaly", "categories"), "expect")
        per_category = {}
        for name, pair in card.take(table, "categories", dict, {}, "expect").items():
            at = ("expect", "categories", name)
            if not (
                isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and n >= 0 for n in pair)
            ):
                card.fail(f"'{name}' must be [normal, anomalous] counts, not {pair!r}.", *at)
            if classes and nfc(name) not in classes:
                card.fail(f"'{name}' is not in [classes]; correct the name.", *at)
            per_category[nfc(name)] = (pair[0], pair[1])
        total = tuple(card.take(table, name, int, None, "expect") for name in ("normal", "anomaly"))
        if min(total) < 0:
            card.fail("counts cannot be negative.", "expect")
        sums = tuple(map(sum, zip(*per_category.values(), strict=True)))
        if per_category and len(per_category) == len(classes) and sums != total:
            card.fail(f"the categories sum up to {sums}, not {total}; correct one of them.", "expect")
        return Expect((total[0], total[1]), per_category)

    def rule(self, block: dict[str, Any], index: int, masks: str, classes: Mapping[str, str]) -> Rule:
        card, at = self.card, ("samples", index)
        card.known_keys(block, _RULE, *at)
        tables = self.templates(block, "table", index)
        image = self.templates(block, "image", index)
        mask = self.templates(block, "mask", index)
        if not image:
            card.fail("the key 'image' is missing; add a path template such as \"{stem}.png\".", *at)
        records = self.records(block, tables, index)
        columns, header = self.columns(block, tables, index)
        rule = Rule(
            where=f"{card.path}:{card.line(*at)}",
            image=image,
            mask=mask,
            tables=tables,
            records=records,
            columns=columns,
            header=header,
            separator=self.separator(block, index),
            parts=self.templates(block, "parts", index),
            normal_when=self.values(block, "normal_when", index),
            anomaly_when=self.values(block, "anomaly_when", index),
            label=card.take(block, "label", str, "", *at),
            category=self.template(block, "class", index) or Template.parse("{class}"),
            split=self.template(block, "split", index),
            specie=self.template(block, "specie", index),
            groups=self.groups(block, index),
            saturation=self.template(block, "saturation", index),
        )
        if any(template.names_folder for template in rule.image):
            card.fail("'image' ends in '/': only a mask may be a folder.", *at, "image")
        self.check_label(rule, masks, at)
        self.check_fields(rule, at)
        if not rule.category.names and classes and nfc(rule.category.text) not in classes:
            card.fail(f"class '{rule.category.text}' is not in [classes]; add it there.", *at, "class")
        return rule

    def template(self, block: Mapping[str, Any], name: str, index: int) -> Template | None:
        found = self.templates(block, name, index)
        if len(found) > 1:
            self.card.fail(f"'{name}' takes one template, not a list.", "samples", index, name)
        return found[0] if found else None

    def templates(self, block: Mapping[str, Any], name: str, index: int) -> tuple[Template, ...]:
        try:
            return tuple(map(Template.parse, self.strings(block, name, [], "samples", index)))
        except TemplateError as exc:
            self.card.fail(f"{name}: {exc}.", "samples", index, name)

    def records(
        self, block: Mapping[str, Any], tables: tuple[Template, ...], index: int
    ) -> tuple[Segment, ...] | None:
        found = self.template(block, "records", index)
        if found and not (tables and all(table.text.lower().endswith(".json") for table in tables)):
            self.card.fail("'records' needs a table that is a .json.", "samples", index, "records")
        return found.segments if found else None

    def columns(
        self, block: Mapping[str, Any], tables: tuple[Template, ...], index: int
    ) -> tuple[dict[str, str], tuple[str, ...]]:
        """Return our field names with the table's, and the columns of a csv without headings."""
        at = ("samples", index, "columns")
        listed = isinstance(block.get("columns"), list)
        header = self.strings(block, "columns", [], "samples", index) if listed else ()
        columns: dict[str, Any] = {name: name for name in header}
        columns = columns or self.card.take(block, "columns", dict, {}, "samples", index)
        if bool(columns) != bool(tables):
            self.card.fail("'table' and 'columns' belong together; give both or none.", *at)
        for table in tables:
            if not table.text.lower().endswith((".csv", ".json", ".jsonl")):
                text = f"table '{table.text}' must be a .csv, .jsonl or .json."
                self.card.fail(text, "samples", index, "table")
            if header and not table.text.lower().endswith(".csv"):
                self.card.fail("a list of columns is for a .csv without headings; give ours = theirs.", *at)
        for ours, theirs in columns.items():
            if not isinstance(theirs, str) or not theirs:
                self.card.fail(f"column '{ours}' must name a column of the table, not {theirs!r}.", *at, ours)
        return columns, header

    def separator(self, block: Mapping[str, Any], index: int) -> str:
        found = self.card.take(block, "separator", str, ",", "samples", index)
        if len(found) != 1 or found in '"\r\n':
            text = f"'separator' must be one character (' ': one or more), not {found!r}."
            self.card.fail(text, "samples", index, "separator")
        return found

    def groups(self, block: Mapping[str, Any], index: int) -> dict[str, Template]:
        at = ("samples", index)
        found = self.card.take(block, "groups", dict, {}, *at)
        for name in found:
            if not _GROUP.fullmatch(name) or name in _RESERVED:
                self.card.fail(f"a group cannot be called '{name}'; use a word of its own.", *at, "groups")
        try:
            return {name: Template.parse(str(text)) for name, text in found.items()}
        except TemplateError as exc:
            self.card.fail(f"groups: {exc}.", *at, "groups")

    def values(self, block: Mapping[str, Any], name: str, index: int) -> dict[str, tuple[Any, ...]]:
        at = ("samples", index)
        found: dict[str, Any] = self.card.take(block, name, dict, {}, *at)
        for key, values in found.items():
            good = (
                isinstance(values, list) and values and all(isinstance(v, str | int | float) for v in values)
            )
            if not good:
                self.card.fail(
                    f"'{name}' must map a field to a list of values, {key} = [...].", *at, name, key
                )
        if name in block and len(found) != 1:
            self.card.fail(f"'{name}' must name one field, for example {{ specie = [\"good\"] }}.", *at, name)
        return {key: tuple(values) for key, values in found.items()}

    def check_label(self, rule: Rule, masks: str, at: tuple[Key, ...]) -> None:
        fail = self.card.fail
        if bool(rule.normal_when) == bool(rule.label):
            fail("give exactly one of 'normal_when' and 'label'.", *at)
        if rule.label and rule.label not in _LABELS:
            fail(f"'label' must be one of {', '.join(_LABELS)}, not '{rule.label}'.", *at, "label")
        if rule.anomaly_when and rule.anomaly_when.keys() != rule.normal_when.keys():
            fail("'anomaly_when' needs 'normal_when' of the same field.", *at, "anomaly_when")
        if rule.label in ("mask", "mask-file") and not rule.mask:
            fail(f"label = \"{rule.label}\" needs a 'mask' template.", *at, "label")
        if masks == "none" and rule.mask and rule.label not in ("mask", "mask-file"):
            fail(
                "masks = \"none\", so a 'mask' template would never be read; remove one of them.", *at, "mask"
            )
        if rule.saturation and not rule.mask:
            fail("'saturation' is of the defects in masks: a 'mask' template is needed.", *at, "saturation")
        if masks == "required" and not rule.mask and rule.label != "normal":
            fail("masks = \"required\", so a 'mask' template is needed.", *at)

    def check_fields(self, rule: Rule, at: tuple[Key, ...]) -> None:
        """Refuse templates and labels that ask for a name which nothing provides."""
        captured = [*_captured(rule)]
        asked = {
            "mask": frozenset().union(*(t.names for t in rule.mask)),
            "normal_when": frozenset(rule.normal_when),
            "class": rule.category.names,
            "split": rule.split.names if rule.split else frozenset[str](),
            "specie": rule.specie.names if rule.specie else frozenset[str](),
            "groups": frozenset().union(*(t.names for t in rule.groups.values())),
            "saturation": rule.saturation.names if rule.saturation else frozenset[str](),
        }
        if rule.tables:
            asked["image"] = frozenset().union(*(t.names for t in rule.image))
        elif rule.parts:
            self.card.fail("'parts' is for tables; a template of 'image' captures by itself.", *at, "parts")
        for key, names in asked.items():
            for known in captured:
                if missing := sorted(names - known):
                    self.card.fail(
                        f"'{key}' uses '{missing[0]}', which is not among the names captured: "
                        f"{', '.join(sorted(known)) or 'none'}.",
                        *at,
                        key,
                    )
        self.check_widths(rule, at)

    def check_widths(self, rule: Rule, at: tuple[Key, ...]) -> None:
        if not rule.tables and any(token.width for t in rule.image for token in t.tokens):
            self.card.fail("{name:03} pads a field of a table; without a table write {name}.", *at, "image")


def _captured(rule: Rule) -> Iterator[frozenset[str]]:
    """Yield the names that are known of an image, for each way in which it may have been found."""
    if not rule.tables:
        yield from (template.names for template in rule.image)
        return
    listed = {token.name for segment in rule.records or () for token in segment.tokens}
    for table in rule.tables:
        for parts in rule.parts or (None,):
            yield frozenset(rule.columns).union(listed, table.names, parts.names if parts else ())

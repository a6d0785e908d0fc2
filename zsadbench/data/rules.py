"""Applies the rules of a description to a folder: which file is an image, of which class, with which mask."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from ..errors import DatasetError
from ..samples import Problem, Severity, nfc
from .described import Description, Rule
from .tables import read_rows, same_value
from .templates import Template, TemplateError, is_image, unsafe
from .tree import Tree, amount

USUAL_SPLITS = ("train", "test", "val", "valid", "validation")


@dataclass(slots=True)
class Candidate:
    """An image with what its rule says about it; ``anomalous`` is None where the mask decides."""

    key: str
    path: str
    category: str
    anomalous: bool | None
    mask: str | None
    specie: str
    groups: dict[str, str]
    where: str
    tried: tuple[str, ...]
    listed_mask: bool
    """The table names a mask for it."""
    saturation: str | None = None


@dataclass
class Listing:
    """What the rules found below one root."""

    description: Description
    tree: Tree
    split: str
    candidates: list[Candidate] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    empty_rules: list[Rule] = field(default_factory=list)
    elsewhere: dict[str, str] = field(default_factory=dict)
    """Images that a table lists in another split, and which."""
    claimed: set[str] = field(default_factory=set)
    """Files that belong to some image as its mask, read or not."""

    def report(self, severity: Severity, key: str, reason: str, remedy: str = "") -> None:
        """Note one problem."""
        self.problems.append(Problem(severity, key, reason, remedy))


def list_root(description: Description, tree: Tree, split: str) -> Listing:
    """Apply every rule of ``description`` to ``tree`` and return candidates and problems.

    Raises ``DatasetError`` when two rules match one file, or a table cannot be read.
    """
    listing = Listing(description, tree, split)
    owner: dict[str, Rule] = {}
    for rule in description.rules:
        if rule.split and not rule.split.names and rule.split.text.lower() != split:
            continue
        before = len(listing.candidates), len(listing.problems)
        for candidate in _from_table(rule, listing) if rule.tables else _from_folders(rule, listing):
            first = owner.setdefault(candidate.key, rule)
            if first is not rule:
                raise DatasetError(
                    f"{rule.where}: this [[samples]] block and the one at {first.where} both match "
                    f"'{candidate.key}'; make one of the templates narrower, or use `exclude`."
                )
            listing.candidates.append(candidate)
        if before == (len(listing.candidates), len(listing.problems)):
            listing.empty_rules.append(rule)
        if not rule.tables and listing.candidates:
            _orphans(rule, listing)
    listing.problems += tree.problems.values()
    return listing


def _from_folders(rule: Rule, listing: Listing) -> Iterator[Candidate]:
    description, tree = listing.description, listing.tree
    classes = _classes(rule, listing)
    split = "" if rule.split else listing.split
    others: Counter[str] = Counter()
    for template in rule.image:
        found = False
        for path, captured in tree.walk(template, split, classes):
            if excluded(path, description.exclude):
                continue
            found = True
            category = rule.category.fill(captured)
            if description.classes and category not in description.classes:
                others[category] += 1
            elif _split_of(rule, captured) == listing.split:
                yield from _candidate(rule, listing, path, captured, rule.where)
        if found:
            break
    _report_classes(listing, rule.where, others)


def _from_table(rule: Rule, listing: Listing) -> Iterator[Candidate]:
    tree = listing.tree
    unused = _Unused()
    table, found = _tables(rule, listing)
    for path, captured in found:
        for row in read_rows(tree.root / path, path, rule.columns, rule.records, rule.header, rule.separator):
            try:
                fields = captured | row.fields
                yield from _from_row(rule, listing, fields | _parts(rule, fields, unused), row.where, unused)
            except TemplateError as exc:
                listing.report("error", row.where, str(exc), "correct the record")
    _report_unknown(rule, listing, unused.labels)
    if unused.whole:
        reason = f"{amount(len(unused.whole), 'path')} of images fit no template of `parts`"
        remedy = "correct `parts`, else they belong to no group"
        listing.report("warning", table.text, f"{reason} (first {unused.whole[0]})", remedy)
    for name, count in unused.splits.items():
        if name not in USUAL_SPLITS:
            reason = f"not used: {amount(count, 'row')} of an unusual split '{name}'"
            listing.report("warning", table.text, reason, "correct the split where it is a slip")
    _report_classes(listing, table.text, unused.classes)


def _tables(rule: Rule, listing: Listing) -> tuple[Template, list[tuple[str, dict[str, str]]]]:
    """Return the first template of a table that files fit, and these files."""
    for template in rule.tables:
        classes = listing.description.classes if "{class}" in template.text else {}
        if found := list(listing.tree.walk(template, "", classes)):
            return template, found
    return rule.tables[0], []


def _parts(rule: Rule, fields: dict[str, str], unused: _Unused) -> dict[str, str]:
    """Return what `parts` capture from the path of a row's image; empty fields where it fits none of them."""
    if rule.parts and all(fields[name] for name in rule.image[0].names):
        path = nfc(rule.image[0].fill(fields))
        for parts in rule.parts:
            found = parts.match(path)
            if found is not None and all(fields.get(name, value) == value for name, value in found.items()):
                return found
        unused.whole.append(path)
    return {name: "" for parts in rule.parts for name in parts.names - fields.keys()}


@dataclass
class _Unused:
    """What of a table's rows is not used: labels with their first place, splits, classes, paths."""

    labels: dict[str, tuple[str, int]] = field(default_factory=dict)
    splits: Counter[str] = field(default_factory=Counter)
    whole: list[str] = field(default_factory=list)
    """Paths that `parts` do not take apart."""
    classes: Counter[str] = field(default_factory=Counter)


def _from_row(
    rule: Rule, listing: Listing, fields: dict[str, str], where: str, unused: _Unused
) -> Iterator[Candidate]:
    classes = listing.description.classes
    category = rule.category.fill(fields)
    split = _split_of(rule, fields)
    if classes and category not in classes:
        unused.classes[category] += 1
        _speak_of(rule, listing, fields)
    elif split != listing.split:
        unused.splits[split] += 1
        if path := _speak_of(rule, listing, fields):
            listing.elsewhere[path] = split
    elif value := _unknown_label(rule, fields):
        first, count = unused.labels.get(value, (where, 0))
        unused.labels[value] = first, count + 1
        _speak_of(rule, listing, fields)
    elif image := _listed_image(rule, listing, fields, where):
        yield from _candidate(rule, listing, image, fields, where)


def _speak_of(rule: Rule, listing: Listing, fields: dict[str, str]) -> str:
    """Note that a table means the image of a row that is not used; return its path, "" if it has none."""
    if not all(fields[name] for name in rule.image[0].names):
        return ""
    path = nfc(rule.image[0].fill(fields))
    listing.tree.spoken_of.add(path)
    return path


def _candidate(
    rule: Rule, listing: Listing, path: str, fields: dict[str, str], where: str
) -> Iterator[Candidate]:
    if not rule.tables and (value := _unknown_label(rule, fields)):
        _report_unknown(rule, listing, {value: (path, 1)})
        return
    anomalous: bool | None = None
    if rule.label in ("normal", "anomaly"):
        anomalous = rule.label == "anomaly"
    elif rule.normal_when:
        ((name, values),) = rule.normal_when.items()
        anomalous = not any(same_value(fields[name], value) for value in values)
    mask, tried = _mask(rule, listing, fields, where) if rule.mask else (None, ())
    if rule.label == "mask-file":
        if any(path in listing.tree.problems for path in tried):
            return  # a mask behind a bad link, which is reported: the label is not known
        anomalous = mask is not None
    category = rule.category.fill(fields)
    if not category:
        listing.report("error", where, "the class is empty", "fill it in")
        return
    specie = rule.specie.fill(fields) if rule.specie else fields.get("specie", "")
    groups = {name: _group(template, fields) for name, template in rule.groups.items()}
    tried = () if anomalous is False else tried
    listed = bool(rule.tables and tried)
    saturation = listing.tree.find(rule.saturation.fill(fields)) if rule.saturation and mask else None
    yield Candidate(
        nfc(path), path, category, anomalous, mask, specie, groups, where, tried, listed, saturation
    )


def _group(template: Template, fields: dict[str, str]) -> str:
    """Return the value of a group; empty where a text is none of those that its capture lists."""
    listed = all(fields[t.name] in t.choices for t in template.tokens if t.choices)
    return template.fill(fields) if listed else ""


def _listed_image(rule: Rule, listing: Listing, fields: dict[str, str], where: str) -> str | None:
    """Return the image a table row names: the first alternative that exists; else report why not."""
    tried: list[str] = []
    for template in rule.image:
        empty = sorted(name for name in template.names if not fields[name])
        if empty:
            listing.report(
                "error", where, f"the field '{empty[0]}' is empty", "fill it in, or remove the record"
            )
            return None
        for path in template.fill_all(fields):
            if reason := unsafe(path):
                listing.report("error", where, f"the image path '{path}' {reason}")
                return None
            if found := listing.tree.find(path):
                listing.tree.spoken_of.add(nfc(found))
                listing.tree.passed.add(found.rpartition("/")[0])
                return found
        tried.append(template.fill(fields))
    if not any(path in listing.tree.problems for path in tried):
        listing.report(
            "error",
            tried[0],
            f"listed in {where}, but there is no such file",
            "restore it, remove the record, or go on without it by --skip-bad",
        )
    return None


def _mask(
    rule: Rule, listing: Listing, fields: dict[str, str], where: str
) -> tuple[str | None, tuple[str, ...]]:
    """Return the first mask that exists, a file or a folder with images, and every path that was tried."""
    tried: list[str] = []
    for template in rule.mask:
        if rule.tables and not all(fields[name] for name in template.names):
            continue
        for path in template.fill_all(fields):
            if rule.tables and (reason := unsafe(path)):
                listing.report("error", where, f"the mask path '{path}' {reason}")
                return None, (path,)
            if found := _mask_at(path, listing, folder=template.names_folder, either=bool(rule.tables)):
                return found, ()
        tried.append(template.fill(fields) + "/" * template.names_folder)
    return None, tuple(tried)


def _mask_at(path: str, listing: Listing, *, folder: bool, either: bool) -> str | None:
    """Return the path on disk of a mask and claim its files; in a table its path alone tells what it is."""
    tree = listing.tree
    found = None if folder else tree.find(path)
    files = [found] if found else []
    if (folder or (either and not found)) and (place := tree.find_folder(path)):
        files = [f"{place}/{name}" for name in tree.folder(place).files if is_image(name)]
        found = place if files else None
    if found:
        listing.claimed.update((found, *files))
        tree.spoken_of.update(map(nfc, files))
    return found


def _orphans(rule: Rule, listing: Listing) -> None:
    """Report mask files that belong to no image."""
    split = "" if rule.split else listing.split
    images = {candidate.path for candidate in listing.candidates}
    for template in rule.mask:
        for path, _ in listing.tree.walk(template, split, _classes(rule, listing)):
            empty = template.names_folder and not any(map(is_image, listing.tree.folder(path).files))
            if path not in listing.claimed and path not in images and not empty:
                listing.claimed.add(path)
                listing.report("warning", path, "a mask without its image", "check the names; it is not used")


def _unknown_label(rule: Rule, fields: dict[str, str]) -> str | None:
    """Return a label that is neither normal nor anomalous as ``"'value'"``, else None."""
    for name, normal in rule.normal_when.items():
        value = fields[name]
        known = (*normal, *rule.anomaly_when.get(name, ()))
        if any(same_value(value, v) for v in known) or (value and not rule.anomaly_when):
            return None
        return f"'{value}'"
    return None


def _report_unknown(rule: Rule, listing: Listing, unknown: dict[str, tuple[str, int]]) -> None:
    known = [str(v) for values in (rule.normal_when, rule.anomaly_when) for vs in values.values() for v in vs]
    for value, (where, count) in unknown.items():
        also = f" (and in {count - 1} more)" if count > 1 else ""
        listing.report(
            "error", where, f"unknown label {value}{also}", f"correct it; known are {', '.join(known)}"
        )


def _report_classes(listing: Listing, where: str, others: Counter[str]) -> None:
    if others:
        names = ", ".join(sorted(others))
        reason = f"not used: {amount(others.total(), 'image')} of classes that are not in [classes]: {names}"
        listing.report("note", where, reason)


def _classes(rule: Rule, listing: Listing) -> Collection[str]:
    """Return the classes that the capture ``class`` is limited to; empty for no limit."""
    return listing.description.classes if rule.category.text == "{class}" else ()


def _split_of(rule: Rule, fields: dict[str, str]) -> str:
    split = rule.split.fill(fields) if rule.split else fields.get("split", "test")
    return split.lower()


def excluded(path: str, patterns: Collection[str]) -> bool:
    """Tell whether a file is left out by one of the patterns of ``exclude``, without regard to case.

    A pattern with a ``/`` is of whole paths, others are of names.
    """
    path = path.lower()
    name = path.rpartition("/")[2]
    return any(fnmatch.fnmatchcase(path if "/" in p else name, p.lower()) for p in patterns)

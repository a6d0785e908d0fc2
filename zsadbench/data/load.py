"""A description and a folder become a list of samples.

Only names are looked at: no image is opened, except masks where a dataset says that the mask decides
the label, or asks that empty masks are refused or dropped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ..cards import card_paths
from ..errors import DatasetError, suggest
from ..files import cache_dir
from ..samples import Dataset, Problem, Sample, Severity
from .checks import settle
from .described import Description
from .descriptions import read_description, shipped_description
from .folders import describe_folder
from .leftover import by_folder, some, unread_images
from .names import means_masks
from .rules import Candidate, Listing, list_root
from .templates import SUFFIXES, is_image
from .tree import Tree, amount, is_folder

GENERATED = ("demo", "demo-aux")
"""Datasets that are rendered into the user's cache on first use."""

SHOWN = 20
"""Problems of one severity that a message lists before it only counts them."""


def load_dataset(
    spec: str,
    data: Path | None = None,
    *,
    split: str = "test",
    skip_bad: bool = False,
    allow_missing: bool = False,
    follow_outside: bool = False,
    categories: Sequence[str] = (),
) -> Dataset:
    """Return the samples of a dataset.

    ``spec`` is an id, the path of a ``.toml``, or a folder.  ``data`` is the dataset's folder or one that
    holds a folder per id; without it the environment variable ``ZSAD_DATA`` is used likewise.
    ``skip_bad`` leaves files with a problem out (they stay in ``problems``), ``allow_missing`` accepts
    listed classes without samples, ``follow_outside`` follows links that leave the dataset's folder.
    With ``categories`` only these are listed, and the others may be missing or have problems.

    Raises:
        DatasetError: with every problem found, if files or the description are not as they must be.
    """
    dataset = survey_dataset(
        spec,
        data,
        split=split,
        allow_missing=allow_missing,
        follow_outside=follow_outside,
        categories=categories,
    )
    errors = [p for p in dataset.problems if p.severity == "error" and not (skip_bad and p.key)]
    if errors or not dataset.samples:
        remedy = "correct them" if skip_bad else "correct them, or leave bad files out with --skip-bad"
        found = amount(len(errors), "problem") if errors else "no usable sample"
        raise DatasetError(
            f"Dataset '{dataset.id}' in {dataset.root} has {found}; {remedy}:\n"
            + problem_report(dataset.problems)
        )
    return dataset


def survey_dataset(
    spec: str,
    data: Path | None = None,
    *,
    split: str = "test",
    allow_missing: bool = False,
    follow_outside: bool = False,
    categories: Sequence[str] = (),
) -> Dataset:
    """Return what ``load_dataset`` finds, with problems in ``problems`` instead of an exception.

    Raises ``DatasetError`` where nothing can be listed: a wrong description, no folder that fits it, or a
    category that there is not.
    """
    description = describe(spec)
    places = _places(spec, data, description)
    listing = _first_root(description, places, split, follow_outside)
    known = dict.fromkeys((*description.classes, *(c.category for c in listing.candidates)))
    for name in categories:
        if name not in known:
            raise DatasetError(f"Dataset '{description.id}' has no category '{name}'.{suggest(name, known)}")
    for remark in description.remarks:
        listing.report("warning", "", remark)
    return _resolved(listing, settle(listing, allow_missing, categories))


def load_validation(
    spec: str, test: Dataset, *, skip_bad: bool = False, follow_outside: bool = False
) -> Dataset | None:
    """Return the normal validation images beside a test part; None where the description names none.

    They are the normal images of the split that ``validation`` of the description names, of the categories
    of ``test``, below the same folder; maybe none.  ``problems`` has what was left out.

    Raises:
        DatasetError: if one of them is a test image, or has a problem that ``skip_bad`` does not leave out.
    """
    description = describe(spec)
    if not description.validation:
        return None
    listing = list_root(description, Tree(test.root, follow_outside), description.validation)
    listing.candidates = [
        c for c in listing.candidates if c.anomalous is not True and c.category in test.categories
    ]
    normal = [c for c in settle(listing, allow_missing=True) if not c.anomalous]
    listing.problems = [p for p in listing.problems if p.severity == "error"]
    if listing.problems and not (skip_bad and all(p.key for p in listing.problems)):
        raise DatasetError(
            f"Dataset '{test.id}' in {test.root} has problems in its validation images; correct them, or "
            f"leave bad files out with --skip-bad:\n{problem_report(listing.problems)}"
        )
    found = _resolved(listing, normal)
    tested = {os.path.realpath(sample.image): sample.key for sample in test.samples}
    for sample in found.samples:
        if same := tested.get(os.path.realpath(sample.image)):
            raise DatasetError(
                f"Dataset '{test.id}' in {test.root}: the validation image {sample.key} is the test image "
                f"{same}; correct `validation` or the rules of {description.path}"
            )
    return found


def subset(dataset: Dataset, *, limit: int | None = None, categories: Sequence[str] | None = None) -> Dataset:
    """Return a part of a dataset: some categories, at most ``limit`` samples in all, or both.

    The limit is shared out over category and label in proportion, at least one each where possible,
    and the samples kept are spread evenly over the list; equal input gives equal output.

    Raises:
        DatasetError: for a category that the dataset does not have, and a limit below 1.
    """
    samples, cut = dataset.samples, False
    if categories:
        for name in categories:
            if name not in dataset.categories:
                raise DatasetError(
                    f"Dataset '{dataset.id}' has no category '{name}'.{suggest(name, dataset.categories)}"
                )
        samples = tuple(s for s in samples if s.category in categories)
    if limit is not None:
        if limit < 1:
            raise DatasetError(f"A limit of {limit} samples leaves none; give 1 or more.")
        cut = limit < len(samples)
        samples = _spread(samples, min(limit, len(samples)))
    present = {s.category for s in samples}
    if len(samples) == len(dataset.samples):
        return dataset
    note = Problem("note", "", f"a part of the set: {len(samples)} of {len(dataset.samples)} samples")
    return replace(
        dataset,
        samples=samples,
        categories=tuple(c for c in dataset.categories if c in present),
        problems=(*dataset.problems, note),
        cut=cut,
    )


def list_images(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Return the image files among ``paths`` and in the folders among them, and what is left out, in words.

    A folder's own images come first, sorted by name, then those of the folders in it.  Folders called like
    masks and hidden ones are not entered.
    Raises ``DatasetError`` for a path that does not exist or a folder without images.
    """
    found: list[Path] = []
    notes: list[str] = []
    for path in paths:
        if is_folder(path):
            images, left = _images_below(path)
            if not images:
                raise DatasetError(
                    f"{path}: no image in this folder or below it (looked for {', '.join(SUFFIXES)})."
                    + "".join(f" Left out: {note}." for note in left)
                )
            found += images
            notes += left
        elif path.is_file():
            found.append(path)
        else:
            raise DatasetError(f"{path}: no such file or folder; check the spelling of the path.")
    return found, notes


def _images_below(root: Path) -> tuple[list[Path], list[str]]:
    """Return the images in a folder and below it, and a line per kind of files that are left out."""
    tree = Tree(root, follow_outside=True)
    images: list[Path] = []
    masks: list[str] = []
    others: list[str] = []
    todo, seen = [""], set[str]()
    while todo:
        place = todo.pop()
        folder = tree.folder(place)
        if folder.real in seen:
            continue
        seen.add(folder.real)
        bad = folder.odd.keys() & folder.links.keys()
        images += [root / place / name for name in folder.files if is_image(name)]
        others += [f"{place}/{name}".lstrip("/") for name in folder.files if not is_image(name)]
        below = [f"{place}/{name}".lstrip("/") for name in folder.folders if name not in bad]
        inner = [path for path in below if not means_masks(path.rpartition("/")[2], folder.folders)]
        masks += sorted(set(below) - set(inner))
        todo += reversed(inner)
    notes = []
    if masks:
        notes.append(f"{root}: not looked into, because they are called like masks: {some(masks)}")
    if unread := unread_images(root, others):
        notes.append(f"{root}: not read: {by_folder(unread)}; convert them to PNG, or correct the suffix")
    return images, notes


def problem_report(problems: Iterable[Problem]) -> str:
    """Return one line per problem, errors first; of many with one severity only the first are shown."""
    lines = []
    by_severity: dict[Severity, list[Problem]] = {"error": [], "warning": [], "note": []}
    for problem in problems:
        by_severity[problem.severity].append(problem)
    for severity, found in by_severity.items():
        lines += [f"  {problem}" for problem in found[:SHOWN]]
        if len(found) > SHOWN:
            lines.append(f"  ... and {len(found) - SHOWN} more of severity '{severity}'")
    return "\n".join(lines)


def describe(spec: str) -> Description:
    """Return the description that an id, the path of a ``.toml`` or a folder means.

    Raises:
        DatasetError: if there is none, or it is not as the format says.
    """
    path = Path(spec)
    if spec in card_paths("datasets"):
        return shipped_description(spec)
    if is_folder(path):
        return describe_folder(path)
    if path.suffix == ".toml":
        return read_description(path)
    raise DatasetError(
        f"'{spec}' is no known dataset, .toml file or folder.{suggest(spec, card_paths('datasets'))}"
    )


def _places(spec: str, data: Path | None, description: Description) -> list[Path]:
    """Return the folders in which the files of a dataset are looked for, in order."""
    shipped = spec in card_paths("datasets")
    if data is None and spec in GENERATED:
        from ..demo import ensure_demo

        return [ensure_demo(cache_dir(), auxiliary=spec == "demo-aux")]
    if not shipped and is_folder(Path(spec)):
        if data is not None:
            raise DatasetError(f"'{spec}' is a folder already; leave out --data {data}.")
        return [Path(spec)]
    variable = os.environ.get("ZSAD_DATA")
    bases = [] if shipped else [Path(spec).parent]
    bases += [Path(variable)] if variable else []
    if data is not None:
        bases = [data]
    if not bases:
        raise DatasetError(
            f"Where is dataset '{description.id}'? Give its folder with --data, or set ZSAD_DATA to a folder "
            f"that holds '{description.id}'.\n{_expected(description)}"
        )
    return [place for base in bases for place in (base / description.id, base)]


def _first_root(description: Description, places: list[Path], split: str, follow_outside: bool) -> Listing:
    """Return the listing of the first folder with samples, else of the first with something to report."""
    tried: list[Path] = []
    second: Listing | None = None
    for place in places:
        for sub in description.subroot:
            root = place / sub
            if not is_folder(root) or root in tried:
                tried += [] if root in tried else [root]
                continue
            tried.append(root)
            listing = list_root(description, Tree(root, follow_outside), split)
            if listing.candidates:
                return listing
            second = second or (listing if listing.problems else None)
    if second:
        return second
    raise DatasetError(
        f"No {split} image of dataset '{description.id}' found. Looked in "
        f"{', '.join(map(str, tried))}.\n{_expected(description)}"
    )


def _expected(description: Description) -> str:
    lines = "".join(f"\n  {line}" for line in description.outline())
    return f"Expected below its folder:{lines}\nDownload: {description.url}"


def _resolved(listing: Listing, candidates: list[Candidate]) -> Dataset:
    d, root = listing.description, listing.tree.root
    categories = tuple(dict.fromkeys(c.category for c in candidates))
    base = str(root)
    return Dataset(
        id=d.id,
        title=d.title,
        domain=d.domain,
        license=d.license,
        url=d.url,
        root=root,
        masks=d.masks,
        mask_positive=d.mask_positive,
        mask_mismatch=d.mask_mismatch,
        empty_mask=d.empty_mask,
        categories=categories,
        words={name: d.words(name) for name in categories},
        samples=tuple(
            Sample(
                c.key,
                c.category,
                bool(c.anomalous),
                Path(base, c.path),
                Path(base, c.mask) if c.mask else None,
                c.specie,
                c.groups,
                Path(base, c.saturation) if c.saturation else None,
            )
            for c in candidates
        ),
        split=listing.split,
        expect=d.expect,
        backbone=d.backbone,
        problems=tuple(listing.problems),
    )


def _spread(samples: tuple[Sample, ...], limit: int) -> tuple[Sample, ...]:
    """Keep ``limit`` samples, in proportion over category and label, evenly spaced in each."""
    groups: dict[tuple[str, bool], list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault((sample.category, sample.anomalous), []).append(index)
    places = list(groups.values())[:limit]
    quotas = [limit * len(group) / len(samples) for group in places]
    counts = [max(1, int(quota)) for quota in quotas]
    while sum(counts) > limit:
        counts[max(range(len(places)), key=lambda i: (counts[i] > 1, counts[i] - quotas[i]))] -= 1
    while sum(counts) < limit:
        counts[
            max(range(len(places)), key=lambda i: (counts[i] < len(places[i]), quotas[i] - counts[i]))
        ] += 1
    kept = sorted(
        group[k * len(group) // count]
        for group, count in zip(places, counts, strict=True)
        for k in range(count)
    )
    return tuple(samples[index] for index in kept)

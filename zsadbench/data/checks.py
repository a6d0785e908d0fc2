"""Settles the candidates of a listing: labels that a mask decides, and what only shows in the whole."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection

from ..errors import DatasetError
from ..samples import Severity
from .leftover import by_folder, some, unread_images
from .rules import Candidate, Listing, excluded
from .templates import is_image
from .tree import amount


def settle(
    listing: Listing, allow_missing: bool = False, categories: Collection[str] = ()
) -> list[Candidate]:
    """Return the usable candidates in class order, then by key, each with its label.

    What is wrong is added to ``listing.problems``; candidates with an error are left out.  Only the
    masks that decide a label, or that must not be empty, are opened.  With ``categories`` only these are
    looked at, and no other may be missing.
    """
    if categories:
        chosen = [c for c in listing.candidates if c.category in categories]
        if len(chosen) < len(listing.candidates):
            listing.report("note", "", f"a part of the set: only {', '.join(categories)}")
        listing.candidates = chosen
    found = [c for c in _unique(listing) if _labelled(c, listing) and _mask_fits(c, listing)]
    found = _unlinked(listing, found)
    for candidate in found:
        if not candidate.anomalous or listing.description.masks == "none":
            candidate.mask = None
    classes = listing.description.classes or sorted({c.category for c in found})
    order = {name: place for place, name in enumerate(classes)}
    found.sort(key=lambda c: (order[c.category], c.key))
    _report_missing(listing, {c.category for c in found}, allow_missing, categories)
    _report_ignored(listing)
    _report_unmatched(listing)
    _report_pairs(listing, found)
    _report_counts(listing, found, categories)
    return found


def _without_masks(listing: Listing) -> list[Candidate]:
    """Leave out masks that a template takes for images."""
    taken = [c.key for c in listing.candidates if c.path in listing.claimed]
    if not taken:
        return listing.candidates
    remedy = 'name them in `exclude`, for example "*_mask.png"'
    listing.report("error", "", f"masks are taken for images: {some(taken)}", remedy)
    return [c for c in listing.candidates if c.path not in listing.claimed]


def _unique(listing: Listing) -> list[Candidate]:
    """Keep one candidate per file; a file under two labels or classes is an error and left out."""
    by_key: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in _without_masks(listing):
        by_key[candidate.key].append(candidate)
    found = []
    for key, group in by_key.items():
        first = group[0]
        if any((c.anomalous, c.category) != (first.anomalous, first.category) for c in group):
            places = " and ".join(dict.fromkeys(c.where for c in group))
            listing.report(
                "error", key, f"listed under two labels or classes ({places})", "keep the right one"
            )
            continue
        if len(group) > 1:
            listing.report("warning", key, f"listed {len(group)} times, used once")
        if key in listing.elsewhere:
            listing.report("warning", key, f"listed in split '{listing.elsewhere[key]}' as well")
        found.append(first)
    return found


def _labelled(candidate: Candidate, listing: Listing) -> bool:
    """Let the mask decide where the rule says so; False when it cannot."""
    if candidate.anomalous is not None:
        return True
    if candidate.mask is None:
        _missing_mask(candidate, listing)
        return False
    empty = _is_empty(candidate.mask, listing)
    candidate.anomalous = empty is False
    return empty is not None


def _mask_fits(candidate: Candidate, listing: Listing) -> bool:
    description = listing.description
    if not candidate.anomalous:
        return True
    if candidate.mask is None:
        if description.masks == "required" or (candidate.listed_mask and description.masks == "optional"):
            _missing_mask(candidate, listing)
            return False
        return True
    if description.empty_mask == "keep" or not _is_empty(candidate.mask, listing):
        return True
    if description.empty_mask == "error":
        listing.report(
            "error", candidate.key, f"its mask {candidate.mask} has no positive pixel", "redraw it"
        )
    else:
        listing.report("warning", candidate.key, f"left out: its mask {candidate.mask} has no positive pixel")
    return False


def _missing_mask(candidate: Candidate, listing: Listing) -> None:
    tried = (
        f"tried {', '.join(candidate.tried)}" if candidate.tried else f"none is given in {candidate.where}"
    )
    listing.report("error", candidate.key, f"has no mask ({tried})", "add the mask, or use --skip-bad")


def _is_empty(mask: str, listing: Listing) -> bool | None:
    """Tell whether a mask has no positive pixel; None when it cannot be read, which is reported."""
    from ..images import read_mask

    try:
        return not read_mask(listing.tree.root / mask, listing.description.mask_positive, name=mask).any()
    except DatasetError as exc:
        listing.report("error", mask, str(exc))
        return None


def _report_missing(
    listing: Listing, present: set[str], allow_missing: bool, categories: Collection[str]
) -> None:
    """Report wanted classes and rules that brought nothing."""
    wanted = categories or listing.description.classes
    missing = [name for name in wanted if name not in present]
    severity: Severity = "warning" if allow_missing else "error"
    if missing:
        listing.report(
            severity,
            "",
            f"no {listing.split} sample of class {', '.join(missing)}",
            "complete the download, or use --allow-missing",
        )
    for rule in listing.empty_rules:
        if categories and not rule.category.names and rule.category.text not in categories:
            continue
        template = (rule.tables or rule.image)[0]
        listing.report(
            severity,
            "",
            f"{rule.where}: the template '{template.text}' matches nothing",
            "correct it, or use --allow-missing",
        )


def _report_ignored(listing: Listing) -> None:
    ignored = listing.tree.ignored()
    if ignored:
        listing.report(
            "note", "", f"folders that the description does not name are not used: {some(ignored)}"
        )


def _report_unmatched(listing: Listing) -> None:
    """Report images that no rule and no table means, so that partial data do not look complete."""
    exclude = listing.description.exclude
    left = [path for path in listing.tree.unmatched() if not excluded(path, exclude)]
    images, unread = [path for path in left if is_image(path)], unread_images(listing.tree.root, left)
    if images:
        listing.report(
            "warning",
            "",
            f"not used, because no rule matches: {by_folder(images)}",
            "correct `image` of the description (`zsad datasets new DIR` writes one), move the files, or "
            "name them in `exclude`",
        )
    if unread:
        listing.report(
            "warning",
            "",
            f"not used, because images are not looked for under such a suffix: {by_folder(unread)}",
            "convert them to PNG or correct the suffix",
        )


def _unlinked(listing: Listing, found: list[Candidate]) -> list[Candidate]:
    """Leave out files that links show under two labels."""
    if not listing.tree.has_links:
        return found
    shown: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in sorted(found, key=lambda c: c.key):
        shown[os.path.realpath(listing.tree.root / candidate.path)].append(candidate)
    bad: set[str] = set()
    for first, *others in shown.values():
        for other in others:
            if other.anomalous != first.anomalous:
                reason = f"is the same file as {first.key}, under two labels"
                listing.report("error", other.key, reason, "keep the right one")
                bad |= {first.key, other.key}
    return [candidate for candidate in found if candidate.key not in bad]


def _report_pairs(listing: Listing, found: list[Candidate]) -> None:
    """Report names that differ only by case, and anomalous images without a mask."""
    spelled: dict[str, str] = {}
    for candidate in found:
        first = spelled.setdefault(candidate.key.casefold(), candidate.key)
        if first != candidate.key:
            listing.report(
                "note", candidate.key, f"differs from {first} only by case: one is lost on some disks"
            )
    bare = [c.key for c in found if c.anomalous and c.mask is None]
    if bare and listing.description.masks == "optional":
        bare_images = f"{amount(len(bare), 'anomalous image')}, {some(bare)}"
        listing.report("note", "", f"no part in pixel metrics, for want of a mask: {bare_images}")


def _report_counts(listing: Listing, found: list[Candidate], categories: Collection[str]) -> None:
    """Compare with the published counts, and name classes that have one label only."""
    counts = Counter((c.category, bool(c.anomalous)) for c in found)
    pairs = {
        name: (counts[name, False], counts[name, True]) for name in dict.fromkeys(c.category for c in found)
    }
    for word, place in (("normal", 1), ("anomalous", 0)):
        names = [name for name, pair in pairs.items() if not pair[place]]
        if names:
            listing.report("note", "", f"only {word} images, so no image AUROC: {some(names)}")
    expect = listing.description.expect
    if expect is None or listing.split != "test":
        return
    have = tuple(map(sum, zip(*pairs.values(), strict=True))) or (0, 0)
    wanted = {"": (have, expect.total)} | {
        name: (pairs.get(name, (0, 0)), pair) for name, pair in expect.categories.items()
    }
    for name, (mine, full) in wanted.items():
        if mine != full and (not categories or name in categories):
            listing.report(
                "warning",
                "",
                f"{f'class {name}' if name else 'in all'}: {mine[0]} normal and {mine[1]} anomalous images, "
                f"the full set has {full[0]} and {full[1]}",
            )

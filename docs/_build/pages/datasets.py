"""A page for each dataset, from its description."""

from __future__ import annotations

from zsadbench.cards import card_paths
from zsadbench.data import Description, shipped_description

from .markdown import page, table


def index() -> str:
    """Return the page that lists the datasets."""
    rows = []
    for name in card_paths("datasets"):
        one = shipped_description(name)
        normal, anomalous = one.expect.total if one.expect else ("", "")
        rows.append(
            (
                f"[{one.title}]({name}.md)",
                f"`{name}`",
                one.domain,
                str(normal),
                str(anomalous),
                _masks(one),
                one.license,
            )
        )
    return page(
        "Datasets",
        "Every dataset that zsadbench describes: layout, counts, licence, citation.",
        "Counts are those of the full test set. `zsad datasets check ID --data DIR` opens every file of "
        "yours and reports every problem at once. "
        "[A dataset of your own](../../guides/own-dataset.md) needs no Python.",
        table(("dataset", "id", "domain", "normal", "anomalous", "masks", "licence"), rows),
    )


def _masks(one: Description) -> str:
    return "no" if one.masks == "none" else "yes"


def page_of(one: Description) -> str:
    """Return the page of one dataset."""
    total = one.expect.total if one.expect else None
    rule = (
        one.mask_positive
        if isinstance(one.mask_positive, str)
        else f"one of {', '.join(map(str, one.mask_positive))}"
    )
    rows = [
        ("id", f"`{one.id}`"),
        ("domain", one.domain),
        ("licence", one.license),
        ("where to get it", f"<{one.url}>" if one.url.startswith("http") else one.url),
        (
            "masks",
            "none: image metrics only"
            if one.masks == "none"
            else f"{one.masks}; a defect is where the value is {rule}",
        ),
        ("test set", f"{total[0]} normal, {total[1]} anomalous" if total else "counts not known"),
    ]
    roots = " or ".join("the folder itself" if sub == "." else f"`{sub}/`" for sub in one.subroot)
    tree = "\n".join(one.outline())
    return page(
        one.title,
        f"{one.title} in zsadbench: expected tree, counts, words in prompts, licence and citation.",
        table(("", "what the description says"), rows),
        f"## Expected tree\n\nBelow {roots}:\n\n```text\n{tree}\n```",
        _categories(one),
        f"## Citation\n\n```bibtex\n{one.citation.strip()}\n```" if one.citation else "No citation is known.",
    )


def _categories(one: Description) -> str:
    counts = one.expect.categories if one.expect else {}
    names = list(one.classes) or list(counts)
    if not names:
        return "## Categories\n\nThe folders found."
    rows = [(f"`{name}`", one.words(name), *(str(n) for n in counts.get(name, ("", "")))) for name in names]
    return "## Categories\n\n" + table(("category", "words in prompts", "normal", "anomalous"), rows)

"""A page for each method: what its card says, beside the specifications in docs/reference/methods."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from zsadbench.method import MethodCard, flattened, method_cards, resolve

from .markdown import page, table

SPECIFICATIONS = Path(__file__).parents[2] / "reference" / "methods"


def _slug(name: str) -> str:
    return name.replace("+", "-plus")


def place(name: str) -> str:
    """Return where the page of a method stands."""
    return f"reference/methods/{_slug(name)}.md"


@cache
def specified() -> dict[str, str]:
    """Return id -> name of the specification: a method's own page, or that of the family it belongs to."""
    found: dict[str, str] = {}
    for path in sorted(SPECIFICATIONS.glob("*.md")):
        head = path.read_text().split("\n---\n")[0]
        ids = re.search(r"^methods: (.*)$", head, re.M)
        found |= {name.strip(): path.stem for name in ids[1].split(",")} if ids else {path.stem: path.stem}
    return found


def index() -> str:
    """Return the page that lists the methods."""
    rows = [
        (
            f"[{card.title}]({_slug(card.id)}.md)",
            f"`{card.id}`",
            "trained" if card.trained else "training-free",
            f"{card.backbone} at {card.size}",
            ", ".join(_marks(card)),
        )
        for card in method_cards().values()
    ]
    return page(
        "Methods",
        "Every method with its paper, code, backbone, parameters, variants and full specification.",
        "A page holds what the card of a method says and, below it, its specification: what the "
        "authors' code does, where paper and code differ, and what common mistakes change. `zsad methods "
        "show ID` prints the facts of the card in a terminal. *Reference arrays* are outputs of the "
        "authors' code on miniature CLIPs, stage by stage; the tests hold the implementation to them. "
        "[Which method should I use](../../which-method.md) compares the methods.",
        table(("method", "id", "kind", "CLIP and input", "remarks"), rows),
    )


def _marks(card: MethodCard) -> list[str]:
    return [
        word
        for word, on in (("transductive", card.transductive), ("order-dependent", card.order_dependent))
        if on
    ]


def page_of(card: MethodCard) -> str:
    """Return the page of a method without a specification of its own."""
    family = specified().get(card.id)
    more = f"Its specification is that of [its family]({family}.md)." if family else ""
    return page(
        card.title,
        f"{card.title} in zsadbench: paper, code, backbone, parameters, variants.",
        facts_of(card),
        more,
    )


def facts_of(card: MethodCard) -> str:
    """Return what a card says, as tables."""
    found = resolve(card.id)
    backbone, image = found.method.backbone, found.method.preprocess
    repository, _, commit = card.code.partition("@")
    code = (
        f"[{repository}](https://github.com/{repository}/tree/{commit}) at `{commit[:12]}`"
        if commit
        else "none published by the authors"
    )
    size = "the network's input size" if found.size == "frame" else f"{found.size} x {found.size} pixels"
    rows = [
        ("id", f"`{card.id}`, version {card.version}"),
        ("kind", "trained: needs a [checkpoint](../../training.md)" if card.trained else "training-free"),
        ("paper", card.paper),
        ("authors' code", code),
        (
            "CLIP",
            f"`{backbone.name}`, weights `{backbone.weights}`, activation {backbone.activation}, "
            f"positions {backbone.position}",
        ),
        ("input", f"{image.size} pixels, {image.resize}, {image.interpolation}, RGB {image.rgb} resizing"),
        ("evaluation", f"at {size}, masks `{found.mask_resize}`"),
        (
            "image score",
            "transductive: from all test images of a category"
            if card.transductive
            else "from one image alone",
        ),
        *([("maps", "from all test images of a category")] if found.relates else []),
        *([("constants", "picked by the dataset's name")] if found.constants_per_dataset else []),
        ("evidence", f"at most {card.evidence_per_patch} numbers a patch"),
        (
            "order of images",
            "counts: images of a category follow each other" if card.order_dependent else "does not matter",
        ),
        (
            "`zsad score --set`",
            ", ".join(f"`{name}`" for name in card.map_parameters) or "nothing but the protocol",
        ),
    ]
    parts = [table(("", "of the reference"), rows), _run_line(card), "## Parameters", _parameters(found)]
    if card.variants:
        variants = ((f"`{card.id}@{name}`", layer.summary) for name, layer in card.variants.items())
        parts += ["## Variants", table(("run it as", "what is different"), variants)]
    special = [
        (f"{kind} `{name}`", _assigned({**layer.keys, **layer.fields}))
        for (kind, name), layer in card.reference.occasions.items()
    ]
    if special:
        parts += ["## What the authors' code does differently", table(("on", "what is set"), special)]
    if card.deviations:
        parts += [
            "## Where paper, code and this implementation differ",
            "\n".join(f"* {text}" for text in card.deviations),
        ]
    if card.bibtex:
        parts += ["## Citation", f"```bibtex\n{card.bibtex.strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def _run_line(card: MethodCard) -> str:
    checkpoint = " --checkpoint FILE" if card.trained else ""
    return f"```text\nzsad run --method {card.id} --dataset DATASET{checkpoint}\n```"


def _parameters(found: Any) -> str:
    own = {key: value for key, value in found.parameters.items() if key not in ("backbone", "preprocess")}
    rows = [(f"`{name}`", _value(value)) for name, value in flattened(found.method, own).items()]
    if not rows:
        return "None of its own."
    return "Set with `--set NAME=VALUE`.\n\n" + table(("name", "value of the reference"), rows)


def _value(value: Any) -> str:
    if isinstance(value, list) and any(isinstance(item, str) for item in value) and len(value) > 4:
        return ", ".join(f"`{item}`" for item in value[:3]) + f" ... ({len(value)} texts)"
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in value)
    return (
        f"`{str(value).lower() if isinstance(value, bool) else value}`" if value not in (None, "") else "none"
    )


def _assigned(values: Mapping[str, Any]) -> str:
    return (
        ", ".join(
            f"`{name}` = {_value(value)}" for name, value in values.items() if not isinstance(value, Mapping)
        )
        or "words of categories"
    )

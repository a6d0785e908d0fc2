"""``zsad methods``: list, show and check methods."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..method import REFERENCE, WORDLESS, Layer, MethodCard, flattened, method_cards
from ..text import console as screen
from ..text import say
from .options import Checkpoint, Parameters, examples, method_ids
from .verbs import Verbs, grouped

if TYPE_CHECKING:
    from ..method import Check, Resolved

app = Verbs(
    help="List, show, check and start methods.",
    no_args_is_help=False,
    epilog=examples("zsad methods list", "zsad methods show anoclip"),
)

WIDE = 120
SHOWN = 4
HINT = (
    "A variant runs as METHOD@VARIANT; a class of your own as FILE.py:Class. More: zsad methods show METHOD"
)
WORDING = {
    "key": "the category's name as it is",
    "spaced": "the category's name, underscores as spaces",
    "words": "the dataset's words for the category",
    WORDLESS: "none, its prompts name no category",
}
MASKS = {
    "bilinear50": "bilinear, above 0.5",
    "all": "bilinear, wholly anomalous pixels",
    "any": "bilinear, pixels with any anomaly",
    "nearest": "nearest neighbour",
    "native": "masks at their own size",
}

Spec = Annotated[
    str,
    typer.Argument(
        metavar="METHOD",
        help="ID, ID@VARIANT, FILE.py:Class or module:Class.",
        autocompletion=method_ids,
    ),
]


def _console(width: int = 100) -> Console:
    """Return a console as wide as the terminal, or ``width`` where the output goes elsewhere."""
    return screen(width=width)


@app.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """List, show, check and start methods; alone it lists them."""
    if context.invoked_subcommand is None:
        list_methods()


@app.command("list", epilog=examples("zsad methods list"))
def list_methods() -> None:
    """List the methods that come with the toolkit."""
    console = _console(160)
    cards = method_cards().values()
    if console.width >= WIDE:
        console.print(_wide(cards))
    else:
        _narrow(console, cards)
    console.print()
    console.print(textwrap.fill(HINT, console.width), soft_wrap=True)


def _wide(cards: Iterable[MethodCard]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("id", "title", "kind", "backbone"):
        table.add_column(name, no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("variants")
    table.add_column("remarks")
    for card in cards:
        table.add_row(
            card.id,
            card.title,
            _kind(card),
            card.backbone,
            str(card.size or ""),
            ", ".join(card.variants),
            ", ".join(_marks(card)),
        )
    return table


def _narrow(console: Console, cards: Iterable[MethodCard]) -> None:
    for card in cards:
        console.print(card.id, style="bold")
        place = f"{card.backbone} at {card.size}" if card.backbone else ""
        variants = f"variants {', '.join(card.variants)}" if card.variants else ""
        for line in ("; ".join(filter(None, (card.title, _kind(card), *_marks(card)))), place, variants):
            if line:
                _facts(console, [("", line)])


def _kind(card: MethodCard) -> str:
    return "trained" if card.trained else "training-free"


def _marks(card: MethodCard) -> list[str]:
    marks = {
        "transductive": card.transductive,
        "order-dependent": card.order_dependent,
        "constants per dataset": card.has_constants_per_dataset(REFERENCE),
    }
    return [name for name, on in marks.items() if on]


@app.command(
    epilog=examples(
        "zsad methods show anoclip",
        'zsad methods show winclip --prompts --words "metal nut"',
        "zsad methods show winclip --prompts-to prompts.toml",
    )
)
def show(
    method: Spec,
    full: Annotated[bool, typer.Option("--full", help="Print every prompt of long lists.")] = False,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Print the prompts of a category as they are sent.")
    ] = False,
    words: Annotated[
        str, typer.Option("--words", metavar="WORDS", help="The words for the category in these prompts.")
    ] = "",
    category: Annotated[
        str, typer.Option("--category", metavar="NAME", help="The category of these prompts.")
    ] = "object",
    prompts_to: Annotated[
        Path | None, typer.Option("--prompts-to", metavar="FILE", help="Write a prompt file to start from.")
    ] = None,
) -> None:
    """Show a method: source, backbone, parameters, variants, deviations and BibTeX; or its prompts."""
    from ..method import resolve

    if prompts:
        _show_prompts(method, category, words)
    if prompts_to:
        _write_prompts(method, prompts_to)
    if prompts or prompts_to:
        return
    found = resolve(method)
    card, console = found.card, _console()
    console.print(f"{card.title} ({found.id}, version {card.version})\n", style="bold")
    _facts(console, _about(found))
    _heading(console, "Parameters")
    _facts(console, _parameters(found, full))
    tables = _tables(card)
    for title, rows in tables.items():
        _heading(console, title)
        _facts(console, rows)
    if card.deviations:
        _heading(console, "Where paper, authors' code and this implementation differ")
        _facts(console, [("-", text) for text in card.deviations])
    if card.bibtex:
        _heading(console, "BibTeX")
        console.print(card.bibtex, soft_wrap=True)


def _show_prompts(method: str, category: str, words: str) -> None:
    """Print the sets of prompts for a category, as a miniature CLIP receives them."""
    from ..clip import load_clip
    from ..method import miniature, prompts_sent, wordings

    found = miniature(method)
    said = wordings(found, {category: ""}, words={category: words} if words else None)[category]
    sets = prompts_sent(found, load_clip(found.method.backbone), category, said)
    for number, one in enumerate(sets, 1):
        say(f"# set {number} of {len(sets)}: {len(one)} prompts for '{category}', worded '{said}'")
        say("\n".join(one))


def _write_prompts(method: str, path: Path) -> None:
    from ..errors import UsageError
    from ..files import write_atomic
    from ..method import draft_prompts, resolve

    text = draft_prompts(resolve(method))
    if path.exists():
        raise UsageError(f"--prompts-to {path}: exists already; choose another name")
    write_atomic(path, text.encode())
    say(f"Wrote {path}. Change it, then: zsad run --method {method} --prompts {path}")


def _heading(console: Console, title: str) -> None:
    console.print(f"\n{title}", style="bold")


def _facts(console: Console, rows: Iterable[tuple[str, str]]) -> None:
    """Print names with texts beside them, wrapped to the console's width."""
    rows = list(rows)
    indent = " " * (max(len(name) for name, _ in rows) + 2)
    width = max(console.width, len(indent) + 30)
    for name, text in rows:
        head = name.ljust(len(indent))
        for line in text.splitlines():
            wrapped = textwrap.wrap(line, width, initial_indent=head, subsequent_indent=indent)
            console.print("\n".join(wrapped), soft_wrap=True)
            head = indent


def _about(found: Resolved) -> list[tuple[str, str]]:
    card, backbone, image = found.card, found.method.backbone, found.method.preprocess
    repository, _, commit = card.code.partition("@")
    code = f"github.com/{repository} at {commit}" if commit else "none published by the authors"
    tiles = "; two square tiles at the ends of the longer side" if image.tiles == "ends" else ""
    rgb = f"RGB {image.rgb} resizing"
    scores = "one image alone"
    if card.transductive:
        rule = _assignments(card.inductive)
        scores = f"transductive: all test images of a category (one image alone: {rule})"
    rows = [
        ("kind", _kind(card) + (", needs a checkpoint" if found.needs_checkpoint else "")),
        ("paper", card.paper),
        ("code", code if card.path.suffix == ".toml" else str(card.path)),
        ("backbone", f"{backbone.name}, weights {backbone.weights}, activation {backbone.activation}"),
        ("positions", f"resized {backbone.position}"),
        ("resolution", f"{image.size} pixels, {image.resize}, {image.interpolation}, {rgb}{tiles}"),
        ("evaluation", f"{_size(found.size)}, masks {MASKS[found.mask_resize]}"),
        ("words", "; ".join([WORDING[card.wording], *(f"{k}: {v}" for k, v in card.words.items())])),
        ("image score", scores),
        ("maps", "from all test images of a category" if found.relates else ""),
        ("constants", "picked by the dataset's name" if found.constants_per_dataset else ""),
        ("order", "images of a category in order" if card.order_dependent else "does not matter"),
        ("evidence", f"at most {card.evidence_per_patch} numbers a patch"),
        ("score --set", ", ".join(card.map_parameters) or "nothing but the protocol"),
    ]
    return [(name, text) for name, text in rows if text]


def _size(size: int | str) -> str:
    return "at the network's input size" if size == "frame" else f"at {size} x {size} pixels"


def _parameters(found: Resolved, full: bool) -> list[tuple[str, str]]:
    shown = {key: value for key, value in found.parameters.items() if key not in ("backbone", "preprocess")}
    own = flattened(found.method, shown)
    return [(name, _value(value, full)) for name, value in own.items()] or [("", "none of its own")]


def _value(value: Any, full: bool = False) -> str:
    """Return a parameter as ``--set`` takes it; long lists of texts cut to their first entries."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, list):
        return "none" if value is None else str(value) or '""'
    if not all(isinstance(item, str) for item in value):
        return ",".join(map(str, value))
    kept = value if full else value[:SHOWN]
    more = f" ... ({len(value)} in all, --full prints them)" if len(kept) < len(value) else ""
    return " | ".join(kept) + more


def _assignments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({_assignments(value)})"
    texts = isinstance(value, list) and any(isinstance(item, str) for item in value)
    return f"({len(value)} texts)" if texts else _value(value)


def _tables(card: MethodCard) -> dict[str, list[tuple[str, str]]]:
    """Return the card's variants and special cases as headed rows."""
    variants = [(f"@{name}", _variant(layer)) for name, layer in card.variants.items()]
    special = [
        (f"{kind} {name}", _changes(layer)) for (kind, name), layer in card.reference.occasions.items()
    ]
    scaling = {"depth": card.scaling.layers, "input size": card.scaling.lengths}
    scaled = [(f"its {name}", ", ".join(fields)) for name, fields in scaling.items() if fields]
    found = {
        "Variants": variants,
        "What the authors' code does differently": special,
        "What follows another backbone": scaled,
    }
    return {title: rows for title, rows in found.items() if rows}


def _variant(layer: Layer) -> str:
    return "\n".join(filter(None, (layer.summary, _changes(layer))))


def _changes(layer: Layer) -> str:
    return _assignments({**layer.keys, **layer.fields})


@app.command(epilog=examples("zsad methods check mine.py:Mine", "zsad methods check clip --variants"))
@grouped
def check(
    *,
    method: Spec,
    backbone: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Another CLIP than the miniature stand-in; with --weights."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="TAG|FILE", help="Weights of --backbone: a tag, file or random.")
    ] = None,
    parameters: Parameters,
    checkpoint: Checkpoint = None,
    variants: Annotated[bool, typer.Option("--variants", help="Check every variant too.")] = False,
) -> None:
    """Check that a method keeps the contract: any batch size, any order, sound evidence, maps and scores.

    Runs in seconds on a miniature CLIP with random weights, a trained method without --checkpoint on noise.
    Exit code 1 if a point does not hold.
    """
    from ..method import check as run_contract
    from ..method import miniature, parse_spec, resolve

    card, variant = parse_spec(method)
    chosen = [method]
    if variants and variant == REFERENCE:
        chosen += [f"{card.id}@{name}" for name in card.variants]
    given = parameters.table() | ({"checkpoint": checkpoint} if checkpoint else {})
    console = _console()
    failed = 0
    for spec in chosen:
        if backbone is None and weights is None:
            found = miniature(spec, settings=given)
        else:
            found = resolve(spec, backbone=backbone, weights=weights, settings=given)
        failed += _report(console, found, run_contract(found))
    if failed:
        raise typer.Exit(1)


@app.command(epilog=examples("zsad methods new mine", "zsad methods new mine --out methods/"))
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its id: small letters, digits, hyphens.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where both files go.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
) -> None:
    """Write a new method that runs as it stands, and the card that makes it one of the toolkit."""
    from ..method import draft_method

    source, card, cls = draft_method(name, out, force=force)
    say(f"Wrote {source} and {card}. Next: zsad methods check {source}:{cls}")
    say(f"then: zsad run --method {source}:{cls} --dataset demo")


def _report(console: Console, found: Resolved, checks: list[Check]) -> int:
    failed = sum(not point.passed for point in checks)
    backbone, size = found.method.backbone, found.method.preprocess.size
    console.print(f"{found.id} on {backbone.name} ({backbone.weights}) at {size}", style="bold")
    marks = {True: "ok    ", False: "FAILED"}
    _facts(console, [(f"{marks[p.passed]} {p.name}", p.words) for p in checks])
    held = f"{len(checks) - failed} of {len(checks)} points hold"
    console.print(f"{held}\n" if failed else f"{held}: a method in good order\n")
    return failed

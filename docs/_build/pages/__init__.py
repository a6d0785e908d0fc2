"""Pages made in the build: verbs from Typer, methods from cards, datasets from descriptions, the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zsadbench.boards.words import MARKS, SYMBOLS
from zsadbench.cards import card_paths
from zsadbench.data import shipped_description
from zsadbench.errors import ZsadError
from zsadbench.method import method_cards
from zsadbench.metrics import DERIVED, METRICS

from . import api, datasets, methods, verbs
from .markdown import page, table

DOCS = Path(__file__).parents[2]
EXIT_CODES = {
    0: "Done.",
    1: "A gate failed: a value fell below its baseline, a method breaks the contract, an image is NG.",
    2: "A mistake in the call or in the input; the last line says what, where and what to do.",
    3: "Some images could not be read (`zsad predict`).",
    70: "A fault of ours; `--debug` shows the traceback.",
    130: "Interrupted; the same command goes on where it was, where that is possible.",
}


def made() -> dict[str, str]:
    """Return every generated page: its place in the site and its text."""
    cards = method_cards().values()
    return {
        "reference/commands/index.md": verbs.index(),
        **{
            f"reference/commands/{name}.md": verbs.page_of(name, verb) for name, verb in verbs.verbs().items()
        },
        "reference/methods/index.md": methods.index(),
        **{methods.place(card.id): methods.page_of(card) for card in cards},
        "reference/datasets/index.md": datasets.index(),
        **{
            f"reference/datasets/{name}.md": datasets.page_of(shipped_description(name))
            for name in card_paths("datasets")
        },
        "reference/exit-codes.md": _exit_codes(),
        "reference/api/index.md": api.index(),
        **{f"reference/api/{api.name_of(room)}.md": api.page_of(room) for room in api.MODULES},
    }


def navigation(kind: str) -> list[Any]:
    """Return the entries of the navigation for one kind of generated pages, its index first."""
    if kind == "methods":
        names = sorted({*method_cards(), *methods.specified()})
        return ["reference/methods/index.md", *dict.fromkeys(map(methods.place, names))]
    listed = {
        "commands": list(verbs.verbs()),
        "datasets": list(card_paths("datasets")),
        "api": [api.name_of(room) for room in api.MODULES],
    }[kind]
    return [f"reference/{kind}/index.md", *(f"reference/{kind}/{name}.md" for name in listed)]


def completed(path: str, text: str) -> str:
    """Return a page with what is made for it: ids of metrics, marks of boards, facts of a method's card."""
    if path == "reference/metrics.md":
        rows = ((f"`{name}`", title) for name, title in (METRICS | DERIVED).items())
        return text.replace("<!-- metric ids -->", table(("id", "title"), rows))
    if path == "concepts.md":
        marks = ((name + (f" ({SYMBOLS[name]})" if name in SYMBOLS else ""), MARKS[name]) for name in MARKS)
        return text.replace("<!-- marks -->", table(("mark", "meaning"), marks))
    if not (DOCS / path).is_relative_to(methods.SPECIFICATIONS) or not (DOCS / path).exists():
        return text
    card = next((card for card in method_cards().values() if methods.place(card.id) == path), None)
    facts = methods.facts_of(card) if card else "*This version has the specification alone.*\n"
    head, _, rest = text.partition("\n")
    return f"{head}\n\n{facts}\n{rest}"


def _exit_codes() -> str:
    errors: list[type[ZsadError]] = [ZsadError, *ZsadError.__subclasses__()]
    raised = {error.exit_code for error in errors}
    unknown = raised - EXIT_CODES.keys()
    if unknown:
        raise ValueError(f"docs/_build/pages.py says nothing of the exit codes {sorted(unknown)}")
    return page(
        "Exit codes",
        "What the exit code of zsad says, for scripts and CI.",
        table(("code", "meaning"), ((str(code), text) for code, text in EXIT_CODES.items())),
        "A mistake is told in one line on standard error. `--debug` shows the traceback too.",
    )

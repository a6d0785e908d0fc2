"""A page for each verb, from Typer."""

from __future__ import annotations

import textwrap
from functools import cache
from typing import Any

import typer

from zsadbench.cli.app import app

from .markdown import page, sentence, table


@cache
def verbs() -> dict[str, Any]:
    """Return every verb by name."""
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def index() -> str:
    """Return the page that lists the verbs."""
    rows = ((f"[`zsad {name}`]({name}.md)", sentence(verb.help or "")) for name, verb in verbs().items())
    return page(
        "Commands",
        "Every verb of the command line, with all its options.",
        "Each verb has `--help`. `zsad --install-completion` lets a shell complete verbs, options and ids. "
        "`--debug` shows the traceback of an error; [exit codes](../exit-codes.md) are the same everywhere.",
        table(("command", "what it does"), rows),
    )


def page_of(name: str, verb: Any) -> str:
    """Return the page of one verb, its sub-verbs included."""
    subs = getattr(verb, "commands", {})
    parts = [_usage(f"zsad {name}", verb, with_help=not subs)]
    for sub, command in subs.items():
        parts += [f"## zsad {name} {sub}", _usage(f"zsad {name} {sub}", command)]
    return page(f"zsad {name}", sentence(verb.help or ""), *parts)


def _usage(words: str, verb: Any, with_help: bool = True) -> str:
    text = textwrap.dedent(verb.help or "").strip()
    arguments = [one for one in verb.params if one.param_type_name == "argument"]
    options = [one for one in verb.params if one.param_type_name == "option" and not one.hidden]
    call = " ".join([words, *(["[OPTIONS]"] if options else []), *map(_argument, arguments)])
    parts = [text, f"```text\n{call}\n```" if with_help else "", _parameters_of(arguments)]
    panels: dict[str, list[Any]] = {}
    for one in options:
        panels.setdefault(getattr(one, "rich_help_panel", None) or "Options", []).append(one)
    for panel, inside in panels.items():
        if [one.name for one in inside] != ["help"]:
            parts += [f"**{panel}**", _parameters_of([one for one in inside if one.name != "help"])]
    parts.append(_examples_of(verb))
    return "\n\n".join(part for part in parts if part)


def _argument(one: Any) -> str:
    name = one.metavar or str(one.name).upper()
    more = "..." if one.nargs == -1 and not name.endswith("...") else ""
    return f"{name}{more}" if one.required else f"[{name}{more}]"


def _parameters_of(parameters: list[Any]) -> str:
    if not parameters:
        return ""
    rows = [(_name_of(one), _help_of(one)) for one in parameters]
    kind = "argument" if parameters[0].param_type_name == "argument" else "option"
    return table((kind, "what it does"), rows)


def _name_of(one: Any) -> str:
    if one.param_type_name == "argument":
        return f"`{_argument(one)}`"
    names = ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts))
    return names if one.is_flag else f"{names} {one.metavar or ''}".rstrip()


def _help_of(one: Any) -> str:
    text = (one.help or "").replace("<", "&lt;")
    default = one.default
    plain = isinstance(default, str | int | float) and not isinstance(default, bool) and default != ""
    return f"{text} Default: `{default}`." if plain else text


def _examples_of(verb: Any) -> str:
    lines = [line.strip() for line in (verb.epilog or "").splitlines() if line.strip().startswith("zsad")]
    shown = "\n".join(lines)
    return f"**{'Examples' if len(lines) > 1 else 'Example'}**\n\n```text\n{shown}\n```" if lines else ""

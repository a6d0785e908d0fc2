"""Words of ``zsad run`` from a file: ``--config run.toml`` and ``--like RECORD``.

What a file says stands where the command line says nothing; nothing else is read from it.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RecordError, UsageError, suggest
from ..method import as_text
from ..text import say, terminal

if TYPE_CHECKING:
    from ..records import Record

_LIKE = "zsad run --like"
"""Where a command keeps the record it repeats, and what the file of its backbone said."""


def _configured(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None and not context.resilient_parsing:
        _lay(context, _read(path), str(path))
    return path


def _repeated(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None and not context.resilient_parsing:
        record = _only(path)
        words = _command(record, path)
        backbone = record.observation["backbone"] or {}
        context.meta[_LIKE] = path, str(backbone.get("architecture") or "")
        parsed = context.command.make_context("run", words, resilient_parsing=True)
        given = {name: value for name, value in parsed.params.items() if _stated(parsed, name)}
        _require_run(context.command, given, path)
        given["method"] = _without_code(given.get("method") or (), path)
        context.default_map = {**(context.default_map or {}), **given}
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Take options from a TOML file: method = [...], dataset = [...], set = {...}.",
        is_eager=True,
        callback=_configured,
    ),
]
Like = Annotated[
    Path | None,
    typer.Option(
        "--like",
        metavar="RECORD",
        help="Repeat the run of a record: a record.json or its folder.",
        is_eager=True,
        callback=_repeated,
    ),
]


def _stated(context: Any, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"--config {terminal(path)}: no such file") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"--config {terminal(path)}: cannot be read as TOML ({error})") from None


def _lay(context: typer.Context, table: Mapping[str, Any], where: str) -> None:
    """Make ``table`` (option without its dashes -> value) the defaults of a command."""
    options = _options(context.command)
    found: dict[str, Any] = {}
    for name, value in table.items():
        option = options.get(name.replace("_", "-"))
        if option is None:
            raise UsageError(f"{terminal(where)}: '{terminal(name)}' is no option.{suggest(name, options)}")
        found[str(option.name)] = _value(option, name, value, where)
    context.default_map = {**(context.default_map or {}), **found}


def _options(command: Any) -> dict[str, Any]:
    """Return the options of a command by their long names; those about files like this are not among them."""
    return {
        name.lstrip("-"): option
        for option in command.params
        for name in option.opts
        if name.startswith("--") and not option.is_eager
    }


def _value(option: Any, name: str, value: Any, where: str) -> Any:
    """Return a value of TOML as the texts that the command line would hold."""
    if isinstance(value, Mapping):
        value = [f"{key}={as_text(one)}" for key, one in value.items()]
    several = bool(getattr(option, "multiple", False))
    if several:
        return [as_text(one) for one in (value if isinstance(value, list) else [value])]
    if isinstance(value, list):
        raise UsageError(f"{terminal(where)}: '{terminal(name)}' takes one value, not a list")
    if isinstance(value, bool) != bool(getattr(option, "is_flag", False)):
        kind = "true or false" if not isinstance(value, bool) else "a value, not true or false"
        raise UsageError(f"{terminal(where)}: '{terminal(name)}' must be {kind}")
    return value if isinstance(value, bool) else as_text(value)


def require_backbone(context: typer.Context, backbone: str | None) -> None:
    """Refuse a backbone's file that does not say what it said when the record of ``--like`` was made.

    Raises:
        UsageError: naming file and record.
        WeightsError: if the file is gone.
    """
    from ..clip import architecture_digest

    path, wanted = context.meta.get(_LIKE, (None, ""))
    if wanted and not _stated(context, "backbone") and architecture_digest(backbone or "") != wanted:
        raise UsageError(
            f"--like {terminal(path)}: the backbone declared in {terminal(backbone)} is another one now; "
            "bring the file of then back, or name one with --backbone for a run of its own"
        )


def _only(path: Path) -> Record:
    """Return the one record that is there."""
    from ..records import find_records

    found, problems = find_records([path])
    if not found:
        raise RecordError(problems[0] if problems else f"--like {terminal(path)}: no record is there")
    if len(found) > 1:
        raise UsageError(f"--like {terminal(path)}: {len(found)} records are there; name one record.json")
    return found[0]


def _command(record: Record, path: Path) -> list[str]:
    """Return the words that a record holds."""
    words = record.content.get("command")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UsageError(
            f"--like {terminal(path)}: holds no command (foreign maps and records of 0.1 have none); run it "
            "again by its parameters"
        )
    return words


def _require_run(command: Any, given: Mapping[str, Any], path: Path) -> None:
    """Refuse words that decide more than what is run: where anything is written, for instance."""
    from ..scoring import OPTIONS

    for option in command.params:
        if option.name in given and OPTIONS.isdisjoint(option.opts):
            name = option.opts[0]
            raise UsageError(f"--like {terminal(path)}: '{name}' is no part of a run; the record was changed")


def _without_code(methods: Sequence[str], path: Path) -> list[str]:
    """Return the methods less those of users: what lies in results names no code that runs."""
    from ..method import is_users

    left_out = [spec for spec in methods if is_users(spec)]
    for spec in left_out:
        say(f"{path}: its method is a user's; name the file again, as --method {spec}", sys.stderr)
    return [spec for spec in methods if spec not in left_out]

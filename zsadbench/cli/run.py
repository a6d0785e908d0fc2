"""``zsad run`` and ``zsad score``."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import Interrupted, UsageError
from ..text import say
from .options import (
    DATA,
    MACHINE,
    PROMPTS,
    AllowMissing,
    Categories,
    Checkpoints,
    Code,
    Data,
    Evaluation,
    Limit,
    Machine,
    Parameters,
    Settings,
    SkipBad,
    Spreading,
    Telling,
    Towers,
    Workers,
    dataset_ids,
    examples,
    method_ids,
    pairs,
)
from .repeat import Config, Like, require_backbone
from .verbs import grouped, within

if TYPE_CHECKING:
    from ..records import Record

TEXT = "Prompts"
RUNS = (
    "zsad run --method clip --dataset demo",
    "zsad run -m winclip -m anoclip -d mvtec --data /data/mvtec --protocol common-1",
    "zsad run -m anoclip -d path/to/folder --input-size 448",
)
SCORES = (
    "zsad score results/mvtec/anoclip/0123456789ab --protocol common-1",
    "zsad score --maps maps/ --dataset mvtec --name mine --scores scores.csv",
)


def register(app: typer.Typer) -> None:
    """Add the verbs to ``app``."""
    app.command("run", epilog=examples(*RUNS))(run)
    app.command("score", epilog=examples(*SCORES))(score)


@grouped
def run(
    *,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="ID",
            autocompletion=method_ids,
            help="A method id, id@variant, FILE.py:Class or 'all'; repeatable.",
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            "-d",
            metavar="ID",
            autocompletion=dataset_ids,
            help="A dataset id, a description (.toml) or a folder; repeatable.",
        ),
    ] = None,
    data: Data = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where records go.")] = Path(
        "results"
    ),
    category: Categories = None,
    limit: Limit = None,
    parameters: Parameters,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds", metavar="N", help="Runs of a method with chance in it.", callback=within(1, 1000)
        ),
    ] = 1,
    checkpoint: Checkpoints = None,
    allow_seen: Annotated[
        bool, typer.Option("--allow-seen", help="Test on images trained on too; marks the result.")
    ] = False,
    towers: Towers,
    wording: Annotated[
        str,
        typer.Option(
            "--wording",
            metavar="RULE",
            help="How categories are worded: method, key, spaced or words.",
            rich_help_panel=TEXT,
        ),
    ] = "method",
    words: Annotated[
        list[str] | None,
        typer.Option(
            "--words", metavar="CATEGORY=TEXT", help="Words for a category; repeatable.", rich_help_panel=TEXT
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help=PROMPTS, rich_help_panel=TEXT),
    ] = None,
    evaluation: Evaluation,
    machine: Machine,
    spreading: Spreading,
    skip_bad: SkipBad = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read every file again to see if it changed.", rich_help_panel=DATA),
    ] = False,
    latency: Annotated[
        bool,
        typer.Option(
            "--latency",
            help="Measure the latency of each method too: single images, warm.",
            rich_help_panel=MACHINE,
        ),
    ] = False,
    allow_missing: AllowMissing = False,
    follow_outside: Annotated[
        bool,
        typer.Option(
            "--follow-outside", help="Follow links that leave the dataset's folder.", rich_help_panel=DATA
        ),
    ] = False,
    telling: Telling,
    config: Config = None,
    like: Like = None,
    context: typer.Context,
) -> None:
    """Run one or several methods on a dataset in one pass over its images."""
    if not method:
        raise UsageError("name a method with --method (repeatable, or 'all'); see: zsad methods")
    if not dataset:
        raise UsageError("name a dataset with --dataset: an id, a .toml or a folder; see: zsad datasets")
    require_backbone(context, towers.backbone)
    from ..run import Request, execute

    request = Request(
        data=data,
        checkpoints=tuple(checkpoint or ()),
        allow_seen=allow_seen,
        wording=wording,
        words=pairs(words, "--words CATEGORY=TEXT"),
        prompts=prompts,
        settings=parameters.table(),
        limit=limit,
        categories=tuple(category) if category else None,
        seeds=seeds,
        protocol=evaluation.protocol,
        size=evaluation.size,
        mask_resize=evaluation.mask_resize,
        aupro_limits=tuple(evaluation.aupro_limit or ()),
        exact_maps=evaluation.exact_maps,
        metrics=tuple(evaluation.metric or ()),
        out=out,
        skip_bad=skip_bad,
        verify=verify,
        latency=latency,
        allow_missing=allow_missing,
        follow_outside=follow_outside,
        quiet=telling.quiet,
        progress=telling.progress,
        **vars(towers),
        **vars(machine),
        **vars(spreading),
    )
    told: list[str] = []

    def tell(note: str) -> None:
        told.append(note)
        say(note, sys.stderr)

    with interruptible("interrupted; what is observed is kept: repeat the command to go on there"):
        outcome = execute(method, dataset, request, _stop_on_interrupt(), tell)
    for note in outcome.notes[len(told) :]:
        say(note, sys.stderr)
    show(outcome.records)
    for name, reason in outcome.skipped.items():
        say(f"skipped {name}: {reason}", sys.stderr)
    if outcome.failed:
        _say_failed(outcome.failed)
        raise typer.Exit(3)


def _say_failed(failed: Mapping[str, str]) -> None:
    """Name the images that were left out, those of one reason together."""
    reasons: dict[str, list[str]] = {}
    for key, reason in failed.items():
        reasons.setdefault(reason, []).append(key)
    say(f"{len(failed)} images could not be read, or judged, and are left out:", sys.stderr)
    for reason, (first, *more) in reasons.items():
        others = f" and {len(more)} more" if more else ""
        say(f"  {first}{others}: {reason}", sys.stderr)


@grouped
def score(
    *,
    run_dirs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN_DIR]...", help="Folders of runs: results/DATASET/METHOD/ID."),
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option("--maps", metavar="DIR", help="Score foreign maps: files named after the sample keys."),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(
            "--scores", metavar="FILE", help="Image scores of the foreign maps: a csv with key,score."
        ),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="The foreign method's name on boards.")
    ] = "foreign",
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            "-d",
            metavar="ID",
            autocompletion=dataset_ids,
            help="The dataset of the foreign maps.",
        ),
    ] = None,
    data: Data = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Where records of foreign maps go.")
    ] = Path("results"),
    category: Annotated[
        list[str] | None,
        typer.Option("--category", metavar="NAME", help="Foreign maps: only this category; repeatable."),
    ] = None,
    settings: Settings = None,
    code: Code,
    evaluation: Evaluation,
    workers: Workers = None,
    spreading: Spreading,
    context: typer.Context,
) -> None:
    """Score runs again from their evidence, without CLIP; or score anomaly maps of other code."""
    if (not run_dirs) == (maps is None):
        raise UsageError("give either a run's folder or --maps DIR --dataset ID")
    options: dict[str, Any] = {
        "size": evaluation.size,
        "mask_resize": evaluation.mask_resize,
        "limits": tuple(evaluation.aupro_limit or ()),
        "exact": evaluation.exact_maps,
        "metrics": tuple(evaluation.metric or ()),
        "data": data,
        "workers": workers,
    }
    if run_dirs:
        from ..run import score_runs

        _refuse_given(context, ("scores", "name", "dataset", "out", "category"), "with --maps only")
        options |= {"settings": pairs(settings), "users": code.users(), **vars(spreading)}
        with interruptible("interrupted; repeat the command"):
            show(score_runs(run_dirs, evaluation.protocol, say=_tell, **options))
        return
    if dataset is None or maps is None:
        raise UsageError("foreign maps need the dataset they belong to: --dataset ID")
    from ..run import score_maps_record

    _refuse_given(context, ("settings", "method", "devices", "cluster"), "with a run's folder only")
    found = score_maps_record(
        maps,
        dataset,
        name=name,
        scores=scores,
        out=out,
        categories=category,
        protocol=evaluation.protocol,
        **options,
    )
    show([found])


def _tell(line: str) -> None:
    say(line, sys.stderr)


def _refuse_given(context: typer.Context, names: Sequence[str], where: str) -> None:
    """Refuse options that would be ignored."""
    for name in names:
        source = context.get_parameter_source(name)
        if source and source.name != "DEFAULT":
            option = "--set" if name == "settings" else f"--{name}"
            raise UsageError(f"{option} has a meaning {where}; leave it out")


def show(records: list[Record]) -> None:
    """Print the boards of ``records`` and where they lie."""
    from ..boards import boards, print_boards

    print_boards(boards(records))
    for warning in dict.fromkeys(text for r in records for text in r.content.get("warnings", ())):
        say(f"warning: {warning}", sys.stderr)
    for note in dict.fromkeys(note for record in records for note in record.notes):
        say(note, sys.stderr)
    for record in records:
        say(record.path.parent, sys.stderr)


@contextmanager
def interruptible(line: str = "interrupted") -> Iterator[None]:
    """End the command with ``line`` and its exit code when the user interrupts what is done inside."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(line) from None


def _stop_on_interrupt() -> threading.Event:
    """Return an event that the first Ctrl-C sets; the second one interrupts at once."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        with suppress(RuntimeError):  # interrupted in the middle of another line
            say("finishing the slice in work; press Ctrl-C again to stop at once", sys.stderr)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, ask)
    return stop

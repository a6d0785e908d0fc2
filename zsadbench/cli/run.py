"""``zsad run`` and ``zsad score``."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError

if TYPE_CHECKING:
    from ..records import Record

DATA = "Where the data lie"
CLIP = "CLIP"
TEXT = "Prompts"
EVALUATION = "Evaluation"
MACHINE = "Machine"

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="The dataset's folder, or one with a folder per id (else ZSAD_DATA).",
        rich_help_panel=DATA,
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option("--backbone", help="Another CLIP: a name of open_clip or a JSON.", rich_help_panel=CLIP),
]
Weights = Annotated[
    str | None, typer.Option("--weights", help="A tag, a file, or random[:SEED].", rich_help_panel=CLIP)
]
Activation = Annotated[
    str | None, typer.Option("--activation", help="auto, gelu or quick_gelu.", rich_help_panel=CLIP)
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set a parameter of the method; repeatable."),
]
Size = Annotated[
    int | None,
    typer.Option("--size", help="Evaluate maps and masks at this many pixels.", rich_help_panel=EVALUATION),
]
MaskResize = Annotated[
    str | None,
    typer.Option(
        "--mask-resize", metavar="RULE", help="bilinear50, nearest or native.", rich_help_panel=EVALUATION
    ),
]
Limits = Annotated[
    list[float] | None,
    typer.Option(
        "--aupro-limit",
        help="Also give AUPRO up to this false-positive rate; repeatable.",
        rich_help_panel=EVALUATION,
    ),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact-maps",
        help="Render maps step by step instead of by folded matrices.",
        rich_help_panel=EVALUATION,
    ),
]
Protocol = Annotated[
    str,
    typer.Option(
        "--protocol",
        help="reference, common-1 or legacy200; overrides make it custom.",
        rich_help_panel=EVALUATION,
    ),
]
Workers = Annotated[
    int | None, typer.Option("--workers", help="Threads that decode ahead.", rich_help_panel=MACHINE)
]


def register(app: typer.Typer) -> None:
    """Add the verbs to ``app``."""
    app.command("run")(run)
    app.command("score")(score)


def run(
    method: Annotated[
        list[str] | None,
        typer.Option("--method", "-m", help="A method id, id@variant, FILE.py:Class or 'all'; repeatable."),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", "-d", help="A dataset id, a description (.toml) or a folder; repeatable."),
    ] = None,
    data: Data = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where records go.")] = Path("results"),
    category: Annotated[
        list[str] | None, typer.Option("--category", help="Only this category; repeatable.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="At most so many images, spread over category and label.")
    ] = None,
    settings: Settings = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Runs of a method with chance in it.")] = 1,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option("--checkpoint", help="Checkpoint of a trained method; repeatable, a row for each."),
    ] = None,
    allow_seen: Annotated[
        bool, typer.Option("--allow-seen", help="Test on images trained on too; marks the result.")
    ] = False,
    backbone: Backbone = None,
    weights: Weights = None,
    activation: Activation = None,
    wording: Annotated[
        str,
        typer.Option(
            "--wording", help="How categories are worded: method, key, spaced or words.", rich_help_panel=TEXT
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
        typer.Option("--prompts", help="A TOML file of states and templates.", rich_help_panel=TEXT),
    ] = None,
    protocol: Protocol = "reference",
    size: Size = None,
    mask_resize: MaskResize = None,
    aupro_limit: Limits = None,
    exact_maps: Exact = False,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...", rich_help_panel=MACHINE)
    ] = "auto",
    dtype: Annotated[
        str, typer.Option("--dtype", help="fp32, bf16 or fp16 (image tower).", rich_help_panel=MACHINE)
    ] = "fp32",
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", help="Images per batch; halved when memory runs out.", rich_help_panel=MACHINE
        ),
    ] = None,
    workers: Workers = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out files with a problem.", rich_help_panel=DATA)
    ] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Accept categories without images.", rich_help_panel=DATA)
    ] = False,
    follow_outside: Annotated[
        bool,
        typer.Option(
            "--follow-outside", help="Follow links that leave the dataset's folder.", rich_help_panel=DATA
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Run one or several methods on a dataset in one pass over its images."""
    if not method:
        raise UsageError("name a method with --method (repeatable, or 'all'); see: zsad methods")
    if not dataset:
        raise UsageError("name a dataset with --dataset: an id, a .toml or a folder; see: zsad datasets")
    from ..run import Request, execute

    request = Request(
        data=data,
        backbone=backbone,
        weights=weights,
        activation=activation,
        checkpoints=tuple(checkpoint or ()),
        allow_seen=allow_seen,
        wording=wording,
        words=pairs(words, "--words CATEGORY=TEXT"),
        prompts=prompts,
        settings=pairs(settings, "--set NAME=VALUE"),
        limit=limit,
        categories=tuple(category) if category else None,
        seeds=seeds,
        protocol=protocol,
        size=size,
        mask_resize=mask_resize,
        aupro_limits=tuple(aupro_limit or ()),
        exact_maps=exact_maps,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        workers=workers,
        out=out,
        skip_bad=skip_bad,
        allow_missing=allow_missing,
        follow_outside=follow_outside,
        quiet=quiet,
    )
    try:
        outcome = execute(method, dataset, request, _stop_on_interrupt())
    except KeyboardInterrupt:
        print("interrupted; what is observed is kept: repeat the command to go on there", file=sys.stderr)
        raise typer.Exit(130) from None
    for note in outcome.notes:
        print(note, file=sys.stderr)
    show(outcome.records)
    for name, reason in outcome.skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    if outcome.failed:
        print(f"{len(outcome.failed)} images could not be read and are left out:", file=sys.stderr)
        for key, reason in outcome.failed.items():
            print(f"  {key}: {reason}", file=sys.stderr)
        raise typer.Exit(3)


def score(
    run_dir: Annotated[
        Path | None, typer.Argument(metavar="RUN_DIR", help="A run's folder: results/DATASET/METHOD/ID.")
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option("--maps", help="Score foreign maps: files named after the sample keys."),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option("--scores", help="Image scores of the foreign maps: a csv with key,score."),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="The foreign method's name on boards.")] = "foreign",
    dataset: Annotated[
        str | None, typer.Option("--dataset", "-d", help="The dataset of the foreign maps.")
    ] = None,
    data: Data = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where records of foreign maps go.")] = Path(
        "results"
    ),
    category: Annotated[
        list[str] | None, typer.Option("--category", help="Foreign maps: only this category; repeatable.")
    ] = None,
    settings: Settings = None,
    protocol: Protocol = "reference",
    size: Size = None,
    mask_resize: MaskResize = None,
    aupro_limit: Limits = None,
    exact_maps: Exact = False,
    workers: Workers = None,
) -> None:
    """Score a run again from its evidence, without CLIP; or score anomaly maps of other code."""
    if (run_dir is None) == (maps is None):
        raise UsageError("give either a run's folder or --maps DIR --dataset ID")
    options: dict[str, Any] = {
        "size": size,
        "mask_resize": mask_resize,
        "limits": tuple(aupro_limit or ()),
        "exact": exact_maps,
    }
    if run_dir is not None:
        from ..scoring import score_run

        chosen = pairs(settings, "--set NAME=VALUE")
        show([score_run(run_dir, protocol, data=data, settings=chosen, workers=workers, **options)])
        return
    if dataset is None or maps is None:
        raise UsageError("foreign maps need the dataset they belong to: --dataset ID")
    from ..run import score_maps_record

    show(
        [
            score_maps_record(
                maps,
                dataset,
                name=name,
                scores=scores,
                data=data,
                out=out,
                categories=category,
                protocol=protocol,
                workers=workers,
                **options,
            )
        ]
    )


def pairs(texts: list[str] | None, form: str) -> dict[str, str]:
    """Return ``NAME=VALUE`` texts as a table.

    Raises:
        UsageError: for a text without an equals sign.
    """
    table: dict[str, str] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"'{text}' is not of the form {form}")
        table[name.strip()] = value.strip()
    return table


def show(records: list[Record]) -> None:
    """Print the boards of ``records`` and where they lie."""
    from ..boards import boards, print_boards

    print_boards(boards(records))
    for warning in dict.fromkeys(text for r in records for text in r.content.get("warnings", ())):
        print(f"warning: {warning}", file=sys.stderr)
    for record in records:
        print(record.path.parent, file=sys.stderr)


def _stop_on_interrupt() -> threading.Event:
    """Return an event that the first Ctrl-C sets; the second one interrupts at once."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print("finishing the slice in work; press Ctrl-C again to stop at once", file=sys.stderr)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, ask)
    return stop

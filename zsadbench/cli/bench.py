"""``zsad bench``: speed as ratios measured in one run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..text import console, say, terminal
from .options import Parameters, examples, method_ids
from .report import write_json
from .verbs import grouped, within

if TYPE_CHECKING:
    from ..bench import MethodBench


@dataclass(frozen=True)
class Trial:
    """Options of ``zsad bench device`` and ``latency``."""

    goldens: Annotated[
        Path | None,
        typer.Option("--goldens", metavar="DIR", help="device: golden arrays (else those of the checkout)."),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="device, latency: write the rows as JSON too."),
    ] = None
    minutes: Annotated[
        float,
        typer.Option(
            "--minutes",
            metavar="N",
            help="device: how long it may take.",
            callback=within(0, 1440, above=True),
        ),
    ] = 7.5
    smoke: Annotated[
        bool, typer.Option("--smoke", help="device: miniatures and a few small images, to try the command.")
    ] = False


def register(app: typer.Typer) -> None:
    """Add the verb to ``app``."""
    app.command(
        "bench",
        epilog=examples(
            "zsad bench clip anoclip --input-size 336",
            "zsad bench metrics",
            "zsad bench latency anoclip metal-nut.onnx",
            "zsad bench device",
        ),
    )(bench)


@grouped
def bench(
    *,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="METHOD...|metrics|loader|train METHOD|latency METHOD|FILE.onnx...|device",
            help="What to measure.",
            autocompletion=method_ids,
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", metavar="NAME", help="Another CLIP than the method's.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="TAG|FILE", help="A tag, a file or random (the default)."),
    ] = None,
    parameters: Parameters,
    images: Annotated[
        int | None,
        typer.Option(
            "--images", metavar="N", help="How many images are generated.", callback=within(2, 100_000)
        ),
    ] = None,
    pixels: Annotated[
        int | None,
        typer.Option(
            "--pixels", metavar="PIXELS", help="Side of the generated images.", callback=within(16, 8192)
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            "--repeats",
            metavar="N",
            help="Interleaved repetitions: 3 unless given; of latency, calls: 100.",
            callback=within(1, 100_000),
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", metavar="N", help="Images per batch.", callback=within(1, 65536)),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="auto (the default), cpu, cuda ...")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="DTYPE", help="fp32 (the default), bf16 or fp16.")
    ] = None,
    words: Annotated[
        str | None, typer.Option("--words", metavar="WORDS", help="latency: what is seen, for the prompts.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint", metavar="FILE|hf://...", help="latency: of a trained method; else noise."
        ),
    ] = None,
    trial: Trial,
) -> None:
    """Measure methods, single calls, the metrics engine, the loader or a whole device on generated data."""
    kind, subjects = _kind(what or [])
    size = _given(images=images, pixels=pixels, repeats=repeats)
    towers = _given(backbone=backbone, weights=weights, settings=parameters.table() or None, device=device)
    batch = _given(batch_size=batch_size)
    if kind == "device":
        _bench_device(subjects, device or "auto", trial)
    elif kind in ("metrics", "loader"):
        _bench_part(kind, _given(images=images, size=pixels, repeats=repeats))
    elif kind == "latency":
        if batch:
            raise UsageError("latency is that of one image at a time; leave --batch-size out")
        _bench_latency(
            subjects, trial.out, size | towers | _given(dtype=dtype, words=words, checkpoint=checkpoint)
        )
    elif kind == "train":
        from ..bench import bench_train

        rows = bench_train(subjects[0], **size, **towers, **batch)
        _table(f"Training of {subjects[0]} against bare forward and backward passes", rows)
    else:
        from ..bench import bench_methods

        _show_methods(
            bench_methods(subjects, say=_progress, **size, **towers, **batch, **_given(dtype=dtype))
        )


def _kind(chosen: list[str]) -> tuple[str, list[str]]:
    """Return what to measure, and of which methods.

    Raises:
        UsageError: for words that do not go together.
    """
    first, rest = "".join(chosen[:1]), chosen[1:]
    fitting = {
        "device": True,
        "latency": bool(rest),
        "train": len(rest) == 1,
        "metrics": not rest,
        "loader": not rest,
    }
    if not chosen or not fitting.get(first, True) or fitting.keys() & set(rest):
        raise UsageError(
            "name one or several methods; or 'latency' and methods or exported files; or 'train' and a "
            "method; or 'metrics', 'loader' or 'device'"
        )
    return (first, rest) if first in fitting else ("methods", chosen)


def _bench_latency(subjects: Sequence[str], out: Path | None, options: Mapping[str, Any]) -> None:
    from ..bench import bench_latency

    found = bench_latency(subjects, **options)
    if str(out) != "-":
        _table(", ".join(f"{name} {value}" for name, value in found.about.items() if value != ""), found.rows)
        say("Milliseconds of single calls, after the first ones; those from a file read and decode it.")
    if out:
        write_json(str(out), vars(found))
        say(f"written to {out}", sys.stderr)


def _bench_device(specs: Sequence[str], device: str, trial: Trial) -> None:
    from ..bench import bench_device

    found = bench_device(
        device,
        out=trial.out,
        minutes=trial.minutes,
        smoke=trial.smoke,
        specs=specs,
        tell=lambda words: say(words, sys.stderr),
        goldens=trial.goldens,
    )
    about = {name: value for name, value in found.about.items() if name != "seconds" and value != ""}
    _table(", ".join(f"{name} {value}" for name, value in about.items()), found.rows)
    if found.file:
        say(f"written to {found.file}")
    if found.failed:
        say(f"{len(found.failed)} of {len(found.rows)} rows failed", sys.stderr)
        raise typer.Exit(1)


def _progress(line: str) -> None:
    say(line, sys.stderr)


def _bench_part(name: str, options: Mapping[str, Any]) -> None:
    if name == "metrics":
        from ..bench import bench_metrics

        _table("Metrics of one generated category", bench_metrics(**options))
    else:
        from ..bench import bench_loader, bench_memory

        _table("Loader against bare PIL", bench_loader(**options))
        _table("Memory over a long list", [bench_memory()])


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


_MEASURES = {
    "images_per_s": "images per second, whole pipeline",
    "tower_images_per_s": "images per second, bare tower",
    "ratio": "pipeline / bare tower (time)",
    "encode": "share: encoder",
    "decode": "share: waiting for images",
    "maps": "share: maps",
    "metrics": "share: masks and metrics",
    "idle": "encoder idle during the pass",
    "tflop": "operations of the encoder, one image (TFLOP)",
    "tflop_per_s": "encoder (TFLOP/s)",
    "product_tflop_per_s": "plain matrix product (TFLOP/s)",
    "of_product": "encoder / plain matrix product",
    "text_s": "text tower, once (s)",
    "latency_ms": "latency of one image, median (ms)",
    "latency_p95_ms": "latency of one image, 95 % (ms)",
}


def _show_methods(found: MethodBench) -> None:
    rows = [
        {"measure": words} | {row["method"]: row[name] for row in found.rows}
        for name, words in _MEASURES.items()
    ]
    _table(", ".join(f"{name} {value}" for name, value in found.setup.items()), rows)
    if found.shared:
        shared = found.shared
        say(
            f"together {shared['joint_s']:.2f} s, one after the other {shared['sum_s']:.2f} s: "
            f"{shared['ratio']:.2f} of the sum"
        )
    say("Shares are of the pipeline without the text tower; medians of interleaved repeats.")


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for number, name in enumerate(rows[0]):
        table.add_column(name.replace("_", " "), justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(terminal(_cell(value))) for value in row.values()))
    console().print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "" if value is None else str(value)

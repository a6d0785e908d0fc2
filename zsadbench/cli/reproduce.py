"""``zsad reproduce``: a method run as its authors published it, beside what they published."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DatasetError, UsageError
from ..text import say
from .options import Checkpoints, Data, Device, Quiet, Workers, dataset_ids, examples, method_ids
from .run import interruptible

if TYPE_CHECKING:
    from ..boards import Reproduction
    from ..method import Resolved
    from ..records import Published, Record

EXAMPLES = (
    "zsad reproduce anomalyclip --dataset visa --checkpoint anomalyclip.safetensors",
    "zsad reproduce --all --dataset demo",
)


def register(app: typer.Typer) -> None:
    """Add the verb to ``app``."""
    app.command("reproduce", epilog=examples(*EXAMPLES))(reproduce)


def reproduce(
    method: Annotated[
        str | None,
        typer.Argument(metavar="[METHOD]", autocompletion=method_ids, help="A method id, or id@variant."),
    ] = None,
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset", "-d", metavar="ID", autocompletion=dataset_ids, help="Where figures are published."
        ),
    ] = "",
    every: Annotated[bool, typer.Option("--all", help="Every method that has figures there.")] = False,
    data: Data = None,
    checkpoint: Checkpoints = None,
    board: Annotated[
        str | None,
        typer.Option(
            "--board",
            metavar="FILE|hf://...",
            help="Compare with this leaderboard.csv in place of published figures; for demo the shipped one.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where records go.")] = Path(
        "results"
    ),
    report: Annotated[
        Path,
        typer.Option("--report", metavar="DIR", help="Where reproduction.json and reproduction.md go."),
    ] = Path("reproduction"),
    device: Device = "auto",
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Run a method as published and judge each figure, to 0.5 points of an author's log, 1 of a paper.

    Exit code: 0 if what was judged agrees, 1 if a figure differs, 2 if none could be judged.
    """
    from ..boards import reproduction, write_reproductions
    from ..engine import pick_device
    from ..environment import environment
    from ..run import Request, execute
    from ..scoring import score_run

    if bool(method) == every or not dataset:
        raise UsageError("give a METHOD, or --all, and --dataset ID; see: zsad methods, zsad datasets")
    figures = _figures(dataset, board)
    methods = [method] if method else _with_figures(dataset, figures)
    files: tuple[str | Path, ...] = tuple(checkpoint or _shipped_checkpoints(dataset, methods))
    if figures is None or method:
        _require(methods, dataset, data, files)
    request = Request(data=data, checkpoints=files, device=device, workers=workers, out=out, quiet=quiet)
    with interruptible("interrupted; what is observed is kept: repeat the command to go on there"):
        # Of what is published one method may lack its checkpoint; a board wants all that stand on it.
        outcome = execute(["all"] if every and figures is None else methods, [dataset], request)
        records = [record for record in outcome.records if record.method in methods]
        # Papers have AUPRO from 200 thresholds too; of a board the rows of one protocol are compared.
        runs = [record.path.parents[1] for record in records if figures is None]
        records += [score_run(run, "legacy200", data=data, settings={}, workers=workers) for run in runs]
    for name, reason in outcome.skipped.items():
        say(f"skipped {name}: {reason}", sys.stderr)
    named: dict[str, list[Record]] = {}
    for record in records:
        named.setdefault(record.method, []).append(record)
    found = [reproduction(same, figures) for same in named.values()]
    _tell(found, quiet)
    about = environment(pick_device(device), "fp32")
    machine = ", ".join(f"{name} {value}" for name, value in about.items() if value)
    for path in write_reproductions(found, report, machine):
        say(path, sys.stderr)
    if any(one.verdict == "differs" for one in found):
        raise typer.Exit(1)
    if not any(one.verdict == "agrees" for one in found):
        why = dict.fromkeys(line.why for one in found for line in one.lines)
        reasons = ", ".join(why) or "no figure is known"
        raise UsageError(f"{', '.join(methods)} on {dataset}: nothing was judged ({reasons})")


def _figures(dataset: str, board: str | None) -> list[Published] | None:
    """Return the values of a board to compare with; None for the published figures."""
    from ..boards import board_figures
    from ..clip import local_file

    if board is None and dataset == "demo":
        return board_figures(_shipped("demo.csv"))
    return board_figures(local_file(board)) if board else None


def _shipped(name: str) -> Path:
    """Return a file of the committed boards, which a checkout has.

    Raises:
        UsageError: where it is not there.
    """
    from importlib import resources

    path = resources.files("zsadbench.results").joinpath(f"boards/{name}")
    if not isinstance(path, Path) or not path.exists():
        raise UsageError("only a checkout has the board of the demo; give one with --board FILE")
    return path


def _shipped_checkpoints(dataset: str, methods: Sequence[str]) -> list[Path]:
    """Return the checkpoints of ``methods`` that were trained on the demo's CLIP; none for other datasets."""
    if dataset != "demo":
        return []
    from ..clip import read_provenance

    ids = {name.partition("@")[0] for name in methods}
    files = sorted(_shipped("checkpoints").glob("*.safetensors"))
    return [file for file in files if read_provenance(file).method in ids]


def _with_figures(dataset: str, figures: Sequence[Published] | None) -> list[str]:
    """Return the methods, and variants, that have figures on a dataset."""
    from ..method import REFERENCE, method_cards
    from ..metrics import METRICS
    from ..records import published_figures

    cards = method_cards()
    if figures is not None:
        named = dict.fromkeys((one.method, one.variant) for one in figures if one.dataset == dataset)
        return [name if variant == REFERENCE else f"{name}@{variant}" for name, variant in named]
    found = [
        name
        for name in cards
        if any(
            published_figures(name, REFERENCE, dataset, "mean", METRICS, legacy) for legacy in (False, True)
        )
    ]
    if not found:
        raise UsageError(f"no figure on '{dataset}' is published of any method here; see: zsad datasets")
    return found


def _require(
    specs: Sequence[str], dataset: str, data: Path | None, checkpoints: Sequence[str | Path]
) -> None:
    """Refuse to begin without data, or where no method has weights and checkpoint.

    What there is to fetch is said, and what the runs will take.

    Raises:
        UsageError: naming all that is missing.
    """
    from ..data import shipped_description
    from ..method import resolve

    described = shipped_description(dataset)
    every = [resolve(spec, dataset=dataset, domain=described.domain) for spec in specs]
    lines = _missing_data(described, dataset, data)
    towers = [[] if described.backbone else _missing_weights(one) for one in every]
    lacking = [
        [*weights, *_missing_checkpoint(one, checkpoints)] for one, weights in zip(every, towers, strict=True)
    ]
    if lines or all(lacking):
        lines += dict.fromkeys(line for own in lacking for line in own)
        images = sum(described.expect.total) if described.expect else 0
        if not described.backbone:
            costs = {(one.method.backbone.name, one.method.preprocess.size): one for one in every}
            lines += [f"  The run itself: {_cost(one, images)}" for one in costs.values()]
        raise UsageError("\n".join([f"{', '.join(specs)} on {dataset} cannot be reproduced yet:", *lines]))


def _missing_data(described: Any, dataset: str, data: Path | None) -> list[str]:
    from ..data import load_dataset

    try:
        load_dataset(dataset, data, allow_missing=True)
    except DatasetError as error:
        reason = str(error).splitlines()[0]
        expect = described.expect
        counts = f"; {expect.total[0]} normal and {expect.total[1]} anomalous test images" if expect else ""
        return [
            f"  data: {described.title}, from {described.url} ({described.license}{counts}); unpack it and "
            f"pass --data DIR ({reason})"
        ]
    return []


def _missing_weights(resolved: Resolved) -> list[str]:
    from ..clip import missing, tags

    backbone = resolved.method.backbone
    if backbone.weights not in tags(backbone.name):
        return []
    where = missing(backbone.name, backbone.weights)
    name = f"{backbone.name} {backbone.weights}"
    return [f"  weights: {where}; zsad weights prefetch {name} fetches them"] if where else []


def _missing_checkpoint(resolved: Resolved, checkpoints: Sequence[str | Path]) -> list[str]:
    import os

    if not resolved.needs_checkpoint or checkpoints or os.environ.get("ZSAD_CHECKPOINTS"):
        return []
    card = resolved.card
    return [
        f"  checkpoint: the authors' file, from {card.code or card.paper}: zsad checkpoints import FILE "
        f"--method {card.id} --trained-on DATASET; or one trained by their recipe: zsad train --method "
        f"{card.id} --dataset DATASET --out FILE; then --checkpoint FILE"
    ]


def _cost(resolved: Resolved, images: int) -> str:
    """Return in words what the image tower alone takes: a bound from below."""
    import time

    import torch

    from ..clip import layers_and_patch, vision_width

    name, size = resolved.method.backbone.name, resolved.method.preprocess.size
    (layers, patch), width = layers_and_patch(name), vision_width(name)
    tokens = (size // patch) ** 2 + 1
    work = layers * (24.0 * tokens * width**2 + 4.0 * tokens**2 * width)
    square = torch.ones(1024, 1024)
    square @ square
    start = time.perf_counter()
    for _ in range(4):
        square @ square
    rate = 4 * 2 * 1024**3 / (time.perf_counter() - start)
    parameters = layers * 12.0 * width**2
    return (
        f"{images:,} images at {size} px are {images * work / 1e12:,.0f} TFLOP in the image tower alone, at "
        f"least {images * work / rate / 3600:.1f} h on this processor ({rate / 1e9:.0f} GFLOP/s measured), "
        f"with at least {4 * parameters / 1e9:.1f} GB for its weights"
    )


def _tell(found: Sequence[Reproduction], quiet: bool) -> None:
    from rich.table import Table

    from ..boards import REPRODUCTION_COLUMNS, reproduction_cells
    from ..text import console

    for one in found:
        say(one.summary)
        if quiet or not one.lines:
            continue
        table = Table(box=None, pad_edge=False)
        for name in REPRODUCTION_COLUMNS[:-1]:
            number = name in ("ours", "published", "difference", "allowed")
            table.add_column(name, justify="right" if number else "left")
        for line in one.lines:
            table.add_row(*reproduction_cells(line)[:-1])
        console().print(table)
        for reason in one.reasons:
            say(f"known: {reason}")

"""``zsad export``: a method as one file of ONNX, proven against torch."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import UsageError
from ..text import say
from .options import (
    PROMPTS,
    Categories,
    Checkpoint,
    Data,
    Parameters,
    Towers,
    dataset_ids,
    examples,
    method_ids,
)
from .report import write_json
from .verbs import Verbs, grouped, within

if TYPE_CHECKING:
    from ..deploy import Form
    from ..samples import Dataset
    from ..views import Setup

EXPORTS = (
    'zsad export anoclip --words "metal nut" --out metal-nut.onnx',
    "zsad export anoclip --threshold threshold.json --precision int8 --out metal-nut.onnx",
    'zsad export anoclip --words "metal nut" --validate mvtec --category metal_nut --data /data/mvtec',
)
PROOF = "Proof"


def register(app: Verbs) -> None:
    """Add the verb to ``app``."""
    app.command("export", epilog=examples(*EXPORTS))(export)


@grouped
def export(
    *,
    method: Annotated[
        str | None,
        typer.Argument(metavar="METHOD", autocompletion=method_ids, help="A method id or id@variant."),
    ] = None,
    words: Annotated[
        str, typer.Option("--words", metavar="WORDS", help='What is seen, for the prompts: "metal nut".')
    ] = "",
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where the model goes.")] = Path(
        "model.onnx"
    ),
    float_input: Annotated[
        bool, typer.Option("--float-input", help="The file takes normalised floats, not bytes.")
    ] = False,
    map_size: Annotated[
        Literal["full", "grid"],
        typer.Option(
            "--map", metavar="KIND", help="full: maps of the evaluation size; grid: one value per patch."
        ),
    ] = "full",
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option(
            "--precision",
            metavar="DTYPE",
            help="Numbers inside: fp32, fp16, or int8 for the weights of linear layers.",
        ),
    ] = "fp32",
    limit: Annotated[
        float | None,
        typer.Option(
            "--limit",
            metavar="SCORE",
            help="Above it images are NG; kept in the file.",
            callback=within(-1e308, 1e308),  # a finite number
        ),
    ] = None,
    threshold: Annotated[
        Path | None,
        typer.Option(
            "--threshold",
            metavar="FILE",
            help="A file of zsad calibrate, with its method, words and options; kept in the file.",
        ),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--images",
            metavar="FILE|DIR",
            help="Prove the file on these; repeatable.",
            rich_help_panel=PROOF,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--validate",
            metavar="ID|TOML|DIR",
            autocompletion=dataset_ids,
            help="Prove its metrics on the test images of a dataset, too.",
            rich_help_panel=PROOF,
        ),
    ] = None,
    data: Data = None,
    category: Categories = None,
    parameters: Parameters,
    prompts: Annotated[Path | None, typer.Option("--prompts", metavar="FILE", help=PROMPTS)] = None,
    checkpoint: Checkpoint = None,
    towers: Towers,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the proof as JSON; - prints it.")
    ] = None,
) -> None:
    """Write a method as a file of ONNX that runs without torch, and prove it: onnxruntime against torch.

    Exit code: 0, or 1 if the file differs from the method; then it is not kept.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    from ..deploy import Form
    from ..deploy import export as write
    from ..views import find_images

    if limit is not None and threshold:
        raise UsageError("--limit and --threshold both say when an image is NG; give one of them")
    if dataset is None and (data or category):
        raise UsageError("--data and --category belong to --validate; name its dataset, or leave them out")
    shown = find_images(images) if images else []
    stated = {
        **{"method": method, "words": words, "prompts": prompts, "checkpoint": checkpoint},
        **{"settings": parameters.table(), **vars(towers)},
    }
    given = {name: value for name, value in stated.items() if value}
    form = Form(not float_input, map_size == "grid", precision, limit)
    setup, form = _calibrated(threshold, given, form)
    checked = _dataset(dataset, data, category) if dataset else None
    found = write(setup, out, shown, form, dataset=checked)
    if json_file:
        write_json(json_file, found.as_json())
    if json_file != "-":
        say(found.words)
        say(out if found.passed else f"{out}: not written: the file differs from the method")
    if not found.passed:
        raise typer.Exit(1)


def _calibrated(threshold: Path | None, given: dict[str, Any], form: Form) -> tuple[Setup, Form]:
    """Return the setup of a threshold's file, where there is one, else of what is given."""
    from ..views import Setup, read_threshold, recalled

    given |= {"device": "cpu"}
    if threshold is None:
        if "method" not in given:
            raise UsageError("name a method, or a file of zsad calibrate with --threshold; see: zsad methods")
        return Setup(**given), form
    limit = read_threshold(threshold)
    return recalled(limit, threshold, given), replace(form, limit=limit)


def _dataset(name: str, data: Path | None, category: list[str] | None) -> Dataset:
    from ..data import load_dataset

    return load_dataset(name, data, categories=category or ())


def _require(*modules: str) -> None:
    for module in modules:
        if find_spec(module) is None:
            raise UsageError(f'this needs the package {module}: pip install "zsadbench[export]"')

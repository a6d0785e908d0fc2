"""``zsad export``: a method as one file of ONNX."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..text import say
from .options import PROMPTS, Checkpoint, Parameters, Towers, examples, method_ids
from .report import write_json
from .verbs import Verbs, grouped

EXPORTS = ('zsad export anoclip --words "metal nut" --out metal-nut.onnx',)


def register(app: Verbs) -> None:
    """Add the verb to ``app``."""
    app.command("export", epilog=examples(*EXPORTS))(export)


@grouped
def export(
    *,
    method: Annotated[
        str, typer.Argument(metavar="METHOD", autocompletion=method_ids, help="A method id or id@variant.")
    ],
    words: Annotated[
        str, typer.Option("--words", metavar="WORDS", help='What is seen, for the prompts: "metal nut".')
    ] = "",
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where the model goes.")] = Path(
        "model.onnx"
    ),
    float_input: Annotated[
        bool, typer.Option("--float-input", help="The file takes normalised floats, not bytes.")
    ] = False,
    images: Annotated[
        list[Path] | None,
        typer.Option("--images", metavar="FILE|DIR", help="Prove the file on these; repeatable."),
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option("--limit", metavar="SCORE", help="Above it images are NG; kept in the file."),
    ] = None,
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
    from ..deploy import export as write
    from ..views import Setup, find_images

    shown = find_images(images) if images else []
    setup = Setup(
        method,
        words,
        prompts=prompts,
        checkpoint=checkpoint,
        settings=parameters.table(),
        device="cpu",
        **vars(towers),
    )
    found = write(setup, out, shown, bytes_in=not float_input, threshold=limit)
    if json_file:
        write_json(json_file, found.as_json())
    if json_file != "-":
        say(found.words)
        say(out if found.passed else f"{out}: not written: the file differs from the method")
    if not found.passed:
        raise typer.Exit(1)


def _require(*modules: str) -> None:
    for module in modules:
        if find_spec(module) is None:
            raise UsageError(f'this needs the package {module}: pip install "zsadbench[export]"')

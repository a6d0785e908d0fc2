"""The application: every verb in its place, and the options of all of them."""

from __future__ import annotations

from typing import Annotated

import typer

from ..environment import VERSION
from ..text import say
from . import bench, compare, datasets, export, methods, predict, report, reproduce, run, train, weights
from .options import examples
from .verbs import Verbs

app = Verbs(
    name="zsad",
    help="Benchmark CLIP-based zero-shot anomaly detection: many methods, exact metrics, one board.",
    epilog=examples("zsad run --method clip --dataset demo", "zsad compare results", "zsad run --help"),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
run.register(app)
train.register(app)
compare.register(app)
reproduce.register(app)
predict.register(app)
export.register(app)
report.register(app)
app.add_typer(methods.app, name="methods")
app.add_typer(datasets.app, name="datasets")
app.add_typer(weights.app, name="weights")
app.add_typer(weights.demo, name="demo")
bench.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"zsad {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every verb."""

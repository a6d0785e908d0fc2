"""``zsad report`` and ``zsad figure``: a site and figures from records."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import UsageError

Results = Annotated[
    list[Path] | None,
    typer.Argument(metavar="RESULTS...", help="Folders of results, or record.json files. Default: results"),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Where the datasets lie now; default: where they lay when observed."),
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A .pdf, .png or .svg.")]
DatasetId = Annotated[str | None, typer.Option("--dataset", "-d", help="Only this dataset.")]
ProtocolId = Annotated[str | None, typer.Option("--protocol", help="Only this protocol.")]
Category = Annotated[str | None, typer.Option("--category", help="The category to show.")]
Methods = Annotated[
    list[str] | None, typer.Option("--method", "-m", help="Only this method, in this order; repeatable.")
]

Intervals = Annotated[
    bool, typer.Option("--intervals", help="Add 95 % intervals over images; pixel metrics take a while.")
]

figure = typer.Typer(
    name="figure",
    help="Figures for papers, from the records of one dataset and protocol.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def register(app: typer.Typer) -> None:
    """Add the verbs to ``app``."""
    app.command("report")(report)
    app.add_typer(figure, name="figure")


def report(
    paths: Results = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the report.")] = Path("report"),
    data: Data = None,
    gallery: Annotated[int, typer.Option("--gallery", min=0, help="Images in each gallery.")] = 8,
    intervals: Intervals = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Write a static site: boards, curves, histograms, galleries and the origin of every number."""
    _require("jinja2", "matplotlib")
    from ..views import build_report

    done = build_report(
        paths or [Path("results")],
        out,
        data=data,
        gallery=gallery,
        intervals=intervals,
        say=(lambda line: None) if quiet else _say,
    )
    for problem in done.problems:
        _say(f"not shown: {problem}")
    _say(f"{done.files} files, {done.bytes / 1e6:.1f} MB")
    typer.echo(done.index)


@figure.command("qualitative")
def qualitative(
    out: Out,
    paths: Results = None,
    keys: Annotated[
        list[str] | None, typer.Option("--keys", "-k", metavar="KEY", help="Show this image; repeatable.")
    ] = None,
    category: Category = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Images where no --keys are given.")] = 6,
    method: Methods = None,
    dataset: DatasetId = None,
    protocol: ProtocolId = None,
    data: Data = None,
) -> None:
    """Images in rows; the image, its mask and the map of every method in columns."""
    _require("matplotlib")
    from ..views import choose, qualitative_figure

    chosen = choose(paths or [Path("results")], dataset, protocol, method)
    qualitative_figure(chosen, out, keys=keys or [], category=category, rows=rows, data=data)
    typer.echo(out)


@figure.command("curves")
def curves(
    out: Out,
    paths: Results = None,
    category: Category = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="image-roc, image-pr, pixel-roc, pixel-pr, pixel-pro.")
    ] = None,
    method: Methods = None,
    dataset: DatasetId = None,
    protocol: ProtocolId = None,
    data: Data = None,
) -> None:
    """ROC, precision-recall and PRO curves of all methods in one category."""
    _require("matplotlib")
    from ..views import choose, curves_figure

    chosen = choose(paths or [Path("results")], dataset, protocol, method)
    curves_figure(chosen, out, category=category, kinds=kind or [], data=data)
    typer.echo(out)


@figure.command("bars")
def bars(
    out: Out,
    paths: Results = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="Show this metric; repeatable.")
    ] = None,
    category: Category = None,
    method: Methods = None,
    dataset: DatasetId = None,
    protocol: ProtocolId = None,
    intervals: Intervals = False,
) -> None:
    """One bar per method for each metric: the mean over categories, or one category."""
    _require("matplotlib")
    from ..views import bars_figure, choose

    by = "category" if category else None
    chosen = choose(paths or [Path("results")], dataset, protocol, method, by=by, intervals=intervals)
    bars_figure(chosen, out, metrics=metric or [], category=category)
    typer.echo(out)


def _require(*modules: Literal["jinja2", "matplotlib"]) -> None:
    import importlib.util

    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise UsageError(f'this needs the package {module}: pip install "zsadbench[report]"')


def _say(line: str) -> None:
    print(line, file=sys.stderr)

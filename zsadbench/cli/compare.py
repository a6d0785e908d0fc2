"""``zsad compare``: leaderboards from records, and the regression gate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import examples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..boards import Board
    from ..records import Record


COMPARISONS = (
    "zsad compare results --by category",
    "zsad compare results --metric image_auroc --format latex",
    "zsad compare results --baseline leaderboard.csv --tolerance 0.5",
)


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("compare", epilog=examples(*COMPARISONS))(compare)


def compare(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RESULTS...", help="Folders of results, or record.json files. Default: results"
        ),
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="category", help="One row per method and category.")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Show this metric; may be given several times.")
    ] = None,
    sort: Annotated[str | None, typer.Option(metavar="METRIC", help="Sort by this metric.")] = None,
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="table, csv, md, latex or json, or a comma list. One alone goes to stdout.",
        ),
    ] = "table",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the files; default: the first PATH.")
    ] = None,
    write: Annotated[bool, typer.Option(help="Write leaderboard.csv and leaderboard.md.")] = True,
    published: Annotated[bool, typer.Option(help="Show published numbers beside ours.")] = True,
    merge: Annotated[
        bool, typer.Option("--merge", help="Demand one table; refused where records do not belong together.")
    ] = False,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Give every number a 95 % interval and every method a rank.")
    ] = False,
    paired: Annotated[
        bool,
        typer.Option("--paired", help="Compare every pair of methods on the same images, first - second."),
    ] = False,
    replicates: Annotated[
        int, typer.Option(metavar="N", help="Bootstrap draws behind intervals and p-values.")
    ] = 1000,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A leaderboard.csv; exit code 1 when a value fell below it."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, metavar="POINTS", help="Percent points a value may fall.")
    ] = 0.1,
) -> None:
    """Compare records: one table per dataset and protocol, written beside the records.

    Intervals and pairs of pixel metrics are made from stored evidence, which takes a while the first time.
    """
    from ..boards import boards, in_order, known_formats, nothing_there
    from ..errors import RecordError
    from ..records import find_records

    chosen = known_formats(formats)
    where = paths or [Path("results")]
    records, problems = find_records(where)
    for problem in problems:
        _say(f"left out: {problem}")
    if not records:
        raise RecordError(nothing_there(where))
    tables = boards(
        in_order(records, where),
        metrics=metric,
        by=by,
        sort=sort,
        published=published,
        merge=merge,
        intervals=intervals,
        paired=paired,
        replicates=replicates,
        say=_say,
    )
    _print(tables, chosen, paired)
    if len(records) == 1:
        _say("Only one record here; run another method on the same dataset to compare it with.")
    passed = _gate(records, baseline, tolerance) if baseline else True
    if write:
        _write(tables, chosen, out, next((path for path in where if path.is_dir()), None), baseline)
    if not passed:
        raise typer.Exit(1)


def _print(tables: Sequence[Board], formats: Sequence[str], paired: bool) -> None:
    from ..boards import FORMATS, pairs_to_csv, print_boards

    if "table" in formats:
        print_boards(tables)
    elif paired and formats == ["csv"]:
        typer.echo(pairs_to_csv(tables), nl=False)
    elif len(formats) == 1:
        typer.echo(FORMATS[formats[0]](tables), nl=False)


def _write(
    tables: Sequence[Board],
    formats: Sequence[str],
    out: Path | None,
    beside: Path | None,
    baseline: Path | None,
) -> None:
    from ..boards import file_name, write_boards
    from ..errors import RecordError

    files = ["csv", "md"] if list(formats) == ["table"] else [name for name in formats if name != "table"]
    folder = out or (None if len(formats) == 1 and formats[0] != "table" else beside)
    if folder is None:
        return
    target = folder / file_name(tables, "csv")
    if baseline and target.exists() and target.samefile(baseline):
        _say(f"{target} is the baseline and stays as it is; give --out to write the new boards elsewhere.")
        return
    try:
        written = write_boards(tables, folder, files)
    except RecordError as error:
        if out:
            raise
        _say(f"not written: {error}")
    else:
        _say(f"Wrote {', '.join(map(str, written))}")


def _gate(records: Sequence[Record], baseline: Path, tolerance: float) -> bool:
    from ..boards import gate

    verdict = gate(records, baseline, tolerance)
    for line in verdict.improved:
        _say(f"improved: {line}")
    for line in verdict.fell:
        _say(f"fell: {line}")
    state = f"{len(verdict.fell)} fell" if verdict.fell else "passed"
    _say(f"Gate {state}: {verdict.compared} values against {baseline}, tolerance {tolerance:g} points.")
    return not verdict.fell


def _say(line: str) -> None:
    typer.echo(line, err=True)

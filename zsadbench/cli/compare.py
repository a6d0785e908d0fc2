"""``zsad compare``: leaderboards from records, and the regression gate."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..text import put, say
from .options import Code, InductiveOnly, examples
from .verbs import grouped, within

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..boards import Board
    from ..records import Record


COMPARISONS = (
    "zsad compare results --by category",
    "zsad compare results --metric image_auroc --format latex",
    "zsad compare results --intervals --group-by object",
    "zsad compare results --baseline leaderboard.csv --tolerance 0.5 --json",
)


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("compare", epilog=examples(*COMPARISONS))(compare)


@grouped
def compare(
    *,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RESULTS...", help="Folders of results, or record.json files. Default: results"
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="category|GROUP",
            help="A row per category, or per value of a group of images (lighting, view ...), and a column "
            "per method.",
        ),
    ] = None,
    per: Annotated[
        str | None,
        typer.Option(
            metavar="GROUP",
            help="One score per group of images, the highest of them (object: Real-IAD's sample level).",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="Show this metric; repeatable. mad: mean of seven; rank: average rank. What runs took: "
            "encode_ms, own_ms, images_per_s, latency_ms, latency_p95_ms, memory_mb.",
        ),
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
        Path | None,
        typer.Option(metavar="DIR", help="Folder for the files; default: the one PATH, none of several."),
    ] = None,
    write: Annotated[bool, typer.Option(help="Write leaderboard.csv and leaderboard.md.")] = True,
    published: Annotated[
        str,
        typer.Option(
            metavar="WHICH",
            help="Published figures: fitting (made under the same conditions), all (marked with what "
            "differs) or none.",
        ),
    ] = "fitting",
    no_published: Annotated[bool, typer.Option("--no-published", hidden=True)] = False,
    one_table: Annotated[
        bool, typer.Option("--one-table", help="With --format latex: all datasets side by side in one table.")
    ] = False,
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
        int,
        typer.Option(
            metavar="N", help="Bootstrap draws behind intervals and p-values.", callback=within(100, 100_000)
        ),
    ] = 1000,
    inductive_only: InductiveOnly = False,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="GROUP",
            help="Draw whole groups in intervals and pairs (patients, views, duplicates). A GROUP is a name "
            "of the dataset's description, a regular expression of keys, or a FILE.csv of key and group.",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|hf://...", help="A leaderboard.csv; exit code 1 when a value fell below it."
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            metavar="POINTS",
            help="Percent points a value may fall (an average rank: places).",
            callback=within(0, 100),
        ),
    ] = 0.1,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --baseline: the verdict as JSON on stdout, no table.")
    ] = False,
    log_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep what is told here too, with the time."),
    ] = None,
    code: Code,
) -> None:
    """Compare records: one table per dataset and protocol, written beside the records of one folder.

    Intervals and pairs of pixel metrics are made from stored evidence, which takes a while the first time.
    """
    from ..boards import boards, in_order, known_formats, nothing_there
    from ..clip import local_file
    from ..errors import RecordError, UsageError
    from ..records import find_records

    chosen = known_formats(formats)
    if as_json and baseline is None:
        raise UsageError("--json is the gate's verdict: give --baseline FILE; boards as JSON: --format json")
    if one_table and chosen != ["latex"]:
        raise UsageError("--one-table is a LaTeX table: give --format latex")
    board = local_file(baseline) if baseline else None
    where = paths or [Path("results")]
    records, problems = find_records(where)
    for problem in problems:
        _say(f"left out: {problem}")
    for note in (note for record in records for note in record.notes):
        _say(note)
    if no_published:
        _say("--no-published goes with 0.3: write --published none")
        published = "none"
    if not records:
        raise RecordError(nothing_there(where))
    tables = boards(
        in_order(records, where),
        metrics=metric,
        by=by,
        sort=sort,
        published=published,  # type: ignore[arg-type]  # boards() refuses others
        merge=merge,
        intervals=intervals,
        paired=paired,
        replicates=replicates,
        users=code.users(),
        inductive_only=inductive_only,
        per=per,
        group_by=group_by,
        say=_say,
    )
    if not as_json:
        _print(tables, chosen, paired, one_table)
    if len(records) == 1 and board is None:
        _say("Only one record here; run another method on the same dataset to compare it with.")
    passed = _gate(records, board, tolerance, as_json, inductive_only) if board else True
    if write:
        _write(tables, chosen, out, where, board, one_table)
    if not passed:
        raise typer.Exit(1)


def _print(tables: Sequence[Board], formats: Sequence[str], paired: bool, one_table: bool) -> None:
    from ..boards import FORMATS, joined_to_latex, pairs_to_csv, print_boards

    if "table" in formats:
        print_boards(tables)
    elif one_table:
        put(joined_to_latex(tables))
    elif paired and formats == ["csv"]:
        put(pairs_to_csv(tables))
    elif len(formats) == 1:
        put(FORMATS[formats[0]](tables))


def _write(
    tables: Sequence[Board],
    formats: Sequence[str],
    out: Path | None,
    paths: Sequence[Path],
    baseline: Path | None,
    one_table: bool,
) -> None:
    """Write the boards to ``out``, else beside the records where they lie in one folder."""
    from ..boards import file_name, write_boards
    from ..errors import RecordError

    files = ["csv", "md"] if list(formats) == ["table"] else [name for name in formats if name != "table"]
    alone = len(formats) == 1 and formats[0] != "table"  # went to stdout
    beside = paths[0] if len(paths) == 1 and paths[0].is_dir() else None
    folder = out or (None if alone else beside)
    if folder is None:
        if len(paths) > 1 and not alone:
            _say("Not written: there are several paths; give --out DIR to keep these boards.")
        return
    target = folder / file_name(tables, "csv")
    if baseline and target.exists() and target.samefile(baseline):
        _say(f"{target} is the baseline and stays as it is; give --out to write the new boards elsewhere.")
        return
    _say(f"Writing {', '.join(file_name(tables, name) for name in files)} into {folder}")
    try:
        write_boards(tables, folder, files, one_table=one_table)
    except RecordError as error:
        if out:
            raise
        _say(f"not written: {error}")


def _gate(
    records: Sequence[Record], baseline: Path, tolerance: float, as_json: bool, inductive_only: bool
) -> bool:
    from ..boards import gate

    verdict = gate(records, baseline, tolerance, inductive_only=inductive_only)
    if as_json:
        put(verdict.to_json())
    for line in verdict.notes:
        _say(f"note: {line}")
    for line in verdict.improved:
        _say(f"improved: {line}")
    for line in verdict.fell:
        _say(f"fell: {line}")
    if os.environ.get("GITHUB_ACTIONS"):
        for line in verdict.annotations():
            _say(line)
    _say(verdict.summary)
    return not verdict.fell


def _say(line: str) -> None:
    say(line, sys.stderr)

"""``zsad inspect``, ``report``, ``figure``, ``export-submission``: records and evidence to look at."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import RecordError, UsageError
from ..text import put, say
from .options import AllowChanged, Code, InductiveOnly, Quiet, dataset_ids, examples, method_ids
from .verbs import Verbs, grouped, within

if TYPE_CHECKING:
    from ..boards import Board
    from ..scoring import UserMethods

INSPECTIONS = (
    "zsad inspect results/mvtec/anoclip/0123456789ab --key bottle/test/broken_large/000.png --out map.png",
)
Results = Annotated[
    list[Path] | None,
    typer.Argument(metavar="RESULTS...", help="Folders of results, or record.json files. Default: results"),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", help="Where the datasets lie now; default: where they lay when observed."
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A .pdf, .png or .svg.")]
Category = Annotated[str | None, typer.Option("--category", metavar="NAME", help="The category to show.")]
Metric = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        metavar="ID",
        help="Show this metric; repeatable. mad: mean of seven; rank: average rank among what is shown.",
    ),
]
Intervals = Annotated[
    bool, typer.Option("--intervals", help="Add 95 % intervals over images; pixel metrics take a while.")
]


@dataclass(frozen=True)
class Choice:
    """Which rows of which board a figure shows."""

    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="ID|FILE:CLASS",
            autocompletion=method_ids,
            help="Only this method, in this order; FILE:CLASS for a user's, whose code renders its maps; "
            "repeatable.",
        ),
    ] = None
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", "-d", metavar="ID", autocompletion=dataset_ids, help="Only this dataset."),
    ] = None
    protocol: Annotated[str | None, typer.Option("--protocol", metavar="ID", help="Only this protocol.")] = (
        None
    )
    allow_changed: AllowChanged = False

    def methods(self) -> list[str]:
        """Return the ids of the methods to show; users' methods are imported for theirs."""
        from ..method import is_users, parse_spec

        return [parse_spec(name)[0].id if is_users(name) else name for name in self.method or ()]

    def users(self) -> UserMethods:
        """Return the users' methods among them, whose code may run."""
        from ..method import is_users
        from ..scoring import UserMethods

        return UserMethods(tuple(filter(is_users, self.method or ())), self.allow_changed)


figure = Verbs(
    name="figure",
    help="Figures for papers, from the records of one dataset and protocol.",
    no_args_is_help=True,
    epilog=examples("zsad figure bars results --out bars.pdf"),
    context_settings={"help_option_names": ["-h", "--help"]},
)


def register(app: typer.Typer) -> None:
    """Add the verbs to ``app``."""
    app.command("inspect", epilog=examples(*INSPECTIONS))(inspect)
    app.command("report", epilog=examples("zsad report results --out report/ --intervals"))(report)
    app.add_typer(figure, name="figure")
    export = "zsad export-submission results/mvtec_ad_2_private/anoclip/0123456789ab --out submission"
    app.command("export-submission", epilog=examples(export))(export_submission)


@grouped
def inspect(
    *,
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run's folder: results/...")],
    key: Annotated[
        str | None, typer.Option("--key", metavar="KEY", help="The image: its path below the dataset.")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option("--protocol", metavar="ID", help="Whose scores to show, where the run has several."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE|DIR", help="Write a picture of the map: a .png or a folder."
        ),
    ] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the answer as JSON; - prints it.")
    ] = None,
    code: Code,
) -> None:
    """Show what a run knows of one image: score parts, score, rank in its category, neighbours, map."""
    from ..views import describe, inspect_image, write_map

    found, missing, users = inspect_image(run_dir, key or "", protocol), None, code.users()
    try:
        if out:
            found["map"]["picture"] = str(write_map(run_dir, found, out, users))
    except RecordError as error:  # the numbers are shown all the same
        missing = error
    if json_file:
        write_json(json_file, found)
    if json_file != "-":
        say("\n".join(describe(found)))
    if missing:
        raise missing


@grouped
def report(
    *,
    paths: Results = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the report.")] = Path(
        "report"
    ),
    data: Data = None,
    gallery: Annotated[
        int, typer.Option("--gallery", metavar="N", help="Images in each gallery.", callback=within(0, 1000))
    ] = 8,
    metric: Metric = None,
    intervals: Intervals = False,
    code: Code,
    inductive_only: InductiveOnly = False,
    quiet: Quiet = False,
) -> None:
    """Write a static site: boards, curves, histograms, galleries and the origin of every number."""
    require("jinja2", "matplotlib")
    from ..views import build_report

    done = build_report(
        paths or [Path("results")],
        out,
        data=data,
        gallery=gallery,
        metrics=metric,
        intervals=intervals,
        users=code.users(),
        inductive_only=inductive_only,
        say=(lambda line: None) if quiet else _say,
    )
    for problem in done.problems:
        _say(f"not shown: {problem}")
    _say(f"{done.files} files, {done.bytes / 1e6:.1f} MB")
    say(done.index)


@figure.command("qualitative", epilog=examples("zsad figure qualitative results --out maps.pdf --rows 4"))
@grouped
def qualitative(
    *,
    out: Out,
    paths: Results = None,
    keys: Annotated[
        list[str] | None, typer.Option("--keys", "-k", metavar="KEY", help="Show this image; repeatable.")
    ] = None,
    category: Category = None,
    rows: Annotated[
        int,
        typer.Option(
            "--rows", metavar="N", help="Images where no --keys are given.", callback=within(1, 1000)
        ),
    ] = 6,
    choice: Choice,
    data: Data = None,
) -> None:
    """Images in rows; the image, its mask and the map of every method in columns."""
    require("matplotlib")
    from ..views import qualitative_figure

    board = _chosen(paths, choice)
    qualitative_figure(
        board, out, keys=keys or [], category=category, rows=rows, data=data, users=choice.users()
    )
    say(out)


@figure.command("curves", epilog=examples("zsad figure curves results --out curves.pdf --category bottle"))
@grouped
def curves(
    *,
    out: Out,
    paths: Results = None,
    category: Category = None,
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="KIND", help="image-roc, image-pr, pixel-roc, pixel-pr, pixel-pro."),
    ] = None,
    choice: Choice,
    data: Data = None,
) -> None:
    """ROC, precision-recall and PRO curves of all methods in one category."""
    require("matplotlib")
    from ..views import curves_figure

    board = _chosen(paths, choice)
    curves_figure(board, out, category=category, kinds=kind or [], data=data, users=choice.users())
    say(out)


@figure.command("bars", epilog=examples("zsad figure bars results --out bars.pdf --metric image_auroc"))
@grouped
def bars(
    *,
    out: Out,
    paths: Results = None,
    metric: Metric = None,
    category: Category = None,
    choice: Choice,
    intervals: Intervals = False,
) -> None:
    """One bar per method for each metric: the mean over categories, or one category."""
    require("matplotlib")
    from ..views import bars_figure

    by = "category" if category else None
    board = _chosen(paths, choice, metrics=metric, by=by, intervals=intervals)
    bars_figure(board, out, category=category)
    say(out)


def _chosen(paths: list[Path] | None, choice: Choice, **options: Any) -> Board:
    from ..views import choose

    where, users = paths or [Path("results")], choice.users()
    methods = choice.methods()
    return choose(where, choice.dataset, choice.protocol, methods, users=users, say=_say, **options)


def require(*modules: Literal["jinja2", "matplotlib"]) -> None:
    """Refuse where a package of the extra `report` is not installed."""
    import importlib.util

    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise UsageError(f'this needs the package {module}: pip install "zsadbench[report]"')


def write_json(target: str, content: Any) -> None:
    """Write a value as JSON to the file ``target``, or print it for ``-``."""
    from ..files import write_atomic

    text = json.dumps(content, indent=2)
    if target == "-":
        say(text)
    else:
        write_atomic(Path(target), f"{text}\n".encode())


def _say(line: str) -> None:
    say(line, sys.stderr)


@grouped
def export_submission(
    *,
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN_DIR", help="A finished run on mvtec_ad_2_private, with its evidence."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="A new folder to write into.")],
    protocol: Annotated[
        str, typer.Option(metavar="NAME", help="The protocol whose maps are exported.")
    ] = "reference",
    data: Data = None,
    code: Code,
    compress: Annotated[bool, typer.Option("--compress", help="Deflate the TIFF files.")] = False,
) -> None:
    """Write float16 maps and thresholded masks for the MVTec AD 2 benchmark server.

    Pack and check the folder with MVTec's check_and_prepare_data_for_upload.py before you upload it.
    """
    from ..records import RECORD, read_record
    from ..scoring import export_submission as written

    record = read_record(run / protocol / RECORD)
    found = written(record, out, data=data, users=code.users(), compress=compress, say=_say)
    put("category        threshold   above it   files\n")
    for one in found:
        files = " + ".join(map(str, one.images.values()))
        put(f"{one.category:<14}{one.threshold:>11.5g}{one.share:>11.2%}   {files}\n")
    for note in filter(None, (one.missing for one in found)):
        _say(f"warning: incomplete, the server refuses it: {note}")
    _say(f"Written into {out}")

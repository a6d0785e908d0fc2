"""``zsad export-submission``: a run in the layout of a benchmark server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..text import put, say
from .options import Code, Data, examples, grouped

EXPORTS = ("zsad export-submission results/mvtec_ad_2_private/anoclip/0123456789ab --out submission",)


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("export-submission", epilog=examples(*EXPORTS))(export)


@grouped
def export(
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
    from ..scoring import export_submission

    record = read_record(run / protocol / RECORD)
    found = export_submission(
        record, out, data=data, users=code.users(), compress=compress, say=lambda line: say(line, sys.stderr)
    )
    put("category        threshold   above it   files\n")
    for one in found:
        files = " + ".join(map(str, one.images.values()))
        put(f"{one.category:<14}{one.threshold:>11.5g}{one.share:>11.2%}   {files}\n")
    for note in filter(None, (one.missing for one in found)):
        say(f"warning: incomplete, the server refuses it: {note}", sys.stderr)
    say(f"Written into {out}", sys.stderr)

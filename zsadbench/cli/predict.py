"""``zsad predict`` and ``zsad calibrate``: single images instead of datasets."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..text import say, terminal
from .options import (
    PROMPTS,
    Checkpoint,
    Machine,
    Parameters,
    Quiet,
    Towers,
    examples,
    method_ids,
)
from .report import require, write_json
from .run import interruptible
from .verbs import grouped, within

if TYPE_CHECKING:
    from ..views import Prediction, Predictor, Setup, Threshold

PARTS = "Parts of an image"
PREDICTIONS = (
    'zsad predict photos/ --method anoclip --words "metal nut" --report predictions/',
    "zsad predict photos/ --threshold threshold.json --out overlays/",
    "zsad predict photos/ --reference threshold.json",
)
CALIBRATIONS = (
    'zsad calibrate --normal good/ --fpr 0.01 -m anoclip --words "metal nut" --out threshold.json',
    "zsad calibrate --from threshold.json --fpr 0.05 --out looser.json",
)


@dataclass(frozen=True)
class Subject:
    """The method with the words for what it is shown, or a file that holds both."""

    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "-m",
            metavar="ID",
            autocompletion=method_ids,
            help="A method id, id@variant or FILE.py:Class.",
        ),
    ] = None
    words: Annotated[
        str, typer.Option("--words", metavar="WORDS", help='What is seen, for the prompts: "metal nut".')
    ] = ""
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FILE", help="A file of zsad export, in place of --method."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class View:
    """How the method sees: its parameters, prompts, CLIP, the parts of an image, the machine."""

    parameters: Parameters
    prompts: Annotated[Path | None, typer.Option("--prompts", metavar="FILE", help=PROMPTS)] = None
    checkpoint: Checkpoint = None
    towers: Towers
    tile: Annotated[
        int | None,
        typer.Option(
            "--tile",
            metavar="PIXELS",
            help="Cut large images into squares of this side; the score is the maximum over them.",
            rich_help_panel=PARTS,
            callback=within(1),
        ),
    ] = None
    overlap: Annotated[
        float,
        typer.Option(
            "--overlap",
            metavar="PART",
            help="The part of a tile that neighbours share.",
            rich_help_panel=PARTS,
            callback=within(0, 0.9),
        ),
    ] = 0.25
    roi: Annotated[
        str | None,
        typer.Option(
            "--roi",
            metavar="X,Y,W,H",
            help="Look at this region only, in pixels of the upright image.",
            rich_help_panel=PARTS,
        ),
    ] = None
    machine: Machine


def register(app: typer.Typer) -> None:
    """Add the verbs to ``app``."""
    app.command("predict", epilog=examples(*PREDICTIONS))(predict)
    app.command("calibrate", epilog=examples(*CALIBRATIONS))(calibrate)


@grouped
def predict(
    *,
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE|DIR...", help="Image files, or folders of them.")
    ] = None,
    subject: Subject,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Write an overlay of each image into this folder."),
    ] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON; - prints them.")
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option("--scale", metavar="MIN,MAX", help="Map values of the overlays' first and last colour."),
    ] = None,
    threshold: Annotated[
        Path | None,
        typer.Option(
            "--threshold", metavar="FILE", help="A file of zsad calibrate: say OK or NG; any NG exits with 1."
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            metavar="FILE",
            help="A file of zsad calibrate: say whether scores have moved since; no exit code changes.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="DIR", help="Write a page and a CSV of all images, highest first."),
    ] = None,
    view: View,
    quiet: Quiet = False,
    context: typer.Context,
) -> None:
    """Score images and show where they are anomalous; needs no dataset.

    With --threshold or --reference nothing of what zsad calibrate was given has to be repeated.
    Exit code: 0, or 1 if any image is NG, else 3 if any could not be read.
    """
    from ..deploy import threshold_of
    from ..views import (
        IMAGES,
        NG,
        Site,
        as_json,
        drift,
        find_images,
        parse_scale,
        read_threshold,
        require_scores,
        write_predictions,
    )
    from ..views import predict as run

    pinned = parse_scale(scale) if scale else None
    images = find_images(paths or [], out, _say_left_out)
    limit = read_threshold(threshold) if threshold else None
    normal = read_threshold(reference) if reference else None
    if normal and reference:
        require_scores(normal, reference)
    files = {path: one for path, one in ((threshold, limit), (reference, normal)) if path and one}
    predictor = _fitting(files, _given(subject, view, context), subject.model)
    limit = limit or threshold_of(predictor)
    if report:
        require("jinja2")
    site = Site(report) if report else None
    pictures = site.folder / IMAGES if site else None
    with interruptible():
        found, used = run(
            predictor,
            images,
            out=out or pictures,
            scale=pinned,
            threshold=limit,
            thumbnails=pictures,
            quiet=quiet,
        )
    moved = drift(normal, [one.score for one in found if one.score is not None]) if normal else None
    if json_file:
        content = as_json(predictor, found, used, limit.value if limit else predictor.limit)
        write_json(json_file, content | ({"drift": vars(moved) | {"moved": moved.moved}} if moved else {}))
    if json_file != "-":
        _show_scores(predictor, found, limit)
        if out:
            say(f"overlays in {out}, colours from {used[0]:.4g} to {used[1]:.4g}")
    if site:
        page = write_predictions(site, predictor, found, used, limit)
        if json_file != "-":
            say(page)
    _say_notes(found)
    if moved:
        say(f"{'warning' if moved.moved else 'note'}: {moved.words}", sys.stderr)
    failed = _say_failed(found)
    if any(one.verdict == NG for one in found):
        raise typer.Exit(1)
    if failed:
        raise typer.Exit(3)


@grouped
def calibrate(
    *,
    normal: Annotated[
        list[Path] | None,
        typer.Option(
            "--normal", metavar="FILE|DIR", help="A folder of normal images, or a file; repeatable."
        ),
    ] = None,
    fpr: Annotated[
        float,
        typer.Option(
            "--fpr",
            metavar="RATE",
            help="The part of normal images that may be called NG.",
            callback=within(0, 1),
        ),
    ] = 0.01,
    kept: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="Take the scores from this threshold file: no image is scored."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="Where the threshold goes.")
    ] = Path("threshold.json"),
    force: Annotated[
        bool, typer.Option("--force", help="Accept fewer images than the rate needs (1 / FPR).")
    ] = False,
    subject: Subject,
    view: View,
    quiet: Quiet = False,
    context: typer.Context,
) -> None:
    """Find the threshold that a given part of normal images exceeds, for predict --threshold."""
    from ..views import check_enough, find_images, read_threshold, refit, write_threshold

    given, failed = _given(subject, view, context), 0
    if kept:
        if normal or given or subject.model:
            raise UsageError(
                "--from takes images, method and options from its file; give --fpr and --out only"
            )
        limit = refit(read_threshold(kept), fpr, kept, force=force)
        _spare(kept, out, context)
    else:
        if not normal:
            raise UsageError("name a folder of normal images with --normal, or a threshold file with --from")
        images = find_images(normal, say=_say_left_out)
        check_enough(len(images), fpr, force)
        limit, failed = _calibrated(_fitting({}, given, subject.model), images, fpr, force, quiet)
    write_threshold(out, limit, limit.about)
    say(limit.words)
    rule = limit.about.get("rule")
    say(f"scores are {rule}; the smallest rate so many images can tell is {limit.smallest_fpr:.2%}")
    say(f"with 95 % confidence at most {limit.upper:.2%} of such images will be NG")
    say(str(out))
    if failed:
        raise typer.Exit(3)


def _calibrated(
    predictor: Predictor, images: Sequence[Path], fpr: float, force: bool, quiet: bool
) -> tuple[Threshold, int]:
    """Return the threshold of normal images, and how many of them could not be read."""
    from ..views import check_alone, fit
    from ..views import predict as run

    check_alone(predictor)
    with interruptible():
        found, _ = run(predictor, images, quiet=quiet)
    _say_notes(found)
    failed = _say_failed(found)
    scores = [one.score for one in found if one.score is not None]
    limit = fit(scores, fpr, predictor.identity(), predictor.engine.names(), force=force)
    return replace(limit, about=predictor.about()), failed


def _spare(kept: Path, out: Path, context: typer.Context) -> None:
    """Refuse to write over the file that is read, unless --out names it."""
    source = context.get_parameter_source("out")
    if out.resolve() == kept.resolve() and source is not None and source.name == "DEFAULT":
        raise UsageError(f"--from {terminal(kept)}: name the new file with --out")


def _given(subject: Subject, view: View, context: typer.Context) -> dict[str, Any]:
    """Return what the user states of a setup, by its fields; defaults are not among it."""
    from ..views import parse_roi

    stated = {
        **{"method": subject.method, "words": subject.words, "settings": view.parameters.table()},
        **{
            "prompts": view.prompts,
            "checkpoint": view.checkpoint,
            "tile": view.tile,
            "overlap": view.overlap,
        },
        "roi": parse_roi(view.roi) if view.roi else None,
        **vars(view.towers),
        **vars(view.machine),
    }

    def named(field: str) -> bool:
        options = {"settings": ("settings", "input_size")}.get(field, (field,))
        sources = [context.get_parameter_source(option) for option in options]
        return any(source is not None and source.name != "DEFAULT" for source in sources)

    return {field: value for field, value in stated.items() if named(field)}


def _setup(given: Mapping[str, Any]) -> Setup:
    from ..deploy import is_model
    from ..views import Setup

    if not given.get("method"):
        raise UsageError("name a method with --method; see: zsad methods")
    if is_model(given["method"]):
        raise UsageError(f"--method {terminal(given['method'])}: give an exported file with --model")
    return Setup(**given)


def _fitting(files: Mapping[Path, Threshold], given: Mapping[str, Any], model: Path | None) -> Predictor:
    """Return the predictor of a ``model``, or that the first threshold file names; all must fit it."""
    from ..deploy import load_file
    from ..views import check_fits, recalled

    if model:
        predictor = load_file(model, given)
    else:
        setup = next((recalled(one, path, given) for path, one in files.items()), None)
        predictor = _ready(setup or _setup(given))
    for path, one in files.items():
        check_fits(one, predictor, path)
    return predictor


def _ready(setup: Setup) -> Predictor:
    """Return the predictor of a setup, and tell what was chosen for the user."""
    from ..views import Predictor

    predictor = Predictor(setup)
    for remark in predictor.engine.remarks():
        say(f"note: {remark}", sys.stderr)
    return predictor


def _show_scores(predictor: Predictor, found: Sequence[Prediction], limit: Threshold | None) -> None:
    backbone, weights = predictor.engine.tower
    say(f'{predictor.engine.id} on {backbone}/{weights}, words "{predictor.engine.words}"')
    say(f"scores are {predictor.rule}; higher is more anomalous")
    if limit:
        say(limit.words)
    for one in found:
        score = "failed" if one.score is None else f"{one.score:.6g}"
        words = [
            f"{score:>12}",
            *([f"{one.verdict or '-':2}"] if limit or one.verdict else []),
            terminal(one.path),
        ]
        say("  ".join(words))


def _say_left_out(note: str) -> None:
    say(f"note: {note}", sys.stderr)


def _say_notes(found: Sequence[Prediction]) -> None:
    counts: dict[str, int] = {}
    for note in (note for one in found for note in one.notes):
        counts[note] = counts.get(note, 0) + 1
    for note, number in counts.items():
        say(f"note: {number} of {len(found)} images: {note}", sys.stderr)


def _say_failed(found: Sequence[Prediction]) -> int:
    """Report the images that could not be read; returns how many."""
    failed = [one for one in found if one.error is not None]
    if failed:
        say(f"{len(failed)} of {len(found)} images could not be scored:", sys.stderr)
    for one in failed:
        say(f"  {terminal(one.path)}: {one.error}", sys.stderr)
    return len(failed)

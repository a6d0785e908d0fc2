"""``zsad predict``, ``zsad calibrate`` and ``zsad inspect``: single images instead of datasets."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RecordError, UsageError
from ..text import say, terminal
from .options import (
    PROMPTS,
    Checkpoint,
    Code,
    Machine,
    Parameters,
    Quiet,
    Towers,
    examples,
    grouped,
    method_ids,
)
from .report import require
from .run import interruptible
from .verbs import within

if TYPE_CHECKING:
    from ..views import Prediction, Predictor, Setup, Threshold

PARTS = "Parts of an image"
PREDICTIONS = (
    'zsad predict photos/ --method anoclip --words "metal nut" --report predictions/',
    "zsad predict photos/ --threshold threshold.json --out overlays/",
)
CALIBRATIONS = (
    'zsad calibrate --normal good/ --fpr 0.01 -m anoclip --words "metal nut" --out threshold.json',
)
INSPECTIONS = (
    "zsad inspect results/mvtec/anoclip/0123456789ab --key bottle/test/broken_large/000.png --out map.png",
)


@dataclass(frozen=True)
class Subject:
    """The method, and the words for what it is shown."""

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
    app.command("inspect", epilog=examples(*INSPECTIONS))(inspect)


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
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="DIR", help="Write a page and a CSV of all images, highest first."),
    ] = None,
    view: View,
    quiet: Quiet = False,
    context: typer.Context,
) -> None:
    """Score images and show where they are anomalous; needs no dataset.

    With --threshold nothing of what zsad calibrate was given has to be repeated.
    Exit code: 0, or 1 if any image is NG, else 3 if any could not be read.
    """
    from ..views import (
        IMAGES,
        NG,
        Site,
        as_json,
        check_fits,
        find_images,
        parse_scale,
        read_threshold,
        recalled,
        write_predictions,
    )
    from ..views import predict as run

    pinned = parse_scale(scale) if scale else None
    images = find_images(paths or [], out, _say_left_out)
    limit = read_threshold(threshold) if threshold else None
    given = _given(subject, view, context)
    if limit and threshold:
        predictor = _ready(recalled(limit, threshold, given))
        check_fits(limit, predictor, threshold)
    else:
        predictor = _ready(_setup(given))
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
    if json_file:
        _write_json(json_file, as_json(predictor, found, used, limit.value if limit else None))
    if json_file != "-":
        _show_scores(predictor, found, limit)
        if out:
            say(f"overlays in {out}, colours from {used[0]:.4g} to {used[1]:.4g}")
    if site:
        page = write_predictions(site, predictor, found, used, limit)
        if json_file != "-":
            say(page)
    _say_notes(found)
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
    from ..views import check_alone, check_enough, find_images, fit, write_threshold
    from ..views import predict as run

    if not normal:
        raise UsageError("name a folder of normal images with --normal")
    images = find_images(normal, say=_say_left_out)
    check_enough(len(images), fpr, force)
    predictor = _ready(_setup(_given(subject, view, context)))
    check_alone(predictor)
    with interruptible():
        found, _ = run(predictor, images, quiet=quiet)
    _say_notes(found)
    failed = _say_failed(found)
    scores = [one.score for one in found if one.score is not None]
    limit = fit(scores, fpr, predictor.identity(), predictor.names(), force=force)
    write_threshold(out, limit, predictor.about())
    say(limit.words)
    say(f"scores are {predictor.rule}; the smallest rate so many images can tell is {limit.smallest_fpr:.2%}")
    say(f"with 95 % confidence at most {limit.upper:.2%} of such images will be NG")
    say(str(out))
    if failed:
        raise typer.Exit(3)


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
        _write_json(json_file, found)
    if json_file != "-":
        say("\n".join(describe(found)))
    if missing:
        raise missing


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
    from ..views import Setup

    if not given.get("method"):
        raise UsageError("name a method with --method; see: zsad methods")
    return Setup(**given)


def _ready(setup: Setup) -> Predictor:
    """Return the predictor of a setup, and tell what was chosen for the user."""
    from ..method import WORDLESS
    from ..views import DEFAULT_WORDS, Predictor

    predictor = Predictor(setup)
    if predictor.resolved.card.wording == WORDLESS:
        if setup.words.strip():
            say(
                f"note: the prompts of {predictor.resolved.id} name nothing, so --words changes nothing",
                sys.stderr,
            )
    elif not setup.words.strip():
        say(
            f'note: no --words, so the prompts say "{DEFAULT_WORDS}"; name what is seen for better scores',
            sys.stderr,
        )
    name, own = predictor.method.backbone.name, predictor.resolved.card.backbone
    if setup.checkpoint and not setup.backbone and not own.startswith(f"{name}/"):
        say(f"note: on {name}, which the checkpoint was trained on", sys.stderr)
    return predictor


def _show_scores(predictor: Predictor, found: Sequence[Prediction], limit: Threshold | None) -> None:
    backbone = predictor.method.backbone
    say(f'{predictor.resolved.id} on {backbone.name}/{backbone.weights}, words "{predictor.words}"')
    say(f"scores are {predictor.rule}; higher is more anomalous")
    if limit:
        say(limit.words)
    for one in found:
        score = "failed" if one.score is None else f"{one.score:.6g}"
        words = [f"{score:>12}", *([f"{one.verdict or '-':2}"] if limit else []), terminal(one.path)]
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


def _write_json(target: str, content: Any) -> None:
    from ..files import write_atomic

    text = json.dumps(content, indent=2)
    if target == "-":
        say(text)
    else:
        write_atomic(Path(target), f"{text}\n".encode())

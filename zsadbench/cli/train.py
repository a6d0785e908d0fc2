"""``zsad train`` and ``zsad checkpoints``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..cards import card_paths
from ..errors import UsageError, suggest
from ..text import say
from .options import (
    MACHINE,
    AllowMissing,
    Categories,
    Data,
    Device,
    Limit,
    Parameters,
    SkipBad,
    Telling,
    Towers,
    Workers,
    dataset_ids,
    examples,
    method_ids,
)
from .run import interruptible
from .verbs import Verbs, grouped, within

if TYPE_CHECKING:
    from ..clip import Provenance

RECIPE = "Recipe (else the authors')"
SHOWN = 4
"""Entries of a list that `show` prints, and files that are no checkpoints that `list` does."""

TRAININGS = (
    "zsad train --method anomalyclip --dataset visa --out anomalyclip.safetensors",
    "zsad train -m aa-clip -d visa --shots 64 --set text_epochs=3 --out aa.safetensors",
)

checkpoints = Verbs(
    help="List, show and fetch checkpoints, and convert those of a method's authors.",
    no_args_is_help=True,
    epilog=examples("zsad checkpoints list checkpoints/"),
)


def register(app: typer.Typer) -> None:
    """Add the verbs to ``app``."""
    app.command("train", epilog=examples(*TRAININGS))(train)
    app.add_typer(checkpoints, name="checkpoints")


@grouped
def train(
    *,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "-m",
            metavar="ID",
            autocompletion=method_ids,
            help="A trained method: an id, or id@variant.",
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            "-d",
            metavar="ID",
            autocompletion=dataset_ids,
            help="What to train on: an id, a .toml or a folder; repeatable.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The checkpoint, a .safetensors file.")
    ] = None,
    data: Data = None,
    category: Categories = None,
    limit: Limit = None,
    shots: Annotated[
        int | None,
        typer.Option(
            "--shots",
            metavar="N",
            help="So many images per category, half of them normal.",
            rich_help_panel=RECIPE,
            callback=within(2),
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs",
            metavar="N",
            help="Epochs (AA-CLIP: of its image side).",
            rich_help_panel=RECIPE,
            callback=within(1, 4096),
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            help="Start values, order, augmentation.",
            rich_help_panel=RECIPE,
            callback=within(0, 2**32 - 1),
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            help="Images per step.",
            rich_help_panel=RECIPE,
            callback=within(1, 65536),
        ),
    ] = None,
    parameters: Parameters,
    towers: Towers,
    device: Device = "auto",
    memory: Annotated[
        float,
        typer.Option(
            "--memory",
            metavar="GIB",
            help="GiB of frozen features kept in memory.",
            rich_help_panel=MACHINE,
            callback=within(0, 1e6),
        ),
    ] = 4.0,
    disk: Annotated[
        float,
        typer.Option(
            "--disk",
            metavar="GIB",
            help="GiB of them kept in a file otherwise.",
            rich_help_panel=MACHINE,
            callback=within(0, 1e6),
        ),
    ] = 64.0,
    workers: Workers = None,
    skip_bad: SkipBad = False,
    allow_missing: AllowMissing = False,
    telling: Telling,
) -> None:
    """Train a method on auxiliary datasets; repeated after an interruption it goes on."""
    if not method or not dataset or out is None:
        raise UsageError("zsad train needs --method METHOD --dataset DATASET --out FILE.safetensors")
    given = parameters.table()
    from ..training import TrainRequest, execute

    request = TrainRequest(
        data=data,
        settings=given,
        shots=shots,
        epochs=epochs,
        seed=seed,
        batch_size=batch_size,
        limit=limit,
        categories=tuple(category) if category else None,
        device=device,
        workers=workers,
        memory_gb=memory,
        disk_gb=disk,
        skip_bad=skip_bad,
        allow_missing=allow_missing,
        quiet=telling.quiet,
        progress=telling.progress,
        **vars(towers),
    )
    with interruptible("interrupted; complete epochs are kept: repeat the command to go on there"):
        trained = execute(method, dataset, out, request)
    for file in trained.files:
        say(file)


@checkpoints.command("list", epilog=examples("zsad checkpoints list checkpoints/"))
def list_checkpoints(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="A folder; else that of ZSAD_CHECKPOINTS.")
    ] = None,
) -> None:
    """List the checkpoints in a folder and below: method, training set, epoch and backbone."""
    from ..run import held_checkpoints

    held = held_checkpoints(folder)
    broken = [(file, why) for file, why in held.items() if isinstance(why, str)]
    for file, about in held.items():
        if isinstance(about, str):
            continue
        epoch = "" if about.epoch is None else f", epoch {about.epoch}"
        backbone = about.backbone or "an unknown backbone"
        say(file)
        say(f"  {about.method}, trained on {about.dataset or 'unknown images'}{epoch}, for {backbone}")
    for file, why in broken[:SHOWN]:
        say(file)
        say(f"  cannot be used: {why}")
    if len(broken) > SHOWN:
        say(f"and {len(broken) - SHOWN} more files that are no checkpoints", sys.stderr)
    if not held:
        say(f"no checkpoint in {folder or 'ZSAD_CHECKPOINTS'}; zsad train --out FILE makes one", sys.stderr)


@checkpoints.command(epilog=examples("zsad checkpoints show anomalyclip.safetensors"))
def show(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE|hf://...", help="Checkpoints of zsadbench, here or on the Hub."),
    ],
) -> None:
    """Print where checkpoints come from and what they hold."""
    from ..clip import checkpoint_file

    for number, file in enumerate(files):
        if number:
            say()
        _show(checkpoint_file(file))


def _show(file: Path) -> None:
    from ..clip import describe

    for name, value in describe(file).items():
        say(f"{name:<14}{_text(value)}")


@checkpoints.command(epilog=examples("zsad checkpoints pull hf://user/repo@v1/anomalyclip.safetensors"))
def pull(
    address: Annotated[
        str,
        typer.Argument(metavar="hf://USER/REPO/FILE", help="hf://user/repo[@revision]/path/file.safetensors"),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE|DIR", help="Copy it there; else it stays in the Hub's cache."
        ),
    ] = None,
) -> None:
    """Fetch a checkpoint of the Hugging Face Hub and print where it lies, its digest and provenance."""
    from ..clip import pull_checkpoint

    _show(pull_checkpoint(address, out))


@checkpoints.command(
    "import",
    epilog=examples("zsad checkpoints import epoch_15.pth --method anomalyclip --trained-on visa"),
)
@grouped
def import_(
    *,
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE|hf://...", help="The authors' .pth (AA-CLIP: both files)."),
    ],
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "-m",
            metavar="ID",
            autocompletion=method_ids,
            help="The method they belong to: an id, or id@variant.",
        ),
    ] = None,
    trained_on: Annotated[
        list[str] | None,
        typer.Option(
            "--trained-on",
            metavar="ID",
            autocompletion=dataset_ids,
            help="The dataset they were trained on (an id); repeatable.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The new file (else beside the first one; of the Hub, in this folder).",
        ),
    ] = None,
    epoch: Annotated[
        int | None,
        typer.Option(
            "--epoch", metavar="N", help="The epoch, where the file does not say.", callback=within(0)
        ),
    ] = None,
    data: Data = None,
    parameters: Parameters,
    towers: Towers,
) -> None:
    """Convert the authors' checkpoint: read as data, every key and shape checked."""
    if not method:
        raise UsageError("name the method the files belong to: --method METHOD; see: zsad methods")
    given = parameters.table()
    from ..training import import_checkpoint

    path, about = import_checkpoint(
        files,
        method,
        trained_on=trained_on or (),
        out=out,
        epoch=epoch,
        data=data,
        settings=given,
        **vars(towers),
    )
    if "first saved as" in about.source:
        say(f"epoch {about.epoch}: {about.source}", sys.stderr)
    say(_knowledge(about), sys.stderr)
    say(path)


def _knowledge(about: Provenance) -> str:
    """Return in words what an imported checkpoint knows of the images it was trained on, and what follows."""
    known, name = len(about.images), "' and '".join(about.datasets)
    follows = "results will be marked 'training images unknown'"
    if not name:
        return f"no --trained-on was given: {follows}"
    if about.complete:
        return f"all {known} images of '{name}' are known by their hashes"
    share = f"{known} of {known + about.unhashed}" if known else "none"
    shipped = card_paths("datasets")
    near = "" if known else "".join(suggest(one, shipped) for one in about.datasets if one not in shipped)
    either = "' or '".join(about.datasets)
    return (
        f"{share} of the images of '{name}' are on this machine: a run on '{either}' is refused by its name, "
        f"other {follows}.{near}"
    )


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_text(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        shown = ", ".join(map(_text, value[:SHOWN]))
        return f"{shown} ... ({len(value)})" if len(value) > SHOWN else shown
    return str(value)

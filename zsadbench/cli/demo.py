"""``zsad demo``: render the demo data, train the miniature CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..text import say
from .options import examples
from .verbs import Verbs, within

app = Verbs(
    help="Render the demo data; train the miniature CLIP.",
    no_args_is_help=True,
    epilog=examples("zsad demo data --out demo/"),
)


@app.command(epilog=examples("zsad demo data --out demo/"))
def data(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new or empty folder.")],
    aux: Annotated[bool, typer.Option("--aux", help="The auxiliary categories, for training.")] = False,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Same seed, same files.", callback=within(0, 2**32 - 1))
    ] = 0,
) -> None:
    """Write the demo set as a tree in the layout of MVTec AD."""
    from ..demo import write_demo

    total = write_demo(out, auxiliary=aux, seed=seed, say=say)
    say(f"{total} images in {out}")


@app.command(epilog=examples("zsad demo train --out demo.safetensors --seconds 600"))
def train(
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The weight file to write (.safetensors).")
    ],
    images: Annotated[
        int, typer.Option("--images", metavar="N", help="Pictures of the first stage.", callback=within(1))
    ] = 80_000,
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds",
            metavar="S",
            help="Stop after this time; go on later with --resume.",
            callback=within(0),
        ),
    ] = float("inf"),
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="N", help="Of weights and pictures.", callback=within(0, 2**32 - 1)),
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint beside OUT.")] = False,
    every: Annotated[
        float, typer.Option("--every", metavar="S", help="Seconds between checkpoints.", callback=within(0))
    ] = 120.0,
) -> None:
    """Train the miniature CLIP on rendered pictures of the auxiliary categories and their captions."""
    from ..demo import Recipe, report, train

    done = train(
        Recipe(images, seed), out, seconds=seconds, resume=resume, every=every, probe=report, say=say
    )
    say(f"{out} written" if done else f"{out} written, training not finished: go on with --resume")


@app.command(epilog=examples("zsad demo picture results/demo --out demo.png"))
def picture(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder with records of one dataset.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The PNG file to write.")],
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Folder of the dataset, if it moved.")
    ] = None,
) -> None:
    """Write a contact sheet: an image of every category, its mask and the map of every method."""
    from ..demo import contact_sheet
    from ..errors import UsageError
    from ..views import write_png

    if out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: the picture is a .png file; name one")
    write_png(out, contact_sheet(results, data))
    say(out)

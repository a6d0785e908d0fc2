"""``zsad weights``: fetch, check and list CLIP weights; ``zsad demo``: make those shipped, and data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..text import say
from .options import examples
from .verbs import Verbs, within

app = Verbs(
    help="Fetch, check and list CLIP weights.",
    no_args_is_help=True,
    epilog=examples("zsad weights list ViT-L"),
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A backbone, as `zsad weights list` prints it.")]


@app.command(epilog=examples("zsad weights prefetch ViT-L-14-336 openai"))
def prefetch(
    name: Name, tag: Annotated[str, typer.Argument(metavar="TAG", help="Published weights of the backbone.")]
) -> None:
    """Download weights now, so that later runs need no network."""
    from ..clip import fetch, native_size

    native_size(name)  # a backbone that is unknown or cannot be used is the first thing to say
    say(f"{name}/{tag}: {fetch(name, tag)}")


@app.command(epilog=examples("zsad weights verify ViT-L-14-336 ViT-L-14-336px.pt"))
def verify(
    name: Name,
    weights: Annotated[str, typer.Argument(metavar="TAG|FILE", help="Published weights, or a file.")],
    activation: Annotated[str, typer.Option(metavar="KIND", help="auto, gelu or quick_gelu.")] = "auto",
) -> None:
    """Check weights: SHA-256 where one is published, then every tensor's name and shape."""
    from ..clip import verify as check

    for fact, value in check(name, weights, activation).items():
        say(f"{fact:<12}{value}")
    say(f"{'fits':<12}{name}")


@app.command("list", epilog=examples("zsad weights list ViT-L"))
def list_backbones(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Only backbones whose name has this.")] = "",
) -> None:
    """List the backbones that can be loaded, with the tags of their published weights."""
    from ..clip import architectures, layers_and_patch, native_size, tags
    from ..errors import UsageError, suggest

    known = architectures()
    chosen = [one for one in known if name.lower() in one.lower()]
    if not chosen:
        native_size(name)  # says so of a backbone that is known and cannot be used
        raise UsageError(f"no backbone is called '{name}'.{suggest(name, known)}")
    for one in chosen:
        layers, patch = layers_and_patch(one)
        say(f"{one:<22} {native_size(one)} px, patch {patch}, {layers} blocks")
        say(f"{'':<22} {' '.join([*tags(one), 'random'])}")


demo = Verbs(
    help="Render the demo data; train the miniature CLIP.",
    no_args_is_help=True,
    epilog=examples("zsad demo data --out demo/"),
)


@demo.command(epilog=examples("zsad demo data --out demo/"))
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


@demo.command(epilog=examples("zsad demo train --out demo.safetensors --seconds 600"))
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


@demo.command(epilog=examples("zsad demo picture results/demo --out demo.png"))
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

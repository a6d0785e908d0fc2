"""``zsad weights``: fetch, check and list CLIP weights."""

from __future__ import annotations

from typing import Annotated

import typer

from ..text import say
from .options import examples
from .verbs import Verbs

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

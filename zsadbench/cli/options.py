"""Options that several verbs take, each said once, alone or in groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .verbs import within

if TYPE_CHECKING:
    from ..scoring import UserMethods

DATA = "Where the data lie"
CLIP = "CLIP"
EVALUATION = "Evaluation"
MACHINE = "Machine"

PROMPTS = (
    "States and templates of your own: a TOML file with the lists normal, anomalous and templates, {} once "
    "in each text. zsad methods show ID --prompts-to FILE writes one."
)

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="The dataset's folder, or one with a folder per id (else ZSAD_DATA).",
        rich_help_panel=DATA,
    ),
]
Categories = Annotated[
    list[str] | None, typer.Option("--category", metavar="NAME", help="Only this category; repeatable.")
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        metavar="N",
        help="At most so many images, spread over category and label.",
        callback=within(1),
    ),
]
CHECKPOINT = "FILE|hf://USER/REPO/FILE"
Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--checkpoint", metavar=CHECKPOINT, help="Checkpoint of a trained method, here or on the Hub."
    ),
]
Checkpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--checkpoint",
        metavar=CHECKPOINT,
        help="Checkpoint of a trained method, here or on the Hub; repeatable, a row for each.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Set a parameter of the method (in training, of the recipe too); repeatable.",
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1 ...", rich_help_panel=MACHINE),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        help="Threads that decode ahead.",
        rich_help_panel=MACHINE,
        callback=within(1, 256),
    ),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out files with a problem.", rich_help_panel=DATA)
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Accept categories without images.", rich_help_panel=DATA)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
InductiveOnly = Annotated[
    bool,
    typer.Option("--inductive-only", help="Leave out rows whose numbers need other test images (†, §)."),
]


def _which_size(value: int | None) -> None:
    if value is not None:
        raise UsageError(
            "there are two sizes: --input-size N is the side of the network's input, --size N that of the "
            "maps and masks that are evaluated (zsad run, zsad score)"
        )


@dataclass(frozen=True)
class Parameters:
    """Parameters of the method, its input size by a name of its own."""

    settings: Settings = None
    input_size: Annotated[
        int | None,
        typer.Option(
            "--input-size",
            metavar="PIXELS",
            help="Side of the network's input: --set size=PIXELS.",
            callback=within(1, 4096),
        ),
    ] = None
    which_size: Annotated[
        int | None,
        typer.Option(
            *("--resolution", "--image-size", "--img-size", "--imgsz", "--img_size"),
            metavar="PIXELS",
            hidden=True,
            callback=_which_size,
        ),
    ] = None

    def table(self) -> dict[str, str]:
        """Return the parameters as names and texts.

        Raises:
            UsageError: for a text that is no pair, or two different input sizes.
        """
        found = pairs(self.settings)
        if self.input_size is None:
            return found
        size = str(self.input_size)
        if found.setdefault("size", size) != size:
            raise UsageError(f"--input-size {size} and --set size={found['size']} differ; give one of them")
        return found


@dataclass(frozen=True)
class Telling:
    """How much is told of a pass, and in which form; ``grouped`` sees to the form."""

    quiet: Quiet = False
    progress: Annotated[
        str,
        typer.Option(
            "--progress", metavar="FORM", help="auto, lines, or json: one object a line, on standard error."
        ),
    ] = "auto"
    log_file: Annotated[
        Path | None,
        typer.Option("--log-file", metavar="FILE", help="Keep what is told here too, with the time."),
    ] = None


@dataclass(frozen=True)
class Towers:
    """Another CLIP than the method's own."""

    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            metavar="NAME",
            help="Another CLIP: a name of open_clip or a JSON.",
            rich_help_panel=CLIP,
        ),
    ] = None
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights", metavar="TAG|FILE", help="A tag, a file, or random[:SEED].", rich_help_panel=CLIP
        ),
    ] = None
    activation: Annotated[
        str | None,
        typer.Option("--activation", metavar="KIND", help="auto, gelu or quick_gelu.", rich_help_panel=CLIP),
    ] = None


@dataclass(frozen=True)
class Evaluation:
    """How evidence becomes numbers."""

    protocol: Annotated[
        str,
        typer.Option(
            "--protocol",
            metavar="ID",
            help="reference, common-1 or legacy200; overrides make it custom.",
            rich_help_panel=EVALUATION,
        ),
    ] = "reference"
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            metavar="PIXELS",
            help="Evaluate maps and masks at this many pixels.",
            rich_help_panel=EVALUATION,
            callback=within(1, 8192),
        ),
    ] = None
    mask_resize: Annotated[
        str | None,
        typer.Option(
            "--mask-resize",
            metavar="RULE",
            help="bilinear50, all, any, nearest or native.",
            rich_help_panel=EVALUATION,
        ),
    ] = None
    aupro_limit: Annotated[
        list[float] | None,
        typer.Option(
            "--aupro-limit",
            metavar="RATE",
            help="Also give AUPRO up to this false-positive rate; repeatable.",
            rich_help_panel=EVALUATION,
            callback=within(0, 1, above=True),
        ),
    ] = None
    exact_maps: Annotated[
        bool,
        typer.Option(
            "--exact-maps",
            help="Render maps step by step instead of by folded matrices.",
            rich_help_panel=EVALUATION,
        ),
    ] = False
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="ID",
            help="Also take this metric: pixel_segf1 or image_classf1 (these need normal validation images), "
            "pixel_spro (to 0.3), pixel_spro@RATE, image_pg@PERCENT, image_pb@PERCENT; repeatable.",
            rich_help_panel=EVALUATION,
        ),
    ] = None


AllowChanged = Annotated[
    bool,
    typer.Option(
        "--allow-changed",
        help="Let --method run though it is not the code that made the evidence; a mark says so.",
    ),
]


@dataclass(frozen=True)
class Code:
    """Whose code may render maps: results do not say what runs."""

    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="FILE:CLASS",
            help="The code of a user's method in these results, which never say what runs; repeatable.",
        ),
    ] = None
    allow_changed: AllowChanged = False

    def users(self) -> UserMethods:
        """Return the methods named.

        Raises:
            UsageError: for the name of a method of the toolkit.
        """
        from ..scoring import UserMethods

        return UserMethods(tuple(self.method or ()), self.allow_changed)


@dataclass(frozen=True)
class Machine:
    """Where and in what portions the towers run."""

    device: Device = "auto"
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype", metavar="DTYPE", help="fp32, bf16 or fp16 (image tower).", rich_help_panel=MACHINE
        ),
    ] = "fp32"
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            help="Images per batch; halved when memory runs out.",
            rich_help_panel=MACHINE,
            callback=within(1, 65536),
        ),
    ] = None
    workers: Workers = None


@dataclass(frozen=True)
class Spreading:
    """On how many devices and machines the work is done."""

    devices: Annotated[
        str | None,
        typer.Option(
            "--devices",
            metavar="WHICH",
            help="Workers on this machine: auto (every GPU), 0,1 (these GPUs) or cpu:2.",
            rich_help_panel=MACHINE,
        ),
    ] = None
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="ADDRESS",
            help="Workers on a Ray cluster: HOST:PORT, auto (the one running here) or local.",
            rich_help_panel=MACHINE,
        ),
    ] = None


def method_ids(incomplete: str) -> list[str]:
    """Return the ids of methods, and of the variants of one, for the shell to complete."""
    from ..method import method_cards

    cards = method_cards()
    variants = [f"{card.id}@{name}" for card in cards.values() for name in card.variants]
    found = [*cards, *(variants if "@" in incomplete else ())]
    return [name for name in found if name.startswith(incomplete)]


def dataset_ids(incomplete: str) -> list[str]:
    """Return the ids of datasets for the shell to complete."""
    from ..cards import card_paths

    return [name for name in card_paths("datasets") if name.startswith(incomplete)]


def examples(*commands: str) -> str:
    """Return the end of a help text: what one may type."""
    return "\n\n".join(("Examples:" if len(commands) > 1 else "Example:", *commands))


def pairs(texts: list[str] | None, form: str = "--set NAME=VALUE") -> dict[str, str]:
    """Return ``NAME=VALUE`` texts as a table.

    Raises:
        UsageError: for a text without an equals sign; it says what ``form`` was expected.
    """
    table: dict[str, str] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"'{text}' is not of the form {form}")
        table[name.strip()] = value.strip()
    return table

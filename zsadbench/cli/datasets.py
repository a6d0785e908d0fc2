"""``zsad datasets``: list, show, check, export and describe datasets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..cards import card_paths
from ..data import (
    Description,
    amount,
    describe,
    draft,
    identifier,
    load_dataset,
    problem_report,
    shipped_description,
    survey_dataset,
)
from ..errors import DatasetError
from ..samples import Dataset, Problem
from ..text import console, say
from .options import dataset_ids, examples
from .verbs import Verbs

app = Verbs(
    help="List, show, check, export and describe datasets.",
    no_args_is_help=False,
    epilog=examples("zsad datasets list", "zsad datasets show mvtec"),
)

Spec = Annotated[
    str,
    typer.Argument(metavar="DATASET", help="An id, a .toml file or a folder.", autocompletion=dataset_ids),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", help="Folder of the dataset, or one with a folder per id.  [env: ZSAD_DATA]"
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]
FollowOutside = Annotated[
    bool, typer.Option("--follow-outside", help="Follow links that leave the dataset's folder.")
]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Accept listed classes without samples.")]


@app.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """List, show, check, export and describe datasets; alone it lists them."""
    if context.invoked_subcommand is None:
        list_datasets()


@app.command("list", epilog=examples("zsad datasets list"))
def list_datasets() -> None:
    """List the known datasets."""
    screen = console(width=400)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("id", no_wrap=True)
    table.add_column("title")
    table.add_column("domain", no_wrap=True)
    for name in ("categories", "normal", "anomalous"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("masks", no_wrap=True)
    table.add_column("licence")
    for name in card_paths("datasets"):
        table.add_row(*_summary(shipped_description(name)))
    screen.print(table)
    screen.print("\nCounts are those of the full test set. More: zsad datasets show ID")


@app.command(epilog=examples("zsad datasets show visa"))
def show(dataset: Spec) -> None:
    """Show what a dataset is and how its folder must look."""
    description = describe(dataset)
    screen = console(soft_wrap=True)
    total = description.expect.total if description.expect else None
    facts = {
        "id": description.id,
        "domain": description.domain,
        "licence": description.license,
        "download": description.url,
        "masks": _masks(description),
        "test set": f"{total[0]} normal, {total[1]} anomalous" if total else "counts not known",
    }
    if description.validation:
        facts["normals"] = (
            f"split '{description.validation}' fixes thresholds (zsad run --metric pixel_segf1)"
        )
    if groups := list(dict.fromkeys(name for rule in description.rules for name in rule.groups)):
        facts["groups"] = ", ".join(groups)
    screen.print(f"{description.title}\n")
    for name, value in facts.items():
        screen.print(f"{name:<10}{value}")
    roots = " or ".join("the folder itself" if sub == "." else f"{sub}/" for sub in description.subroot)
    screen.print(f"\nExpected below {roots}:")
    for line in description.outline():
        screen.print(f"  {line}")
    _show_categories(screen, description)
    screen.print(f"\n{description.citation}" if description.citation else "\nNo citation is known.")


@app.command(epilog=examples("zsad datasets check visa --data /data/visa"))
def check(
    dataset: Spec,
    data: Data = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Which split to check.")] = "test",
    follow_outside: FollowOutside = False,
    allow_missing: AllowMissing = False,
) -> None:
    """Open every file of a dataset and report all problems at once.

    Exit code 2 with errors; warnings, such as other counts than the full set has, leave it at 0.
    """
    found = survey_dataset(
        dataset, data, split=split, follow_outside=follow_outside, allow_missing=allow_missing
    )
    problems = [*found.problems, *_scan(found)]
    screen = console(soft_wrap=True)
    for severity in ("error", "warning", "note"):
        for problem in problems:
            if problem.severity == severity:
                screen.print(str(problem))
    values = {(name, value) for s in found.samples for name, value in s.groups.items() if value}
    for name, count in sorted(Counter(name for name, _ in values).items()):
        screen.print(f"group {name}: {amount(count, 'value')}")
    errors = sum(problem.severity == "error" for problem in problems)
    normal = sum(not sample.anomalous for sample in found.samples)
    categories = amount(len(found.categories), "category", "categories")
    screen.print(
        f"{found.id} in {found.root}: {categories}, {normal} normal and "
        f"{len(found.samples) - normal} anomalous {split} images, {amount(errors, 'error')}."
    )
    if errors:
        raise typer.Exit(2)


@app.command(epilog=examples("zsad datasets export visa --data /data/visa --meta-json meta.json"))
def export(
    dataset: Spec,
    meta_json: Annotated[Path, typer.Option("--meta-json", metavar="FILE", help="The file to write.")],
    data: Data = None,
    force: Force = False,
) -> None:
    """Write a dataset's list in the meta.json form that most code of the field reads."""
    from ..data import write_meta_json

    test = load_dataset(dataset, data)
    parts = [*_train_part(dataset, data), test]
    write_meta_json(meta_json, parts, force)
    say(f"Wrote {meta_json} ({', '.join(f'{len(p.samples)} {p.split}' for p in parts)} images).")
    if meta_json.resolve().parent != test.root.resolve():
        say(f"Its paths are relative to {test.root}: put it there before use.")


@app.command(epilog=examples("zsad datasets new photos/ --normal ok"))
def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with images of your own.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file to write.  [default: DIR/<name>.toml]")
    ] = None,
    normal: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the folders that hold normal images.")
    ] = "",
    force: Force = False,
) -> None:
    """Write a commented description (.toml) for a folder, and say what it lists."""
    from ..files import write_atomic

    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; check the spelling of the path.")
    text, remarks = draft(folder, normal)
    path = out or folder / f"{identifier(folder.resolve().name)}.toml"
    if path.exists() and not force:
        raise DatasetError(f"{path} exists; give another name with --out, or --force to replace it.")
    write_atomic(path, text.encode())
    data = "" if out is None else f" --data {quote(str(folder))}"
    check_it = f"zsad datasets check {quote(str(path))}{data}"
    say(f"Wrote {path}. Correct it where needed, then: {check_it}")
    found = survey_dataset(str(path), None if out is None else folder)
    say(f"It lists {_counts(found)}.")
    problems = [*(Problem("warning", "", remark) for remark in remarks), *found.problems]
    if problems:
        say(problem_report(problems))


def _counts(dataset: Dataset) -> str:
    """Return how many images of which label there are."""
    normal = sum(not sample.anomalous for sample in dataset.samples)
    masks = sum(sample.mask is not None for sample in dataset.samples)
    return (
        f"{amount(len(dataset.categories), 'category', 'categories')}, {normal} normal and "
        f"{len(dataset.samples) - normal} anomalous {dataset.split} images, {masks} of them with a mask"
    )


def _summary(description: Description) -> list[str]:
    expect = description.expect
    categories = len(description.classes or (expect.categories if expect else ()))
    counts = [str(count) for count in expect.total] if expect else ["", ""]
    return [
        description.id,
        description.title,
        description.domain,
        str(categories or ""),
        *counts,
        "no" if description.masks == "none" else "yes",
        description.license,
    ]


def _masks(description: Description) -> str:
    if description.masks == "none":
        return "none: image metrics only"
    return f"{description.masks}, defect where the value is {_positive(description.mask_positive)}"


def _positive(rule: str | tuple[int, ...]) -> str:
    return rule if isinstance(rule, str) else f"one of {', '.join(map(str, rule))}"


def _show_categories(screen: Console, description: Description) -> None:
    counts = description.expect.categories if description.expect else {}
    names = list(description.classes) or list(counts)
    if not names:
        screen.print("\nCategories are the folders found.")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("category", "words in prompts", "normal", "anomalous"):
        table.add_column(column, justify="right" if column in ("normal", "anomalous") else "left")
    for name in names:
        pair = counts.get(name, ("", ""))
        table.add_row(name, description.words(name), str(pair[0]), str(pair[1]))
    screen.print()
    screen.print(table)


def _scan(dataset: Dataset) -> list[Problem]:
    from ..images import scan

    return scan(
        dataset.samples,
        full=True,
        orient=dataset.masks == "none",
        positive=dataset.mask_positive,
        mismatch="nearest" if dataset.mask_mismatch == "nearest" else "error",
    )


def _train_part(spec: str, data: Path | None) -> list[Dataset]:
    """Return the train split, if the folder has one."""
    try:
        train = survey_dataset(spec, data, split="train", allow_missing=True)
    except DatasetError:
        return []
    return [train] if train.samples else []

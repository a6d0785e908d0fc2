"""Careless and hostile calls of every verb, made from the options that the application itself declares."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from zsadbench.cli.app import app

NUMBERS = (
    *("-1", "0", "1", "2", "7", "60", "0.5", "-0.5", "1.5", "nan", "inf", "-inf", "1e9", "1e308", "1e-320"),
    *("999999999999", "2147483648", "99999", "0x10", "1_0", "1" * 40),
)
VALUES = (
    *("", " ", "--", "-", *NUMBERS[:5]),
    *("a" * 300, "b/" * 300, ".", "..", "../..", "gone/away", "/dev/null", "~", "C:\\x", "a:b", "x.py:Mine"),
    *("\x1b[31mred\x1b[0m", "\u202etxt.exe", "<script>alert(1)</script>", "a\nb", "\udcff\ud800", "\u2028"),
    *("{}", "{}{}", "{0.__class__}", "{x!r:>999999999}", "%s%n", "=1+1", "|", "$(true)", "none", "true"),
    *("meta", "cuda:99", "cpu", "xla", "fp16", "int8", "json", "latex,md", "csv", "table,nope", "category"),
    *("clip", "clip@nope", "winclip", "anomalyclip", "mvtec", "visa", "bolt", "reference", "legacy200"),
    *("native", "image_auroc", "pixel_aupro@0.5", "pixel_aupro@nan", "image-roc", "random", "random:-1"),
    *("random:x", "random:99999999999999999999", "openai", "tiny-l14", "RN50", "auto", "gelu"),
    *("0,0,0,0", "1,2", "nan,nan", "3,1", "-5,-5,9,9", "0,0,20,20", "bolt=", "=x", "bolt=\x1b[31m"),
)
MEASURES = ("N", "PIXELS", "RATE", "PART", "GIB", "S", "POINTS")
"""What options of numbers are said to take."""
SETTINGS = (
    *("sigma=-3", "sigma=1e9", "sigma=nan", "sigma=", "size=0", "size=-28", "size=99999996", "size=29"),
    *("normal={}", "normal={}{}", "normal={0}", "templates=", "tiles=ends", "mean=0,0,0", "std=0,0,0"),
    *("std=1,1", "mean=nan,0,0", "temperature=0", "temperature=-1", "scales=0", "scales=99", "stride=0"),
    *("features=0", "features=99", "epochs=0", "lr=-1", "lr=inf", "batch_size=0", "seed=-1", "weights=x"),
    *("backbone=x", "activation=x", "checkpoint=", "checkpoint=gone", "context=0", "deep_prompts=99"),
    *("deep_length=-1", "value_from=-5", "nothing=1", "=", "sigma", "betas=2,2", "spread=-1"),
)


def leaves(command: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the words of every verb and its command."""
    command = command or typer.main.get_command(app)
    if not hasattr(command, "commands"):
        yield words, command
        return
    for name, inner in command.commands.items():
        yield from leaves(inner, (*words, name))


def calls(
    seed: int, count: int, sound: Mapping[tuple[str, ...], Sequence[str]], paths: Sequence[Path]
) -> Iterator[list[str]]:
    """Yield ``count`` calls: every verb in turn, a ``sound`` call of it with a few options gone wrong.

    ``paths`` are files and folders that are given where any value is; options are those of the verb.
    """
    rng = random.Random(seed)
    verbs = [(words, command) for words, command in leaves() if command.params]
    values = [*VALUES, *map(str, paths), *map(str, paths)]
    for number in range(count):
        words, command = verbs[number % len(verbs)]
        call = [*words, *sound[words]]
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            call += _wrong(rng, rng.choice(command.params), values)
        yield call


def _wrong(rng: random.Random, parameter: Any, values: Sequence[str]) -> list[str]:
    """Return words that give a parameter a value that it hardly expects."""
    number = parameter.metavar in MEASURES and rng.random() < 0.9
    value = rng.choice(NUMBERS if number else values)
    if parameter.param_type_name == "argument":
        return [value] if not value.startswith("-") else ["--", value]
    name = rng.choice([name for name in parameter.opts if name != "--help"])
    if getattr(parameter, "is_flag", False):
        return [rng.choice([*parameter.opts, *parameter.secondary_opts])]
    if name == "--set" and rng.random() < 0.9:
        value = rng.choice(SETTINGS)
    return [name, value] if rng.random() < 0.8 else [f"{name}={value}"]

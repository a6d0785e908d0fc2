"""What no option takes: empty texts and numbers out of range, said in one line, for every option there is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.kit.hostile import MEASURES, leaves
from tests.kit.terminal import call
from zsadbench.cli.verbs import Verb
from zsadbench.errors import UsageError
from zsadbench.method import method_cards, override, resolve
from zsadbench.method.settings import convert, describe, hints, places


def options() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every option of every verb that takes a value, with the words of the verb."""
    for words, command in leaves():
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.is_flag:
                yield words, parameter


@pytest.mark.parametrize("form", ["--name VALUE", "--name=VALUE"])
def test_no_option_takes_an_empty_text(form: str, capfd: pytest.CaptureFixture[str]) -> None:
    taken = []
    for words, option in options():
        name = max(option.opts, key=len)
        value = [name, ""] if form == "--name VALUE" else [f"{name}="]
        code, err = call(*words, *value), capfd.readouterr().err
        if code != 2 or err != f"error: {name} is empty: give it a value, or leave it out\n":
            taken.append((words, name, code, err))
    assert not taken
    assert all(isinstance(command, Verb) for _, command in leaves())


@pytest.mark.parametrize("value", ["-1", "nan"])
def test_every_option_of_numbers_says_which_it_takes(value: str, capfd: pytest.CaptureFixture[str]) -> None:
    taken = []
    for words, option in options():
        if option.metavar not in MEASURES or option.hidden:
            continue
        code, err = call(*words, option.opts[0], value), capfd.readouterr().err
        if code != 2 or err.count("\n") != 1 or option.opts[0] not in err:
            taken.append((words, option.opts[0], code, err))
    assert not taken


@pytest.mark.parametrize(
    "words",
    [
        "run --workers -1",
        "run --batch-size 0",
        "score --size 1000000",
        "bench clip --repeats 0",
        "compare --tolerance inf",
        "train --memory inf",
        "predict --overlap 1",
        "run --aupro-limit 0.3 --aupro-limit 0",
    ],
)
def test_a_number_out_of_range_is_named_with_what_is_allowed(
    words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(*words.split()) == 2
    err = capfd.readouterr().err
    *_, option, value = words.split()
    assert err.startswith(f"error: {option} {value}") and "give a number" in err and err.count("\n") == 1


@pytest.mark.parametrize("device", ["meta", "cuda:99", "nonsense"])
def test_a_device_that_holds_no_numbers_is_refused(device: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = "run -m clip -d demo --backbone tiny-l14 --weights random --device"
    assert call(*words.split(), device) == 2
    assert f"error: device '{device}' cannot be used" in capfd.readouterr().err


def numbers_of(cls: type) -> Iterator[tuple[str, Any]]:
    for name, hint in hints(cls).items():
        if describe(hint).startswith(("a number", "a whole number")):
            yield name, hint


FREE = {"beta"}
"""Numbers of methods that may be anything: a similarity."""


@pytest.mark.parametrize("spec", method_cards())
def test_every_number_of_a_shipped_method_has_bounds(spec: str) -> None:
    method: Any = resolve(spec).method
    held = dict(numbers_of(type(method))) | dict(numbers_of(type(method.preprocess)))
    for name, hint in held.items():
        refused = []
        for value in ("-1e30", "1e400", "nan", "-7"):
            try:
                convert(value, hint)
            except ValueError:
                refused.append(value)
        assert name in FREE or len(refused) == 4, name
        own = method if name in places(method) and hasattr(method, name) else method.preprocess
        value = getattr(own, name)
        assert value is None or convert(value, hint) == value  # its default is within them


def test_what_a_parameter_takes_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    for given, wanted in {
        "sigma=-3": "sigma=-3: must be a number from 0 to 1024.",
        "sigma=1e9": "sigma=1e9: must be a number from 0 to 1024.",
        "sigma=nan": "sigma=nan: must be a number from 0 to 1024.",
        "std=0,1,1": "std=0,1,1: must be 3 values with commas, each a number above 0 or 'none'.",
        "size=0": "size=0: must be a whole number from 1 to 4096.",
    }.items():
        assert call("methods", "check", "clip", "--set", given) == 2
        assert capfd.readouterr().err == f"error: clip: {wanted}\n"


def test_python_is_held_to_the_same_bounds() -> None:
    with pytest.raises(UsageError, match=r"temperature=0.0: must be a number above 0"):
        override(resolve("winclip").method, {"temperature": 0.0})

"""Help texts that show what to type, lists that answer `list`, two sizes told apart, completion."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from tests.cli.test_cli import zsad
from zsadbench.cli.app import app
from zsadbench.cli.options import Parameters, dataset_ids, method_ids
from zsadbench.errors import UsageError


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


ALL = dict(commands(typer.main.get_command(app)))


def options_of(command: Any) -> set[str]:
    return {name for param in command.params for name in param.opts + param.secondary_opts} | {"--help", "-h"}


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_help_has_an_example_that_can_be_typed(path: tuple[str, ...]) -> None:
    epilog = ALL[path].epilog or ""
    lines = [line for line in epilog.split("\n\n") if line.startswith("zsad ")]
    assert lines, path
    for line in lines:
        words = shlex.split(line)[1:]
        assert tuple(words[: len(path)]) == path
        named = max((p for p in ALL if tuple(words[: len(p)]) == p), key=len)
        used = {word for word in words if word.startswith("-")}
        assert used <= options_of(ALL[named]), line


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_value_is_named_by_what_it_is(path: tuple[str, ...]) -> None:
    """FILE, DIR, ID, N ... in place of the type's own name; what a path is cannot be told from <path>."""
    named = ("install_completion", "show_completion", "help")
    for param in ALL[path].params:
        takes_value = not getattr(param, "is_flag", False) and not getattr(param, "count", False)
        if takes_value and param.name not in named:
            assert param.metavar, (path, param.name)
            assert param.metavar not in ("TEXT", "PATH", "INTEGER", "FLOAT")


def test_the_example_is_printed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for words, example in (
        (["run"], "zsad run --method clip --dataset demo"),
        (["predict"], 'zsad predict photos/ --method anoclip --words "metal nut"'),
        ([], "zsad compare results"),
    ):
        code, out, _ = zsad(capfd, *words, "--help")
        assert code == 0 and example in " ".join(out.split())


@pytest.mark.parametrize("group", ["methods", "datasets"])
def test_lists_answer_list(group: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, alone, _ = zsad(capfd, group)
    assert (code, alone) == zsad(capfd, group, "list")[:2]
    assert code == 0 and ("winclip" in alone or "mvtec" in alone)


# --- the two sizes ---


@pytest.mark.parametrize("option", ["--resolution", "--image-size", "--img-size", "--imgsz"])
@pytest.mark.parametrize("verb", ["run", "predict", "calibrate", "train"])
def test_another_word_for_size_is_told_the_two(
    verb: str, option: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = zsad(capfd, verb, option, "336")
    assert code == 2
    assert "--input-size N is the side of the network's input, --size N that of the maps" in err
    assert len(err.splitlines()) == 1


def test_the_input_size_is_the_parameter_size() -> None:
    assert Parameters(["tau=1"], 336).table() == {"tau": "1", "size": "336"}
    assert Parameters(["size=336"], 336).table() == {"size": "336"}
    assert Parameters(["size=240"]).table() == {"size": "240"}
    with pytest.raises(UsageError, match="--input-size 336 and --set size=240 differ"):
        Parameters(["size=240"], 336).table()


# --- completion ---


def completed(words: str) -> list[str]:
    """Return what bash is offered at the end of ``words``."""
    parts = shlex.split(words)
    environ = os.environ | {
        "_ZSAD_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(parts) - (0 if words.endswith(" ") else 1)),
    }
    code = (
        "import sys; sys.argv = ['zsad']\n"
        "from zsadbench.cli import main\n"
        "try: main()\n"
        "finally: print([m for m in ('torch', 'pandas', 'cv2') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]", done.stderr
    return done.stdout.split()


def test_ids_are_completed_without_torch() -> None:
    assert completed("zsad run --method anoc") == ["anoclip", "anoclip+"]
    assert completed("zsad run --dataset headc") == ["headct"]
    assert "anoclip@tiled" in completed("zsad methods show anoclip@")
    assert completed("zsad meth") == ["methods"]
    assert "clip" in method_ids("") and "visa" in dataset_ids("v")


def test_completion_can_be_installed(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = zsad(capfd, "--help")
    assert code == 0 and "--install-completion" in out and "--show-completion" in out

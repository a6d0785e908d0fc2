"""The command line as a user types it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kit.factory import make_folder
from tests.kit.terminal import call
from zsadbench import cli
from zsadbench.cli.options import pairs
from zsadbench.errors import UsageError

CLIP = ["--backbone", "tiny-l14", "--weights", "random", "--set", "size=28", "--workers", "1"]


def zsad(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run the command line in this process; returns exit code, output and error output."""
    code = call(*words)
    return code, *capfd.readouterr()


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("words", [["--help"], ["methods"], ["datasets"]])
def test_help_and_lists_import_neither_torch_nor_pandas(words: list[str]) -> None:
    heavy = ("torch", "pandas", "open_clip", "cv2", "numba", "sklearn", "scipy")
    code = (
        f"import sys; sys.argv = ['zsad', *{words!r}]\n"
        "from zsadbench.cli import main\n"
        "try: main()\n"
        "except SystemExit as error: assert not error.code, error.code\n"
        f"print('HEAVY', [name for name in {heavy!r} if name in sys.modules])"
    )
    assert python(code).splitlines()[-1] == "HEAVY []"


def test_the_public_names_are_all_there() -> None:
    import zsadbench

    for name in zsadbench.__all__:
        assert getattr(zsadbench, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        zsadbench.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_run_score_and_compare(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "parts", categories=("bolt",), each=2)
    out = tmp_path / "results"
    code, text, err = zsad(
        capfd, "run", "-m", "clip", "-d", str(folder), *CLIP, "--out", str(out), "--words", "bolt=steel bolt"
    )
    assert code == 0, err
    assert "clip" in text and "random weights" in text
    run_dir = next(out.rglob("observation.json")).parent
    assert str(run_dir / "reference") in err
    code, text, err = zsad(capfd, "score", str(run_dir), "--protocol", "common-1")
    assert code == 0 and "common-1" in text
    code, text, err = zsad(capfd, "compare", str(out), "--format", "csv")
    assert code == 0 and text.count("\n") == 3 and text.startswith("dataset")


def test_an_unreadable_image_gives_exit_code_3(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "parts", categories=("bolt",), each=2)
    broken = folder / "bolt" / "test" / "good" / "1.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    code, text, err = zsad(capfd, "run", "-m", "clip", "-d", str(folder), *CLIP, "--out", str(tmp_path / "r"))
    assert code == 3
    assert "1 images could not be read, or judged, and are left out" in err and "bolt/test/good/1.png" in err
    assert "1 failed" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rnu"], "Did you mean 'run'"),
        (["run"], "name a method with --method"),
        (["run", "-m", "clip"], "name a dataset with --dataset"),
        (["run", "-m", "clipp", "-d", "mtd", "--data", "."], "Did you mean 'clip'"),
        (["run", "-m", "clip", "-d", "mdt"], "Did you mean 'mtd'"),
        (["run", "-m", "clip", "-d", "mtd", "--set", "size"], "not of the form --set NAME=VALUE"),
        (["run", "-m", "clip", "-d", "mtd", "--limit", "many"], "--limit"),
        (["run", "-m", "clip", "-d", "mtd", "--device", "gpu"], "device 'gpu' cannot be used"),
        (["score"], "give either a run's folder or --maps DIR"),
        (["score", "--maps", "x"], "--dataset"),
        (["bench"], "name one or several methods"),
        (["compare", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
) -> None:
    make_folder(tmp_path / "parts", categories=("bolt",), each=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    code, _, err = zsad(capfd, *words)
    assert code == 2
    assert said in err
    assert "Traceback" not in err


def test_debug_shows_the_error_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["zsad", "run", "--debug"])
    with pytest.raises(UsageError):
        cli.main()


def test_pairs_are_read_as_typed() -> None:
    assert pairs(["a=1", "b = x=y "], "N=V") == {"a": "1", "b": "x=y"}
    with pytest.raises(UsageError, match="'=1' is not of the form N=V"):
        pairs(["=1"], "N=V")


def test_a_killed_process_is_resumed_with_the_same_bits(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "parts", categories=tuple("abcdef"), each=2)

    def words(out: str) -> list[str]:
        return ["run", "-m", "clip", "-d", str(folder), *CLIP, "-q", "--out", str(tmp_path / out)]

    start = "import sys; from zsadbench.cli import main; sys.argv[0] = 'zsad'; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", start, *words("killed")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and not list((tmp_path / "killed").rglob("*.safetensors")):
        assert time.monotonic() < deadline, "no slice was written in two minutes"
        time.sleep(0.002)
    process.kill()
    process.wait()
    for out in ("killed", "whole"):
        assert zsad(capfd, *words(out))[0] == 0
    evidence = [
        {f.name: f.read_bytes() for f in (tmp_path / out).rglob("*.safetensors")}
        for out in ("killed", "whole")
    ]
    assert len(evidence[0]) == 6
    assert evidence[0] == evidence[1]

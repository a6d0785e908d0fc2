"""Records that are damaged, hostile or none: each is named and left out, and the others are shown."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit import boardkit
from tests.kit.terminal import call
from zsadbench.boards import FORMATS, boards, gate
from zsadbench.errors import ZsadError
from zsadbench.records import find_records
from zsadbench.views.figures import choose

SOUND = "winclip"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder of two records: one stays sound, the other is for the test."""
    boardkit.save(tmp_path / "results", boardkit.observation(SOUND, seed=1))
    boardkit.save(tmp_path / "results", boardkit.observation("clip", seed=2, parameters={"sigma": 1.0}))
    return tmp_path / "results"


@pytest.fixture
def victim(results: Path) -> Path:
    (path,) = results.glob("mtd/clip@reference/*/reference/record.json")
    return path


# --- files that are no record ---


def nested(path: Path) -> None:
    path.write_text("[" * 10_000 + "]" * 10_000)


def nested_inside(path: Path) -> None:
    content = json.loads(path.read_text())
    content["observation"]["environment"]["deep"] = json.loads("[" * 900 + "]" * 900)
    path.write_text(json.dumps(content))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-90])


def utf_16(path: Path) -> None:
    path.write_bytes(path.read_text().encode("utf-16"))


def a_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><body>404: not found</body></html>")


def a_pointer(path: Path) -> None:
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n")


def not_a_number(path: Path) -> None:
    path.write_text(path.read_text().replace("0.5", "NaN", 1))


def half_a_pair(path: Path) -> None:
    path.write_text(path.read_text().replace('"mtd"', '"\\ud800"', 1).replace('"categories"', '"\\udfff"'))


def megabytes(path: Path) -> None:
    path.write_text(path.read_text().replace('"clip"', f'"{"x" * 3_000_000}"', 1))


def many_rows(path: Path) -> None:
    content = json.loads(path.read_text())
    content["categories"] = [0] * 100_000
    path.write_text(json.dumps(content))


def too_large(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(1 << 40)  # sparse: takes no room


def empty(path: Path) -> None:
    path.write_bytes(b"")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link_in_a_circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def a_device_without_end(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


FORMS = (
    nested,
    nested_inside,
    cut_short,
    utf_16,
    a_page,
    a_pointer,
    not_a_number,
    half_a_pair,
    megabytes,
    many_rows,
    too_large,
    empty,
    a_folder,
    a_pipe,
    a_link_in_a_circle,
    a_device_without_end,
)
VERBS = {
    "compare": ["compare", "results", "--no-write"],
    "gate": ["compare", "results", "--no-write", "--baseline", "base/leaderboard.csv"],
    "report": ["report", "results", "--out", "site", "--gallery", "0"],
    "figure": ["figure", "bars", "results", "-d", "mtd", "--metric", "image_auroc", "--out", "bars.svg"],
}


@pytest.mark.parametrize("form", FORMS)
def test_it_is_named_and_left_out_and_the_others_are_shown(
    form: Callable[[Path], None],
    results: Path,
    victim: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(results.parent)
    sound = results / "mtd" / f"{SOUND}@reference"
    assert call("compare", sound, "--out", "base") == 0
    capfd.readouterr()
    form(victim)
    for words in VERBS.values():
        assert call(*words) == 0, words
        out, err = capfd.readouterr()
        named = [line for line in err.splitlines() if str(victim.relative_to(results.parent)) in line]
        assert named and "Traceback" not in out + err and len(named[0]) < 600, (words, err[:2000])
    assert call("compare", victim) == 2
    assert str(victim) in capfd.readouterr().err


# --- records with one wrong value, anywhere ---

WRONG: dict[str, Any] = {
    "null": None,
    "a negative": -1,
    "an integer of 40 digits": 10**39,
    "a large float": 1e308,
    "true": True,
    "an empty text": "",
    "a text": "random:x",
    "half a pair": "\ud800",
    "control characters": "\x1b[31m\r\n|<b>=1+1",
    "a list": [],
    "a list of lists": [[1, [2]]],
    "a table": {"x": 1, "\ud800": "\ud800"},
    "a list of tables": [{}],
}
MISSING = object()


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*above, key)
        yield from places(one, (*above, key))


def changed(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    copied = copy.deepcopy(content)
    holder = copied
    for key in place[:-1]:
        holder = holder[key]
    if value is MISSING:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return copied


def test_no_value_of_a_record_stops_the_others(results: Path, victim: Path, tmp_path: Path) -> None:
    content = json.loads(victim.read_text())
    assert call("compare", results, "--out", tmp_path / "base") == 0
    baseline = tmp_path / "base" / "leaderboard.csv"
    crashed = []
    values = [*WRONG.items(), ("nothing", MISSING)]
    for number, place in enumerate(places(content)):
        for name, value in values[number % 2 :: 2]:
            victim.write_text(json.dumps(changed(content, place, value)))
            try:
                records, problems = find_records([results])
                assert SOUND in {record.method for record in records}
                assert len(records) == 2 or len(problems) == 1
                tables = boards(records, by="category")
                for form in FORMATS.values():
                    form(tables).encode(errors="backslashreplace")
                for act in (lambda: choose([results]), lambda: gate(find_records([results])[0], baseline, 0)):
                    try:
                        act()
                    except ZsadError:  # two boards now, or another group than the baseline's: said in a line
                        continue
            except Exception as error:
                crashed.append(f"{place} {name}: {type(error).__name__} {error!s:.90}")
    assert not crashed, "\n".join(crashed[:40])

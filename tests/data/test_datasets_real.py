"""The three real sets: exact counts, and the oddities that are known of them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from zsadbench.cli.datasets import app
from zsadbench.data.load import load_dataset

DATA = os.environ.get("ZSAD_DATA", "")
pytestmark = pytest.mark.skipif(not DATA, reason="ZSAD_DATA names no folder with brainmri, headct and mtd")


def check(name: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(app, ["check", name])
    return result.exit_code, result.output.splitlines()


def test_brainmri() -> None:
    found = load_dataset("brainmri")
    assert found.counts() == {"brain": (98, 155)}
    assert found.notes == ()
    assert Counter(s.image.suffix for s in found.samples) == {".jpg": 171, ".JPG": 74, ".jpeg": 6, ".png": 2}
    assert {s.specie for s in found.samples if s.anomalous} == {"yes"}
    renamed = {
        s.key for s in found.samples if s.image.suffix == ".jpg" and Image.open(s.image).format == "PNG"
    }
    assert renamed == {f"no/{n}.jpg" for n in ("No15", "No17", "No18", "no 96", "no", "no 98")}
    code, lines = check("brainmri")
    assert code == 0
    assert [line.split(":")[0] for line in lines[:-1]] == ["warning", "note"]
    assert "partly transparent" in lines[0] and "no/no.jpg" in lines[0]
    assert "22 groups" in lines[1] and "25" in lines[1]
    assert lines[-1].endswith("98 normal and 155 anomalous test images, 0 errors.")


def test_headct() -> None:
    found = load_dataset("headct")
    assert found.counts() == {"headct": (100, 100)}
    assert found.notes == ()
    assert [s.key for s in found.samples if s.anomalous] == [
        f"head_ct/head_ct/{i:03}.png" for i in range(100)
    ]
    assert {Image.open(s.image).mode for s in found.samples[188:]} == {"RGBA"}
    code, lines = check("headct")
    assert code == 0
    assert lines[-1].endswith("100 normal and 100 anomalous test images, 0 errors.")
    assert not any(line.startswith("error") for line in lines)


def test_magnetic_tiles() -> None:
    found = load_dataset("mtd")
    assert Counter(s.specie for s in found.samples) == {
        "Blowhole": 115,
        "Break": 85,
        "Crack": 57,
        "Fray": 32,
        "Free": 238,
        "Uneven": 103,
    }
    assert all((s.mask is not None) == s.anomalous == (s.specie != "Free") for s in found.samples)
    assert all(s.mask.name == f"{Path(s.key).stem}.png" for s in found.samples if s.mask)
    assert found.notes == (
        "warning: in all: 238 normal and 392 anomalous images, the full set has 952 and 392",
    )
    code, lines = check("mtd")
    assert code == 0
    stems = ("exp3_num_45042", "exp4_num_124690", "exp4_num_352527", "exp4_num_45057")
    empty = [line for line in lines if all(stem in line for stem in stems)]
    assert [line.split(" of ")[0] for line in empty] == ["warning: 4"]
    assert any("388 of 630" in line and '">127"' in line for line in lines)
    assert lines[-1].endswith("238 normal and 392 anomalous test images, 0 errors.")

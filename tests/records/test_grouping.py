"""Which images belong together: names of a description, patterns of keys, lists in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from zsadbench.errors import RecordError, UsageError
from zsadbench.records import Grouping, ImageRow
from zsadbench.records.tables import IMAGE_COLUMNS, group_columns, read_images, table

WHERE = Path("run")


def row(key: str, **groups: str) -> ImageRow:
    return ImageRow(key, "nut", False, 0.5, None, None, groups)


ROWS = [row("p1/a.png", patient="p1"), row("p1/b.png", patient="p1"), row("p2/a.png")]


def test_a_name_is_a_group_of_the_description() -> None:
    assert Grouping("patient").of(ROWS, WHERE) == {"p1/a.png": "p1", "p1/b.png": "p1"}
    with pytest.raises(RecordError, match=r"no group 'patients'\. Did you mean 'patient'.*zsad score"):
        Grouping("patients").of(ROWS, WHERE)
    with pytest.raises(RecordError, match=r"no group 'view'\. It has none"):
        Grouping("view").of([row("1.png")], WHERE)


def test_a_pattern_groups_by_what_it_captures_else_by_what_it_finds() -> None:
    assert Grouping("^p[0-9]+").of(ROWS, WHERE) == {row.key: row.key[:2] for row in ROWS}
    assert Grouping(r"/(\w)\.").of(ROWS, WHERE) == {"p1/a.png": "a", "p1/b.png": "b", "p2/a.png": "a"}
    assert Grouping("(p1)|(a)[.]").of(ROWS, WHERE)["p2/a.png"] == "|a"
    with pytest.raises(RecordError, match=r"'x\+' puts no image of run into a group .*p1/a\.png"):
        Grouping("x+").of(ROWS, WHERE)
    with pytest.raises(UsageError, match=r"'\[' is no group, FILE\.csv or regular"):
        Grouping("[").of(ROWS, WHERE)


def test_a_file_lists_keys_and_groups(tmp_path: Path) -> None:
    path = tmp_path / "twins.csv"
    path.write_text("\ufeffkey, twin\np1/a.png, 1\n\np2/a.png,1\nother.png,2\n")
    assert Grouping(str(path)).of(ROWS, WHERE) == {"p1/a.png": "1", "p2/a.png": "1"}
    assert Grouping(str(path)).name == "twins"
    for text, words in {
        "": "no csv with headings",
        "image,twin\n": "its columns are image, twin; write two, key and group",
        "key,twin\na,b,c\n": "a line has 3 cells, not 2",
        "key,twin\nother.png,2\n": "puts no image of run into a group",
    }.items():
        path.write_text(text)
        with pytest.raises(RecordError, match=words):
            Grouping(str(path)).of(ROWS, WHERE)
    with pytest.raises(RecordError, match=r"none\.csv: no such file"):
        Grouping(str(tmp_path / "none.csv")).of(ROWS, WHERE)


def test_groups_read_back_from_the_table_of_images(tmp_path: Path) -> None:
    plain = dict(zip(IMAGE_COLUMNS, ("1.png", "nut", 0, 0.5, 0.0, 1.0), strict=True))
    rows = [plain | group_columns({"view": "=C1"}), plain | {"key": "2.png"}]
    (tmp_path / "images.csv").write_bytes(table(tmp_path / "images.csv", IMAGE_COLUMNS, rows))
    first, second = read_images(tmp_path)
    assert (first.groups, second.groups) == ({"view": "=C1"}, {})

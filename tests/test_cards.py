from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.trees import write
from zsadbench.cards import Card, card_path, card_paths, read_toml
from zsadbench.data.templates import Template, TemplateError
from zsadbench.errors import DatasetError, MethodError

TEXT = """\
# a comment
title = "x"
words = '''
fake = 1
[also.fake]
'''
size = { normal = 3 }

[reference.dataset.visa]   # a note
"my key" = 1
a.b = 2

[[samples]]
image = "1"

[[samples]]
image = "2"
"""


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (("title",), 2),
        (("words",), 3),
        (("size",), 7),
        (("size", "normal"), 7),
        (("reference", "dataset", "visa"), 9),
        (("reference", "dataset", "visa", "my key"), 10),
        (("reference", "dataset", "visa", "a", "b"), 11),
        (("reference", "dataset", "visa", "absent"), 9),
        (("samples",), 13),
        (("samples", 0), 13),
        (("samples", 0, "image"), 14),
        (("samples", 1, "image"), 17),
        (("samples", 1, "columns", "id"), 16),
        (("fake",), 1),
    ],
)
def test_lines_of_keys(keys: tuple[str | int, ...], line: int) -> None:
    assert Card.parse(TEXT, Path("x.toml")).line(*keys) == line


def test_shipped_files_are_found_by_id() -> None:
    paths = card_paths("datasets")
    assert list(paths) == sorted(paths)
    assert {"mvtec", "visa", "mtd", "meta_json"} <= set(paths)
    assert all(path.is_file() and path.suffix == ".toml" for path in paths.values())
    assert card_path("datasets", "mvtec") == paths["mvtec"]


def test_unknown_ids_are_refused_with_the_nearest() -> None:
    with pytest.raises(DatasetError, match=r"Unknown dataset 'mvtek'. Did you mean 'mvtec'\?"):
        card_path("datasets", "mvtek")
    with pytest.raises(MethodError, match="Unknown method 'no such method'"):
        card_path("methods", "no such method")


def test_read_toml(tmp_path: Path) -> None:
    write(tmp_path, {"good.toml": "\ufeffa = 1\n", "bad.toml": "a = 1\nb = \n"})
    (tmp_path / "latin.toml").write_bytes(b"a = '\xe9'")
    assert read_toml(tmp_path / "good.toml") == {"a": 1}
    with pytest.raises(MethodError, match=r"bad.toml: not valid TOML: .*line 2"):
        read_toml(tmp_path / "bad.toml", MethodError)
    with pytest.raises(DatasetError, match=r"latin.toml: not UTF-8 text; save it"):
        read_toml(tmp_path / "latin.toml")
    write(tmp_path, {"deep.toml": "a = " + "[" * 10_000})
    with pytest.raises(DatasetError, match=r"deep.toml: not valid TOML: nested too deeply"):
        read_toml(tmp_path / "deep.toml")
    with pytest.raises(DatasetError, match=r"cannot be read \(Is a directory\)"):
        read_toml(tmp_path)
    with pytest.raises(DatasetError, match=r"gone.toml: no such file; check"):
        read_toml(tmp_path / "gone.toml")


def test_values_are_taken_by_type() -> None:
    card = Card.parse("a = 1\nb = 'x'\nc = true\n", Path("x.toml"), MethodError)
    assert card.take(card.data, "a", int, None) == 1
    assert card.take(card.data, "d", str, "none") == "none"
    for name, kind, words in (
        ("b", int, "x.toml:2: 'b' must be a whole"),
        ("c", int, "x.toml:3: 'c' must be"),
    ):
        with pytest.raises(MethodError, match=words):
            card.take(card.data, name, kind, None)
    with pytest.raises(MethodError, match="the key 'e' is missing; add e = a list"):
        card.take(card.data, "e", list, None)
    with pytest.raises(MethodError, match=r"x.toml:2: unknown key 'b'. Allowed: a, c"):
        card.known_keys(card.data, ("a", "c"))


@pytest.mark.parametrize(
    ("template", "name", "captured"),
    [
        ("{stem}.png", "a.b.PNG", {"stem": "a.b"}),
        ("{stem}.png", ".png", None),
        ("{stem}.PNG", "a.png", {"stem": "a"}),
        ("{stem}_mask.png", "a_MASK.png", None),
        ("{stem}.{ext}", "a.JPeG", {"stem": "a"}),
        ("{stem}.{ext}", "a.txt", None),
        ("{stem}.{ext:png|bmp}", "a.BMP", {"stem": "a"}),
        ("{stem}.{ext:png|bmp}", "a.jpg", None),
        ("{kind:a|ab}_{n}.png", "ab_1.png", {"kind": "ab", "n": "1"}),
        ("{kind:a|ab}_{n}.png", "c_1.png", None),
        ("{n}-{n}.png", "1-1.png", {"n": "1"}),
        ("{n}-{n}.png", "1-2.png", None),
        ("x+y.png", "x+y.Png", {}),
        ("x+y.png", "xxy.png", None),
    ],
)
def test_templates_match_names(template: str, name: str, captured: dict[str, str] | None) -> None:
    assert Template.parse(template).segments[-1].match(name) == captured


def test_templates_are_filled() -> None:
    template = Template.parse("./{class}//masks/{id:03}.{ext}")
    assert template.fill({"class": "nut", "id": "7"}) == "nut/masks/007.{ext}"
    assert template.fill_all({"class": "nut", "id": "7"})[:2] == ["nut/masks/007.png", "nut/masks/007.jpg"]
    assert Template.parse("{id:03}.png").fill_all({"id": "1234"}) == ["1234.png"]
    assert Template.parse("{id}.{ext:png|bmp}").fill_all({"id": "7"}) == ["7.png", "7.bmp"]
    with pytest.raises(TemplateError, match="'x' of 'id' is not a whole number"):
        template.fill({"class": "nut", "id": "x"})

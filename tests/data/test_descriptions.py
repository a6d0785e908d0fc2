"""Mistakes in a description are refused with file, line or key, and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.trees import heading, touch, write
from zsadbench.cards import card_paths
from zsadbench.data.descriptions import parse_description, shipped_description
from zsadbench.data.load import load_dataset
from zsadbench.errors import DatasetError

GOOD = (
    heading("required")
    + """
[classes]
nut = "hex nut"

[[samples]]
image = "{class}/{split:train|test}/{specie}/{stem}.png"
mask = "{class}/ground_truth/{specie}/{stem}_mask.png"
normal_when = { specie = ["good"] }
"""
)
TABLE = (
    GOOD[: GOOD.index("[[samples]]")]
    + """\
[[samples]]
table = "list.csv"
columns = { class = "class", image = "file", mask = "mask", label = "label" }
image = "{image}"
mask = "{mask}"
normal_when = { label = ["ok"] }
"""
)
NORMAL = 'normal_when = { specie = ["good"] }'
IMAGE = 'image = "{class}/{split:train|test}/{specie}/{stem}.png"'
MASK = 'mask = "{class}/ground_truth/{specie}/{stem}_mask.png"'

# name: (text, replacement, line, words of the message)
MISTAKES = {
    "unknown key at the top": (
        "url = ",
        "ulr = ",
        6,
        "unknown key 'ulr'. Did you mean 'url'? Allowed: format",
    ),
    "unknown key in a block": ("mask = ", "masque = ", 14, "unknown key 'masque'. Did you mean 'mask'?"),
    "missing key": ('title = "Mine"\n', "", 1, "the key 'title' is missing; add title = a string"),
    "another format": ("format = 1", "format = 2", 1, "reads format = 1"),
    "wrong type of a string": ('title = "Mine"', "title = 3", 3, "'title' must be a string, not 3"),
    "wrong type of the format": (
        "format = 1",
        "format = true",
        1,
        "'format' must be a whole number, not True",
    ),
    "id with a slash": ('"mine"', '"a/b"', 2, "id 'a/b' may hold letters"),
    "unknown value of masks": ('"required"', '"yes"', 7, "'masks' must be one of required, optional, none"),
    "bad mask rule": (
        'masks = "required"',
        'masks = "required"\nmask_positive = "0"',
        8,
        "'mask_positive' must be",
    ),
    "empty classes": ('nut = "hex nut"\n', "", 9, "[classes] is empty; list the classes"),
    "class without words": ('"hex nut"', '""', 10, "class 'nut' needs words"),
    "mask rule of other values": (
        'masks = "required"',
        'masks = "required"\nmask_positive = [1, "2"]',
        8,
        "a list of values such as [1, 2]",
    ),
    "empty template": (IMAGE, "image = []", 12, "the key 'image' is missing"),
    "template of slashes": (IMAGE, 'image = "./."', 13, "'./.' names no file"),
    "template with NUL": (IMAGE, 'image = "a\\u0000.png"', 13, "has a NUL character"),
    "several classes for a rule": (
        NORMAL,
        NORMAL + '\nclass = ["a", "b"]',
        16,
        "takes one template, not a list",
    ),
    "label from a mask that is not given": (
        MASK + "\n" + NORMAL,
        'label = "mask"',
        14,
        "needs a 'mask' template",
    ),
    "negative counts": ("\n[classes]", "expect = { normal = -3, anomaly = 1 }\n[classes]", 8, "be negative"),
    "expect with one count": (
        "\n[classes]",
        "expect = { normal = 3, anomaly = 1, categories = { nut = [4] } }\n[classes]",
        8,
        "'nut' must be [normal, anomalous] counts, not [4]",
    ),
    "class with a number": ('"hex nut"', "7", 10, "class 'nut' needs words"),
    "classes twice": ("[classes]", 'classes_from = "visa"\n[classes]', 9, "either [classes] or classes_from"),
    "subroot outside": ('url = "-"', 'url = "-"\nsubroot = ["../x"]', 7, "has a '..' part"),
    "subroot of another type": ('url = "-"', 'url = "-"\nsubroot = [1]', 7, "a string or a list of strings"),
    "absolute template": (
        IMAGE,
        'image = "/data/{class}/{specie}/{stem}.png"',
        13,
        "is absolute; make it relative",
    ),
    "drive letter": (IMAGE, 'image = "C:/{class}/{specie}/{stem}.png"', 13, "is absolute"),
    "Windows separators": (
        IMAGE,
        "image = '{class}\\{specie}\\{stem}.png'",
        13,
        "backslash; write the path with '/'",
    ),
    "template that leaves": (IMAGE, 'image = "{class}/../{specie}/{stem}.png"', 13, "has a '..' part"),
    "brace without partner": (
        IMAGE,
        'image = "{class/{specie}/{stem}.png"',
        13,
        "a brace without its partner",
    ),
    "not a capture": (IMAGE, 'image = "{class}/{a b}/{specie}/{stem}.png"', 13, "'{a b}' is not a capture"),
    "empty alternative": (IMAGE, 'image = "{class}/{specie:good|}/{stem}.png"', 13, "an empty alternative"),
    "padding without a table": (
        IMAGE,
        'image = "{class}/{specie}/{stem:03}.png"',
        13,
        "pads a field of a table",
    ),
    "no image": (IMAGE + "\n", "", 12, "the key 'image' is missing"),
    "mask of an unknown name": (
        "{stem}_mask",
        "{name}_mask",
        14,
        "'mask' uses 'name', which is not among the names",
    ),
    "label of an unknown name": ("{ specie = [", "{ kind = [", 15, "'normal_when' uses 'kind'"),
    "label with a bare value": ('["good"]', '"good"', 15, "must map a field to a list of values"),
    "two fields in a label": ('["good"] }', '["good"], stem = ["1"] }', 15, "must name one field"),
    "two kinds of label": (
        NORMAL,
        NORMAL + '\nlabel = "mask"',
        12,
        "exactly one of 'normal_when' and 'label'",
    ),
    "no label": (NORMAL, "", 12, "exactly one of 'normal_when' and 'label'"),
    "unknown kind of label": (NORMAL, 'label = "masks"', 15, "'label' must be one of normal, anomaly, mask"),
    "anomalies of another field": (
        NORMAL,
        NORMAL + "\nanomaly_when = { stem = [1] }",
        16,
        "of the same field",
    ),
    "masks required but none": (MASK + "\n", "", 12, "so a 'mask' template is needed"),
    "masks none but given": ('masks = "required"', 'masks = "none"', 14, "would never be read"),
    "class that is not listed": (NORMAL, NORMAL + '\nclass = "bolt"', 16, "class 'bolt' is not in [classes]"),
    "columns without a table": (NORMAL, NORMAL + '\ncolumns = { a = "b" }', 16, "belong together"),
    "group of an unknown name": (
        NORMAL,
        NORMAL + '\ngroups = { view = "{view}" }',
        16,
        "'groups' uses 'view'",
    ),
    "group of a taken name": (
        NORMAL,
        NORMAL + '\ngroups = { category = "{specie}" }',
        16,
        "a group cannot be called 'category'",
    ),
    "parts without a table": (NORMAL, NORMAL + '\nparts = "{class}/{x}.png"', 16, "'parts' is for tables"),
    "separator of two signs": (NORMAL, NORMAL + '\nseparator = "::"', 16, "must be one character"),
    "records without a json": (NORMAL, NORMAL + '\nrecords = "test"', 16, "needs a table that is a .json"),
    "blocks of another type": ("[[samples]]", "[samples]", 12, "'samples' must be a list"),
    "expect without a number": (
        "\n[classes]",
        "expect = { normal = 3 }\n[classes]",
        8,
        "the key 'anomaly' is missing",
    ),
    "expect of an unknown class": (
        "\n[classes]",
        "expect = { normal = 3, anomaly = 1, categories = { bolt = [1, 2] } }\n[classes]",
        8,
        "'bolt' is not in [classes]",
    ),
    "expect that does not add up": (
        "\n[classes]",
        "expect = { normal = 3, anomaly = 1, categories = { nut = [1, 2] } }\n[classes]",
        8,
        "sum up to (1, 2), not (3, 1)",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_with_file_line_and_remedy(name: str) -> None:
    old, new, line, words = MISTAKES[name]
    assert old in GOOD
    with pytest.raises(DatasetError) as caught:
        parse_description(GOOD.replace(old, new, 1), Path("mine.toml"))
    assert str(caught.value).startswith(f"mine.toml:{line}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_text_without_mistakes_is_accepted() -> None:
    found = parse_description(GOOD, Path("mine.toml"))
    assert found.words("nut") == "hex nut"
    assert found.words("metal_plate") == "metal plate"
    assert found.subroot == (".",)
    assert found.outline() == [
        "{class}/{train|test}/{specie}/{stem}.png",
        "{class}/ground_truth/{specie}/{stem}_mask.png",
    ]


def test_a_table_of_another_kind_is_refused() -> None:
    with pytest.raises(
        DatasetError, match=r"mine.toml:13: table 'list.xlsx' must be a .csv, .jsonl or .json"
    ):
        parse_description(TABLE.replace("list.csv", "list.xlsx"), Path("mine.toml"))


def test_at_least_one_block_is_needed() -> None:
    text = GOOD[: GOOD.index("\n[[samples]]")].replace("\n[classes]", "samples = []\n[classes]")
    with pytest.raises(
        DatasetError, match=r"mine.toml:8: 'samples' must be written as \[\[samples\]\] blocks"
    ):
        parse_description(text, Path("mine.toml"))


def test_a_column_must_have_a_name() -> None:
    with pytest.raises(
        DatasetError, match=r"mine.toml:14: column 'label' must name a column of the table, not 4"
    ):
        parse_description(TABLE.replace('label = "label"', "label = 4"), Path("mine.toml"))


def test_mask_values_are_a_rule_or_a_list() -> None:
    for text, value in (('">127"', ">127"), ('"alpha>0"', "alpha>0"), ("[1, 3]", (1, 3))):
        found = parse_description(
            GOOD.replace("\n[classes]", f"mask_positive = {text}\n[classes]"), Path("x")
        )
        assert found.mask_positive == value


def test_bad_syntax_names_the_line(tmp_path: Path) -> None:
    write(tmp_path, {"mine.toml": GOOD.replace('title = "Mine"', "title = Mine")})
    with pytest.raises(DatasetError, match=r"mine.toml: not valid TOML: .*line 3"):
        load_dataset(str(tmp_path / "mine.toml"))


def test_two_rules_that_match_one_file_are_refused(tmp_path: Path) -> None:
    second = '\n[[samples]]\nimage = "nut/test/{specie}/{stem}.{ext}"\nclass = "nut"\nlabel = "normal"\n'
    write(tmp_path, {"mine.toml": GOOD + second})
    touch(tmp_path, ["nut/test/good/1.png"])
    with pytest.raises(DatasetError) as caught:
        load_dataset(str(tmp_path / "mine.toml"))
    toml = tmp_path / "mine.toml"
    assert str(caught.value) == (
        f"{toml}:17: this [[samples]] block and the one at {toml}:12 both match 'nut/test/good/1.png'; "
        "make one of the templates narrower, or use `exclude`."
    )


def test_a_template_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    second = '\n[[samples]]\nimage = "extra/{stem}.png"\nclass = "nut"\nlabel = "normal"\n'
    write(tmp_path, {"mine.toml": GOOD + second})
    touch(tmp_path, ["nut/test/good/1.png"])
    with pytest.raises(
        DatasetError, match=r"mine.toml:17: the template 'extra/\{stem\}.png' matches nothing; corr"
    ):
        load_dataset(str(tmp_path / "mine.toml"))
    found = load_dataset(str(tmp_path / "mine.toml"), allow_missing=True)
    assert len(found.samples) == 1
    assert any("matches nothing" in note for note in found.notes)


def test_only_templates_that_match_nothing_show_the_expected_tree(tmp_path: Path) -> None:
    write(tmp_path, {"mine.toml": GOOD})
    with pytest.raises(DatasetError) as caught:
        load_dataset(str(tmp_path / "mine.toml"), tmp_path / "data")
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        f"No test image of dataset 'mine' found. Looked in {tmp_path}/data/mine, {tmp_path}/data."
    )
    assert lines[2] == "  {class}/{train|test}/{specie}/{stem}.png"


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (
            "class,fil,mask,label",
            "list.csv:1: no column 'file'; the header has class, fil, mask, label. Did you mean",
        ),
        ("class,file,mask,mask", "list.csv:1: more than one column 'mask'"),
    ],
)
def test_a_table_without_a_column_is_refused(header: str, words: str, tmp_path: Path) -> None:
    write(tmp_path, {"mine.toml": TABLE, "list.csv": f"{header}\nnut,1.png,,ok\n"})
    with pytest.raises(DatasetError) as caught:
        load_dataset(str(tmp_path / "mine.toml"))
    assert words in str(caught.value)
    assert "Correct the header, or `columns` of the description." in str(caught.value)


def test_shipped_descriptions_are_named_like_their_files() -> None:
    for name in card_paths("datasets"):
        found = shipped_description(name)
        assert found.id == name
        assert found.title and found.license and found.url
        assert found.citation == "" or found.citation.startswith("@")


def test_class_words_of_another_description_can_be_used() -> None:
    assert shipped_description("visa_pytorch").classes == shipped_description("visa").classes
    with pytest.raises(DatasetError, match=r"mine.toml:8: classes_from: Unknown dataset 'vista'"):
        parse_description(
            GOOD.replace('\n[classes]\nnut = "hex nut"', 'classes_from = "vista"'), Path("mine.toml")
        )


def described(root: Path, rule: str, more: str = "") -> list[str]:
    text = 'format = 1\nid = "m"\ntitle = "M"\ndomain = "any"\nmasks = "none"\n'
    write(root, {"m.toml": f'{text}{more}\n[[samples]]\nclass = "x"\n{rule}'})
    return [sample.key for sample in load_dataset(str(root / "m.toml")).samples]


def test_the_first_alternative_with_a_match_is_used_alone(tmp_path: Path) -> None:
    rule = 'image = ["none/{stem}.png", "new/{stem}.png", "old/{stem}.png"]\nlabel = "normal"\n'
    touch(tmp_path, ["old/1.png", "old/2.png"])
    assert described(tmp_path, rule) == ["old/1.png", "old/2.png"]
    touch(tmp_path, ["new/1.png"])
    assert described(tmp_path, rule) == ["new/1.png"]


def test_alternatives_of_a_table_are_tried_row_by_row(tmp_path: Path) -> None:
    table = 'table = "list.csv"\ncolumns = { id = "id" }\n'
    rule = table + 'image = ["new/{id}.png", "old/{id}.png"]\nlabel = "normal"\n'
    write(tmp_path, {"list.csv": "id\n1\n2\n"})
    touch(tmp_path, ["old/1.png", "old/2.png", "new/2.png"])
    assert described(tmp_path, rule) == ["new/2.png", "old/1.png"]


def test_a_name_used_twice_must_match_the_same_text(tmp_path: Path) -> None:
    touch(tmp_path, ["a/a_1.png", "a/b_1.png", "b/b_2.png"])
    rule = 'image = "{item}/{item}_{stem}.png"\nlabel = "normal"\n'
    assert described(tmp_path, rule) == ["a/a_1.png", "b/b_2.png"]


def test_a_csv_without_headings_has_its_columns_listed(tmp_path: Path) -> None:
    rule = (
        'table = "list.csv"\ncolumns = ["image", "label"]\nimage = "{image}"\nnormal_when = { label = [0] }\n'
    )
    write(tmp_path, {"list.csv": "1.png,0\n2.png,1\n"})
    touch(tmp_path, ["1.png", "2.png"])
    assert described(tmp_path, rule) == ["1.png", "2.png"]
    write(tmp_path, {"list.csv": "1.png    0.0\n\n2.png 1\n"})
    assert described(tmp_path, f"{rule}separator = ' '\n") == ["1.png", "2.png"]
    write(tmp_path, {"list.csv": "1.png;0\n2.png\n"})
    with pytest.raises(DatasetError, match=r"list\.csv:2: 1 cells, but the header has 2"):
        described(tmp_path, f"{rule}separator = ';'\n")


def test_the_first_of_several_tables_that_exists_is_used(tmp_path: Path) -> None:
    more = 'columns = { id = "id" }\nimage = "{id}.png"\nlabel = "normal"\n'
    rule = 'table = ["lists/{class}.csv", "{class}.csv"]\n' + more
    write(tmp_path, {"x.csv": "id\n1\n"})
    touch(tmp_path, ["1.png", "2.png"])
    assert described(tmp_path, rule) == ["1.png"]
    write(tmp_path, {"lists/x.csv": "id\n2\n"})
    assert described(tmp_path, rule) == ["2.png"]


def test_a_pattern_with_a_slash_leaves_out_paths(tmp_path: Path) -> None:
    touch(tmp_path, ["a/1.png", "a/2.png", "b/1.png"])
    rule = 'image = "{item}/{stem}.png"\nlabel = "normal"\n'
    assert described(tmp_path, rule, 'exclude = ["A/1.png"]\n') == ["a/2.png", "b/1.png"]
    assert described(tmp_path, rule, 'exclude = ["1.png"]\n') == ["a/2.png"]


JUDGED_ANEW = """
[classes]
nut = "hex nut"

[[samples]]
split = "test"
table = "judged.csv"
columns = { image = "image", mask = "mask" }
parts = "{class}/test/{specie}/{stem}.png"
image = "{image}"
mask = "{mask}"
normal_when = { mask = [""] }
groups = { kind = "{specie}" }
"""


def test_a_list_judges_a_set_anew_and_its_paths_tell_the_rest(tmp_path: Path) -> None:
    """Images that it lacks are gone, one has another mask, one is normal now."""
    touch(tmp_path, [f"nut/test/{kind}/{i}.png" for kind in ("good", "bent") for i in range(3)])
    touch(tmp_path, ["new/nut_1.png"])
    rows = "nut/test/good/0.png,\nnut/test/bent/1.png,new/nut_1.png\nnut/test/bent/2.png,\n"
    write(tmp_path, {"judged.csv": f"image,mask\n{rows}", "mine.toml": heading("required") + JUDGED_ANEW})
    found = load_dataset(str(tmp_path / "mine.toml"))
    assert [(s.key, s.anomalous, s.mask and s.mask.name) for s in found.samples] == [
        ("nut/test/bent/1.png", True, "nut_1.png"),
        ("nut/test/bent/2.png", False, None),
        ("nut/test/good/0.png", False, None),
    ]
    assert [(s.category, s.specie, s.groups) for s in found.samples][::2] == [
        ("nut", "bent", {"kind": "bent"}),
        ("nut", "good", {"kind": "good"}),
    ]


def test_a_path_that_parts_do_not_fit_is_said_and_has_no_group(tmp_path: Path) -> None:
    text = JUDGED_ANEW.replace('parts = "', 'class = "nut"\nparts = "')
    touch(tmp_path, ["nut/test/good/0.png", "odd.png"])
    write(tmp_path, {"judged.csv": "image,mask\nnut/test/good/0.png,\nodd.png,\n"})
    write(tmp_path, {"mine.toml": heading("required") + text})
    found = load_dataset(str(tmp_path / "mine.toml"))
    assert [s.groups["kind"] for s in found.samples] == ["good", ""]
    (note,) = [note for note in found.notes if "parts" in note]
    assert note.startswith("warning: judged.csv: 1 path of images fit no template of `parts` (first odd.png)")

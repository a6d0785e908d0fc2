"""Published figures stand only beside what may be compared with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.kit.boardkit import observation, protocol, row, save
from zsadbench.boards.beside import differences, shortfall
from zsadbench.boards.board import Board
from zsadbench.boards.compare import boards
from zsadbench.boards.latex import to_latex
from zsadbench.boards.text import to_json, to_markdown
from zsadbench.boards.words import MARKS, sources
from zsadbench.data import shipped_description
from zsadbench.errors import UsageError
from zsadbench.method import resolve, wordings
from zsadbench.records.published import KINDS, Published, published_figures, published_numbers
from zsadbench.records.records import Record


def run_of(
    folder: Path,
    spec: str = "winclip",
    dataset: str = "visa",
    *,
    backbone: str | None = None,
    weights: str | None = None,
    categories: int | None = None,
    settings: dict[str, Any] | None = None,
    prompts: Path | None = None,
    rules: dict[str, Any] | None = None,
    **more: Any,
) -> Record:
    """Save the record that a run on the first ``categories`` of a dataset would have written."""
    described = shipped_description(dataset)
    assert described.expect
    resolved = resolve(
        spec,
        dataset=dataset,
        domain=described.domain,
        backbone=backbone,
        weights=weights,
        settings=settings,
        prompts=prompts,
    )
    tower = resolved.method.backbone
    names = list(described.classes)[:categories]
    seen = observation(
        resolved.card.id,
        variant=resolved.variant,
        dataset=dataset,
        parameters=resolved.parameters,
        about={"domain": described.domain},
        **{
            "backbone": {"name": tower.name, "weights": tower.weights, "sha256": tower.weights},
            "wordings": wordings(resolved, {name: described.words(name) for name in names}),
            **more,
        },
    )
    counts = {name: described.expect.categories[name] for name in names}
    rows = [row(name, 0.5, normal=good, anomalous=bad) for name, (good, bad) in counts.items()]
    return save(folder, seen, *rows, rules=rules)


def one(record: Record, **options: Any) -> Board:
    (board,) = boards([record], **options)
    return board


def marks_beside(record: Record) -> set[tuple[str, ...]]:
    figures = published_figures(record.method_id, record.variant, "visa", "mean", ["image_auroc"], False)
    return {differences(record, figure) for figure in figures}


# The table


def test_the_shipped_table_is_whole() -> None:
    table = published_numbers()
    assert len(table) == 2778
    assert {entry.kind for entry in table} == set(KINDS)
    assert all(0 <= entry.value <= 1 for entry in table)


def test_figures_of_bayes_pfl_on_the_sets_its_authors_cut_stand_under_the_ids_of_these() -> None:
    def values(dataset: str) -> list[tuple[str, float]]:
        metrics = ["image_auroc", "image_ap"]
        found = published_figures("bayes-pfl", "reference", dataset, "mean", metrics, False)
        return sorted((entry.metric, entry.value) for entry in found)

    assert values("ksdd2_bayes_pfl") == [("image_ap", 0.979), ("image_auroc", 0.973)]
    assert ("image_auroc", 0.941) in values("rsdd_bayes_pfl") and len(values("rsdd_bayes_pfl")) == 4
    assert ("image_auroc", 0.977) in values("dagm_bayes_pfl") and len(values("dagm_bayes_pfl")) == 4
    assert values("ksdd2") == values("rsdd") == []
    assert values("dagm") == [("image_auroc", 0.989)]  # its source does not say of which images
    described = shipped_description("ksdd2").expect
    assert described and described.total == (894, 110)


def test_backbones_are_read_as_open_clip_spells_them() -> None:
    found = {(e.backbone, e.architecture, e.weights) for e in published_numbers()}
    assert {
        ("ViT-L/14@336px (OpenAI)", "ViT-L-14-336", "openai"),
        ("ViT-L-14-336 openai", "ViT-L-14-336", "openai"),
        ("ViT-L-14-336 (presumed; re-quoted)", "ViT-L-14-336", ""),
        ("ViT-B-16-plus-240 (LAION-400M)", "ViT-B-16-plus-240", "laion400m"),
        ("ViT-B-16-plus-240 laion400m_e31", "ViT-B-16-plus-240", "laion400m_e31"),
        ("ViT-L/14@336px (OpenAI) + DINOv2 ViT-B/14 reg", "ViT-L-14-336", "openai"),
        ("", "", ""),
    } <= found


def first(method: str, variant: str = "reference", metric: str = "image_auroc", legacy: bool = False) -> Any:
    figures = published_figures(method, variant, "visa", "mean", [metric], legacy)
    return (figures[0].value, figures[0].kind) if figures else None


def test_the_most_trusted_figure_comes_first() -> None:
    assert KINDS == ("author-log", "paper", "quoted", "rerun", "derived")
    assert first("winclip") == (0.781, "paper")
    assert first("winclip", metric="pixel_ap") == (0.054, "rerun")
    kinds = [
        e.kind for e in published_figures("anomalyclip", "reference", "visa", "mean", ["image_auroc"], False)
    ]
    assert kinds[:2] == ["author-log", "paper"]


def test_aupro_from_200_thresholds_stands_on_legacy_boards_only() -> None:
    rules = {
        e.rule for e in published_figures("anomalyclip", "reference", "visa", "mean", ["pixel_aupro"], False)
    }
    assert "legacy200" not in rules
    assert first("anomalyclip", metric="pixel_aupro", legacy=True) == (0.867, "author-log")


def test_variants_and_few_shots_have_their_own_figures() -> None:
    assert first("clip", "ac") == (0.65, "paper")
    assert first("clip") == (0.664, "paper")
    assert first("winclip", "code21") is None
    shots = published_figures("aa-clip", "reference", "mvtec", "mean", ["image_auroc"], False)
    assert shots and not [
        entry for entry in shots if entry.variant.endswith("-shot") and entry.variant[0].isdigit()
    ]
    assert published_figures("aa-clip", "2-shot", "mvtec", "mean", ["image_auroc"], False)


# Beside a row


def test_a_reference_run_on_the_whole_set_has_its_figures(tmp_path: Path) -> None:
    board = one(run_of(tmp_path))
    published = board.rows[0].published
    assert (published["image_auroc"].value, published["image_auroc"].kind) == (0.781, "paper")
    assert published["pixel_ap"].kind == "rerun"
    assert board.rows[0].others == () and board.rows[0].marks == []
    line = board.lines()[0]
    assert (line["published_image_auroc"], line["published_image_auroc_kind"]) == (0.781, "paper")
    assert line["image_auroc"] == 0.5
    assert "*published: paper*" in to_markdown([board]) and "**78.1**" not in to_markdown([board])
    assert any("winclip Image AUROC" in text and "arXiv:2310.18961" in text for text in sources(board))
    assert one(run_of(tmp_path), published="none").rows[0].published == {}


@pytest.mark.parametrize(
    ("change", "mark"),
    [
        ({"backbone": "demo", "categories": 4}, "other backbone"),
        ({"weights": "random"}, "other backbone"),
        ({"weights": "laion400m_e32"}, "other backbone"),
        ({"categories": 4}, "incomplete set"),
        ({"settings": {"size": 192}}, "changed settings"),
        ({"settings": {"temperature": 0.01}}, "changed settings"),
        ({"rules": protocol("custom", map_parameters={"sigma": 8.0})}, "changed settings"),
        ({"rules": protocol("custom", size=64)}, "changed settings"),
        ({"wordings": {"candle": "a wax light"}}, "changed settings"),
    ],
)
def test_what_differs_keeps_figures_away_and_is_marked_on_request(
    tmp_path: Path, change: dict[str, Any], mark: str
) -> None:
    record = run_of(tmp_path, **change)
    board = one(record)
    assert board.rows[0].published == {}
    assert "published" not in to_markdown([board]).lower()
    assert all(mark in marks for marks in marks_beside(record))
    shown = one(record, published="all")
    assert shown.rows[0].published == {} and shown.rows[0].others
    for text in (to_markdown([shown]), to_json([shown]), to_latex([shown])):
        assert MARKS[mark] in text
        assert "78.1" in text or "0.781" in text


def test_prompts_of_ones_own_keep_figures_away(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('normal = ["good {}"]\nanomalous = ["bad {}"]\ntemplates = ["{}"]\n')
    record = run_of(tmp_path, "clip", prompts=tmp_path / "p.toml")
    assert one(record).rows[0].published == {}
    assert one(run_of(tmp_path, "clip")).rows[0].published != {}


def test_an_own_checkpoint_is_not_the_authors(tmp_path: Path) -> None:
    trained: dict[str, Any] = {"checkpoint": {"sha256": "a", "dataset": "mvtec", "source": ""}}
    imported: dict[str, Any] = {"checkpoint": {"sha256": "b", "dataset": "mvtec", "source": "9_12_4.pth"}}
    assert all("own checkpoint" in m for m in marks_beside(run_of(tmp_path, "anomalyclip", **trained)))
    assert (
        one(run_of(tmp_path, "anomalyclip", **imported)).rows[0].published["image_auroc"].kind == "author-log"
    )


def test_foreign_maps_and_methods_of_users_have_none(tmp_path: Path) -> None:
    foreign = run_of(tmp_path)
    method = foreign.observation["method"]
    for change, mark in (
        ({"foreign": True}, "foreign maps"),
        ({"spec": "winclip.py:WinClip"}, "changed settings"),
    ):
        seen = {**foreign.observation, "method": {**method, **change}}
        record = save(tmp_path / mark, seen, *foreign.content["categories"])
        assert marks_beside(record) == {(mark,)}
        assert one(record).rows[0].published == {}


def test_a_part_of_the_set_has_the_figures_of_its_categories_only(tmp_path: Path) -> None:
    chosen = {"selection": {"limit": None, "categories": ["a", "b"]}}
    record = run_of(tmp_path, categories=2)
    seen = {**record.observation, "dataset": {**record.observation["dataset"], **chosen}}
    part = save(tmp_path / "part", seen, *record.content["categories"])
    assert one(part).rows[0].published == {}
    by_category = one(part, by="category")
    assert all(line.published for line in by_category.rows)
    limited = {**seen, "dataset": {**seen["dataset"], "selection": {"limit": 24}}}
    few = save(tmp_path / "few", limited, *record.content["categories"])
    assert not any(line.published for line in one(few, by="category").rows)


def test_an_incomplete_set_is_marked_where_nothing_is_published_too(tmp_path: Path) -> None:
    record = run_of(tmp_path, categories=4)
    assert shortfall(record) == "incomplete set"
    assert "incomplete set" in one(record).rows[0].marks
    assert shortfall(run_of(tmp_path)) == ""
    assert shortfall(save(tmp_path, observation("clip", dataset="my-parts"), row("a"))) == ""
    chosen = observation("clip", dataset="visa", about={"selection": {"limit": 8}})
    assert shortfall(save(tmp_path, chosen, row("candle"))) == ""  # its mark is "subset"


def test_more_images_than_the_set_has_are_other_images(tmp_path: Path) -> None:
    record = run_of(tmp_path)
    first, *rest = record.content["categories"]
    more = save(tmp_path / "more", record.observation, {**first, "normal": first["normal"] + 1}, *rest)
    assert marks_beside(more) == {("other images",)}
    assert one(more).rows[0].published == {} and one(more).rows[0].marks == []
    untouched = [line for line in one(more, by="category").rows if line.published]
    assert [line.category for line in untouched] == [each["category"] for each in rest]


def test_every_difference_is_marked_at_once(tmp_path: Path) -> None:
    trained: dict[str, Any] = {"checkpoint": {"sha256": "a", "dataset": "mvtec", "source": ""}}
    smoother = protocol("custom", map_parameters={"sigma": 8.0})
    record = run_of(tmp_path, "anomalyclip", backbone="demo", categories=4, rules=smoother, **trained)
    marks = "other backbone, own checkpoint, incomplete set, changed settings"
    assert marks_beside(record) == {tuple(marks.split(", "))}
    board = one(record, published="all")
    assert f"| {marks} |" in to_markdown([board])
    assert all(f"{mark}: {MARKS[mark]}." in to_markdown([board]) for mark in marks.split(", "))


def test_all_shows_every_other_source_numbered(tmp_path: Path) -> None:
    board = one(run_of(tmp_path), published="all")
    (line,) = board.rows
    assert line.published["image_auroc"].value == 0.781
    kinds = [source.kind for source in line.others]
    assert {"quoted", "rerun"} <= set(kinds) and kinds == sorted(kinds, key=KINDS.index)
    text = to_markdown([board])
    assert all(f"\\[{number}\\]" in text for number in range(1, len(line.others) + 1))
    with pytest.raises(UsageError, match="Did you mean 'fitting'"):
        one(run_of(tmp_path), published="fiting")


def test_figures_of_another_backbone_stand_beside_runs_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = Published(
        *("winclip", "ViT-B-32 at 256", "visa", "mean", "image_auroc", 0.7, "paper"),
        *("ViT-B-32 (OpenAI)", "256", "made up", ""),
    )
    monkeypatch.setattr("zsadbench.boards.beside.published_figures", lambda *place: [entry])
    other = run_of(tmp_path, backbone="ViT-B-32", weights="openai", settings={"size": 256})
    assert one(other).rows[0].published == {"image_auroc": entry}
    for backbone, weights in ((None, None), ("ViT-B-32", "openai")):
        record = run_of(tmp_path, backbone=backbone, weights=weights)
        assert one(record).rows[0].published == {}


def test_a_miniature_board_loads_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    record = run_of(tmp_path, backbone="demo", categories=4)
    code = (
        "import sys; from pathlib import Path; from zsadbench.boards import boards\n"
        "from zsadbench.records import read_record\n"
        "(board,) = boards([read_record(Path(sys.argv[1]))])\n"
        "assert board.rows[0].published == {} and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(record.path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

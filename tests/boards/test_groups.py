"""Groups from published names to boards: LOCO, MVTec AD 2 and Real-IAD in miniature on a random CLIP."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.kit.factory import save
from tests.kit.terminal import call
from zsadbench.boards import boards, compare, to_csv
from zsadbench.boards.intervals import draws_of
from zsadbench.boards.text import file_name
from zsadbench.boards.words import footer
from zsadbench.errors import RecordError, UsageError
from zsadbench.metrics import SEVEN, PixelMetrics, evaluate
from zsadbench.metrics.bootstrap import resample
from zsadbench.records import Grouping, ImageRow, Record, find_records, tables
from zsadbench.run.jobs import Request
from zsadbench.run.run import execute
from zsadbench.scoring import StoredMaps, by_group, merged

SIDE = 48


def picture(path: Path, seed: int, mask: Path | None = None) -> None:
    """Write noise, with a dark square and its mask where one is named."""
    rng = np.random.RandomState(seed)
    image = rng.randint(80, 180, (SIDE, SIDE, 3))
    if mask:
        square = np.zeros((SIDE, SIDE))
        corner = 4 + seed % 20
        square[corner : corner + 16, corner : corner + 12] = 255
        save(mask, square)
        image = np.where(square[..., None] > 0, 15, image)
    save(path, image)


def real_iad(root: Path) -> None:
    """Twelve objects of two views; of a defective one the second view shows nothing."""
    rows = []
    for number in range(12):
        kind = "OK" if number < 6 else "NG/HS"
        for view in (1, 2):
            stem = f"{kind}/S{number:04}/usb_{number:04}_{kind.replace('/', '_')}_C{view}_2023"
            mask = f"{stem}_mask.png" if number > 5 and view == 1 else None
            folder = root / "realiad_1024/usb"
            picture(folder / f"{stem}.jpg", 10 * number + view, folder / mask if mask else None)
            code = kind.rpartition("/")[2]
            rows.append({"anomaly_class": code, "image_path": f"{stem}.jpg", "mask_path": mask})
    table = root / "realiad_jsons/realiad_jsons/usb.json"
    table.parent.mkdir(parents=True)
    table.write_text(json.dumps({"meta": {}, "train": [], "test": rows}))


def ad_2(root: Path) -> None:
    for place, category in enumerate(("can", "vial")):
        for number in range(5):
            for light in ("regular", "shift_1"):
                name, seed = f"{number:03}_{light}", 100 * place + 10 * number + len(light)
                part = root / category / "test_public"
                picture(part / f"good/{name}.png", seed)
                picture(part / f"bad/{name}.png", seed + 5, part / f"ground_truth/bad/{name}_mask.png")


def loco(root: Path) -> None:
    for place, category in enumerate(("pushpins", "screw_bag")):
        top = root / category
        for kind, count in (("good", 6), ("logical_anomalies", 5), ("structural_anomalies", 6)):
            for number in range(count):
                mask = top / f"ground_truth/{kind}/{number:03}/000.png" if kind != "good" else None
                picture(top / f"test/{kind}/{number:03}.png", 99 * place + 7 * number + len(kind), mask)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    root = tmp_path_factory.mktemp("groups")
    real_iad(root / "data/real_iad")
    ad_2(root / "data/mvtec_ad_2")
    loco(root / "data/mvtec_loco")
    request = Request(
        data=root / "data",
        backbone="tiny-b16p",
        weights="random",
        out=root / "results",
        allow_missing=True,
        quiet=True,
        workers=1,
        device="cpu",
    )
    execute(["clip"], ["real_iad", "mvtec_ad_2", "mvtec_loco"], request)
    found, problems = find_records([root / "results"])
    assert problems == []
    return {record.dataset: record for record in found}


def auroc(rows: Sequence[ImageRow]) -> float:
    return float(roc_auc_score([row.anomalous for row in rows], [row.image_score for row in rows]))


def test_groups_are_kept_beside_the_scores(records: dict[str, Record]) -> None:
    views = {row.key: row.groups for row in records["real_iad"].images()}
    key = "realiad_1024/usb/NG/HS/S0007/usb_0007_NG_HS_C2_2023.jpg"
    assert views[key] == {"view": "C2", "object": "HS/S0007"}
    kinds = [row.groups.get("kind", "") for row in records["mvtec_loco"].images()]
    assert sorted(kinds) == [""] * 12 + ["logical_anomalies"] * 10 + ["structural_anomalies"] * 12


def test_an_object_has_the_highest_score_of_its_views(records: dict[str, Record]) -> None:
    record = records["real_iad"]
    rows = {row.key: row for row in record.images()}
    scores = [max(r.image_score or 0 for r in rows.values() if f"/S{n:04}/" in r.key) for n in range(12)]
    found = merged(record, Grouping("object"))
    assert sorted(row.image_score or 0 for row in found.images()) == pytest.approx(sorted(scores), abs=0)
    assert found.value("usb", "image_auroc") == pytest.approx(
        roc_auc_score([0] * 6 + [1] * 6, scores), abs=1e-12
    )
    assert (found.categories["usb"]["normal"], found.categories["usb"]["anomalous"]) == (6, 6)
    assert not any(metric.startswith("pixel") for metric in found.metrics)
    (board,) = boards([record], per="object", published="all")
    assert board.rows[0].cell("image_auroc").value == found.value("usb", "image_auroc")
    assert (board.rows[0].published, board.rows[0].others) == ({}, ())
    assert file_name([board], "csv") == "leaderboard-per-object.csv"
    (again,) = boards([record], per=r"S\d+/")
    assert again.rows[0].cell("image_auroc") == board.rows[0].cell("image_auroc")


def test_a_board_by_lighting_has_means_over_categories(records: dict[str, Record]) -> None:
    record = records["mvtec_ad_2"]
    (board,) = boards([record], by="lighting")
    assert [row.category for row in board.rows] == ["regular", "shift_1"]
    rows = record.images()
    for row in board.rows:
        own = [[r for r in rows if r.category == c and row.category in r.key] for c in ("can", "vial")]
        assert [len(each) for each in own] == [10, 10]
        assert row.cell("image_auroc").value == pytest.approx(np.mean([*map(auroc, own)]), abs=1e-12)
    frame = compare(record.path.parents[1], by="lighting")
    assert list(frame["by"]) == ["lighting"] * 2
    assert "by,category" in to_csv([board]).splitlines()[0]
    assert file_name([board], "md") == "leaderboard-by-lighting.md"


def test_pixel_metrics_by_lighting_are_those_of_its_maps_and_masks(records: dict[str, Record]) -> None:
    record = records["mvtec_ad_2"]
    view = by_group(record, Grouping("lighting"), workers=1)
    wanted = []
    for category in ("can", "vial"):
        reader = StoredMaps.of(record).reader(category)
        metrics = PixelMetrics(tuple(record.protocol["aupro_limits"]))
        for place, key in enumerate(reader.maps.keys):
            if "shift_1" in key:
                one, mask = reader.read(place)
                assert mask is not None
                metrics.update(one, mask, key)
        wanted.append(metrics.compute())
    for metric in ("pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_aupro"):
        mean = np.mean([float(each[metric] or 0) for each in wanted])
        assert view.value("shift_1", metric) == pytest.approx(mean, abs=1e-12), metric
    every = by_group(record, Grouping("test_publi."), workers=1)  # all images in one group
    for metric in ("image_auroc", "image_fpr95", "pixel_auroc", "pixel_aupro"):
        assert every.value("test_public", metric) == pytest.approx(record.mean(metric).value, abs=1e-12)
    with pytest.raises(RecordError, match="puts no image of"):
        by_group(record, Grouping("^"), pixels=False)


def test_good_images_stand_beside_each_kind_of_loco(records: dict[str, Record]) -> None:
    record = records["mvtec_loco"]
    view = by_group(record, Grouping("kind"), pixels=False)
    rows = record.images()
    assert list(view.categories) == ["logical_anomalies", "structural_anomalies"]
    for kind, count in (("logical_anomalies", 10), ("structural_anomalies", 12)):
        own = [row for row in rows if kind in row.key or "good" in row.key]
        assert (view.categories[kind]["normal"], view.categories[kind]["anomalous"]) == (12, count)
        each = [auroc([row for row in own if row.category == name]) for name in ("pushpins", "screw_bag")]
        assert view.value(kind, "image_auroc") == pytest.approx(np.mean(each), abs=1e-12)


def test_a_value_without_anomalous_images_is_undefined_and_says_why(records: dict[str, Record]) -> None:
    view = by_group(records["real_iad"], Grouping("view"), pixels=False)
    assert view.value("C1", "image_auroc") is not None
    assert view.value("C2", "image_auroc") is None
    assert view.reasons("image_auroc") == ["no anomalous image"]


def test_evidence_that_is_gone_leaves_image_metrics(records: dict[str, Record]) -> None:
    record = records["mvtec_ad_2"]
    moved = replace(record, path=record.path.parents[2] / "gone" / "reference" / "record.json")
    moved.path.parent.mkdir(parents=True)
    (moved.path.parent / "images.csv").write_bytes((record.path.parent / "images.csv").read_bytes())
    view = by_group(moved, Grouping("lighting"), workers=1)
    assert view.value("regular", "image_auroc") is not None and "pixel_auroc" not in view.metrics
    assert "no pixel metrics of clip by lighting" in view.notes[-1]


def test_draws_of_single_images_are_those_of_the_plain_bootstrap() -> None:
    labels = np.array([0, 1, 1, 0, 0, 1, 0], bool)
    names = [f"{i}.png" for i in range(7)]
    assert np.array_equal(resample("nut", labels, 50, names), resample("nut", labels, 50))


def test_groups_are_drawn_whole_and_every_draw_has_both_kinds() -> None:
    labels = np.array([0, 0, 1, 1, 1, 0, 0, 1], bool)
    groups = ["a", "a", "b", "b", "c", "c", "d", "e"]  # normal, anomalous, both, normal, anomalous
    weights = resample("nut", labels, 400, groups)
    assert np.array_equal(weights[:, 0], weights[:, 1]) and np.array_equal(weights[:, 2], weights[:, 3])
    assert np.array_equal(weights[:, 4], weights[:, 5])
    assert (weights[:, 4] == 1).all()  # alone in its stratum
    assert (weights[:, [0, 6]].sum(axis=1) == 2).all() and (weights[:, [2, 7]].sum(axis=1) == 2).all()
    assert len(np.unique(weights, axis=0)) == 9
    assert (weights[:, labels].sum(axis=1) > 0).all() and (weights[:, ~labels].sum(axis=1) > 0).all()


def test_groups_of_like_images_widen_the_interval(tmp_path: Path, records: dict[str, Record]) -> None:
    """Ten copies of each image under two names: as images the interval is narrow, as groups it is not."""
    record = records["mvtec_ad_2"]
    rows = [row for row in record.images() if row.category == "can"]
    lines = ["key,category,anomalous,image_score,map_min,map_max,group_copy"]
    for row in rows:
        lines += [f"{row.key}.{i},can,{int(row.anomalous)},{row.image_score},,,{row.key}" for i in range(10)]
    path = tmp_path / "reference" / "record.json"
    path.parent.mkdir()
    (path.parent / "images.csv").write_text("\n".join(lines) + "\n")
    category = {**record.categories["can"], "image_auroc": auroc(rows)}
    copies = Record(path, {**record.content, "categories": [category]})
    alone = draws_of(copies, pixels=False, replicates=300)
    whole = draws_of(copies, pixels=False, replicates=300, grouping=Grouping("copy"))
    spread = [float(np.std(found.values["can", "image_auroc"])) for found in (alone, whole)]
    assert spread[1] == pytest.approx(spread[0] * np.sqrt(10), rel=0.3)
    plain = draws_of(record, pixels=False, replicates=300).values["can", "image_auroc"]
    assert np.array_equal(np.sort(plain), np.sort(whole.values["can", "image_auroc"]))
    assert whole.notes[-1].startswith("rough interval, fewer than 20 normal or anomalous groups of 'copy'")


def by_hand(rows: Sequence[ImageRow], units: Sequence[str], category: str, draws: int) -> np.ndarray:
    """Return AUROC in every draw of whole units: each is taken as often as the draw says, one by one."""
    labels, scores = [row.anomalous for row in rows], [row.image_score for row in rows]
    random = np.random.RandomState(zlib.crc32(f"boot/{category}".encode()))
    drawn: list[list[list[int]]] = [[] for _ in range(draws)]
    for kind in (False, True):
        names = list(dict.fromkeys(unit for unit, label in zip(units, labels, strict=True) if label == kind))
        members = [[i for i, unit in enumerate(units) if unit == name] for name in names]
        for draw, places in enumerate(random.randint(0, len(names), (draws, len(names)))):
            drawn[draw] += [members[place] for place in places]
    flat = [[i for unit in draw for i in unit] for draw in drawn]
    return np.array([roc_auc_score([labels[i] for i in draw], [scores[i] for i in draw]) for draw in flat])


def test_the_interval_of_objects_is_that_of_draws_by_hand(records: dict[str, Record]) -> None:
    """Real-IAD's sample level: one score per object, and objects are what is drawn."""
    record = records["real_iad"]
    options: Any = {"per": "object", "intervals": True, "replicates": 150, "metrics": ["image_auroc"]}
    (board,) = boards([record], **options)
    rows = record.images()
    best: dict[str, ImageRow] = {}
    for row in sorted(rows, key=lambda row: row.image_score or 0):
        name = row.groups["object"]
        best[name] = replace(row, anomalous=name.startswith("HS"))
    names = sorted(best)  # objects by name, as their keys are
    drawn = by_hand([best[name] for name in names], names, "usb", 150)
    cell = board.rows[0].cell("image_auroc")
    assert cell.interval == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=1e-12)
    assert cell.interval and cell.interval.low < (cell.value or 0) < cell.interval.high


def test_the_interval_of_whole_objects_is_that_of_draws_by_hand(records: dict[str, Record]) -> None:
    """MVTec AD 2: the lightings of an object are drawn together, a mean has the mean of each draw."""
    record = records["mvtec_ad_2"]
    options: Any = {"group_by": "object", "intervals": True, "replicates": 150, "metrics": ["image_auroc"]}
    (board,) = boards([record], **options)
    each = []
    for category in ("can", "vial"):
        rows = sorted((row for row in record.images() if row.category == category), key=lambda row: row.key)
        each.append(by_hand(rows, [row.groups["object"] for row in rows], category, 150))
    wanted = np.percentile(np.mean(each, axis=0), [2.5, 97.5])
    assert board.rows[0].cell("image_auroc").interval == pytest.approx(wanted, abs=1e-12)
    (single,) = boards([record], **{**options, "group_by": None})
    assert single.rows[0].cell("image_auroc").interval != pytest.approx(wanted, abs=1e-3)


def test_a_board_by_kind_of_loco_has_pixel_metrics_of_good_images_and_that_kind(
    records: dict[str, Record],
) -> None:
    record = records["mvtec_loco"]
    (board,) = boards([record], by="kind", metrics=["image_auroc", "pixel_ap", "pixel_aupro"])
    for row in board.rows:
        wanted: dict[str, list[float]] = {"pixel_ap": [], "pixel_aupro": []}
        for category in ("pushpins", "screw_bag"):
            reader = StoredMaps.of(record).reader(category)
            seen = [
                reader.read(i)
                for i, key in enumerate(reader.maps.keys)
                if row.category in key or "good" in key
            ]
            found = evaluate([np.asarray(one) for one, _ in seen], [mask for _, mask in seen])
            for metric, values in wanted.items():
                values.append(float(found[metric] or 0))
        for metric, values in wanted.items():
            assert row.cell(metric).value == pytest.approx(np.mean(values), abs=1e-12), metric
    assert len({row.cell("pixel_ap").value for row in board.rows}) == 2


def test_derived_columns_stand_on_boards_by_groups(records: dict[str, Record]) -> None:
    record = records["mvtec_loco"]
    seen = {**record.observation, "method": {**record.observation["method"], "id": "other"}}
    other = replace(record, content={**record.content, "observation": seen})
    (board,) = boards([record], by="kind", metrics=[*SEVEN, "mad"])
    for row in board.rows:
        seven = [float(row.cell(metric).value or 0) for metric in SEVEN]
        assert row.cell("mad").value == pytest.approx(np.mean(seven), abs=1e-15)
    (both,) = boards([record, other], by="kind", metrics=["image_auroc", "rank"])
    assert {row.cell("average_rank").value for row in both.rows} == {1.5}
    assert any("among 2 methods in 2 values of 'kind' by Image AUROC" in line for line in footer(both))
    with pytest.raises(UsageError, match="one image score per group, and no maps: leave pixel_ap, mad out"):
        boards([records["real_iad"]], per="object", metrics=["image_ap", "pixel_ap", "mad", "rank"])


def test_images_are_read_once_for_a_board_by_groups(
    records: dict[str, Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    plain = tables.read_images

    def counted(folder: Path) -> list[ImageRow]:
        read.append(folder)
        return plain(folder)

    monkeypatch.setattr("zsadbench.records.records.read_images", counted)
    for record, options in (
        (records["mvtec_ad_2"], {"by": "lighting"}),
        (records["real_iad"], {"per": "object"}),
    ):
        read.clear()
        boards([record], metrics=["image_auroc"], **options)  # type: ignore[arg-type]
        assert read == [record.path.parent]


@pytest.mark.parametrize(
    ("name", "words", "rows"),
    [
        ("mvtec_ad_2", ("--by", "lighting"), ["regular", "shift_1"]),
        ("mvtec_loco", ("--by", "kind"), ["logical_anomalies", "structural_anomalies"]),
        ("real_iad", ("--per", "object", "--intervals", "--replicates", 100), ["mean"]),
        ("mvtec_loco", ("--intervals", "--group-by", "good|anomalies/\\d+", "--replicates", 100), ["mean"]),
    ],
)
def test_the_command_line_asks_for_groups(
    records: dict[str, Record],
    name: str,
    words: tuple[object, ...],
    rows: list[str],
    tmp_path: Path,
    capsys: Any,
) -> None:
    run = records[name].path.parents[1]
    assert call("compare", run, "--metric", "image_auroc", *words, "--format", "json", "--out", tmp_path) == 0
    (content,) = json.loads(capsys.readouterr().out)
    assert [row["category"] for row in content["rows"]] == rows
    assert all(0 <= row["image_auroc"] <= 1 for row in content["rows"])


def test_draws_of_groups_are_kept_apart_from_those_of_images(records: dict[str, Record]) -> None:
    record = records["mvtec_ad_2"]
    (plain,) = boards([record], intervals=True, replicates=120, metrics=["image_auroc", "pixel_auroc"])
    rule = r"(?:good|bad)/\d+"
    (whole,) = boards(
        [record], intervals=True, replicates=120, metrics=["image_auroc", "pixel_auroc"], group_by=rule
    )
    assert "the images of one 'group' are drawn together" in whole.notes[0]
    assert "(--group-by draws them together)" in plain.notes[0]
    kept = {path.name for path in record.path.parent.glob("bootstrap-120*.npz")}
    assert "bootstrap-120.npz" in kept and len(kept) == 2
    assert whole.rows[0].intervals["pixel_auroc"] != plain.rows[0].intervals["pixel_auroc"]
    again = boards([record], intervals=True, replicates=120, metrics=["pixel_auroc"])[0]
    assert again.rows[0].intervals["pixel_auroc"] == plain.rows[0].intervals["pixel_auroc"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"by": "lightning"}, "cannot make a board by 'lightning'. Did you mean 'lighting'"),
        ({"by": "lighting", "intervals": True}, "--by lighting has neither intervals nor pairs"),
        ({"group_by": "object"}, "give --intervals or --paired too"),
        ({"per": "object", "group_by": "object", "intervals": True}, "leave --group-by out"),
        ({"by": "(", "metrics": ["image_auroc"]}, "is no group, FILE.csv or regular expression"),
    ],
)
def test_what_does_not_go_together_is_refused(
    records: dict[str, Record], options: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        boards([records["mvtec_ad_2"]], **options)  # type: ignore[arg-type]
    assert words in str(caught.value)

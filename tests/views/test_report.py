"""The static report: whole, honest, harmless, and the same every time."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.kit import boardkit
from tests.kit.browser import CHROMIUM, Browser, browser
from tests.kit.reportkit import CATEGORIES, CATEGORY, HOSTILE, Page, app, make_results, pages, users
from zsadbench.boards.compare import boards
from zsadbench.boards.rows import percent
from zsadbench.boards.words import metric_title
from zsadbench.errors import RecordError, UsageError
from zsadbench.method.card import method_cards
from zsadbench.records.records import Record, load_records
from zsadbench.records.tables import ImageRow
from zsadbench.views.galleries import Standing, galleries, standings
from zsadbench.views.overlay import outlined
from zsadbench.views.replay import Replay, shrink_mask
from zsadbench.views.report import build_report
from zsadbench.views.site import Names


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_results(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def results(made: tuple[Path, Path]) -> Path:
    return made[0]


@pytest.fixture(scope="module")
def records(results: Path) -> list[Record]:
    return load_records([results])


@pytest.fixture(scope="module")
def site(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "report"
    summary = build_report([results], folder, gallery=4, users=users(results))
    assert summary.problems == ()
    assert summary.bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return folder


@pytest.fixture(scope="module")
def parsed(site: Path) -> dict[str, Page]:
    return pages(site)


def test_every_board_category_and_record_has_its_page(parsed: dict[str, Page]) -> None:
    categories = [name for name in parsed if name.startswith("parts-")]
    assert len(categories) == len(CATEGORIES)
    assert len([name for name in parsed if name.startswith("record-")]) == 2
    assert set(parsed) == {"index", "parts", *categories, *(n for n in parsed if n.startswith("record-"))}


def test_rows_that_need_other_images_can_be_left_out(tmp_path: Path) -> None:
    for name, relates in (("clip", False), ("musc", True)):
        boardkit.save(tmp_path / "results", boardkit.observation(name, flags={"relates": relates}))
    for only in (False, True):
        build_report([tmp_path / "results"], tmp_path / "site", inductive_only=only)
        found = pages(tmp_path / "site")
        records = [name for name in found if name.startswith("record-")]
        assert [("musc" in name) for name in sorted(records)] == ([False] if only else [False, True])
        assert ("Left out, as their numbers need other test images: musc." in found["index"].text) == only


def test_every_link_resolves_and_none_leaves_the_folder(site: Path, parsed: dict[str, Page]) -> None:
    for page in parsed.values():
        assert len(page.ids) == len(set(page.ids)), page.path
        for link in page.links:
            assert ":" not in link and not link.startswith("/"), link
            name, _, fragment = link.partition("#")
            target = site / name if name else page.path
            assert target.is_file() and target.resolve().is_relative_to(site.resolve()), link
            if fragment:
                assert fragment in parsed[target.stem].ids, link
    named = {site / link for page in parsed.values() for link in page.links}
    assert set((site / "images").rglob("*.webp")) <= named


def test_numbers_are_those_of_the_records(records: list[Record], parsed: dict[str, Page]) -> None:
    for record in records:
        value = record.mean("pixel_auroc").value
        assert value is not None and percent(value) in parsed["index"].text
        own = next(page for name, page in parsed.items() if record.digest[:12] in name)
        assert str(record.value("cloth", "pixel_aupro")) in own.text


def test_curves_are_those_the_numbers_were_read_from(records: list[Record], results: Path) -> None:
    for record in records:
        maps = Replay(record, users=users(results)).category("cloth")
        found = maps.pixel_curve()
        assert found.curve.auroc == record.value("cloth", "pixel_auroc")
        assert found.curve.aupro() == record.value("cloth", "pixel_aupro")
        anomalous = [share for key, share in found.found.items() if "hole" in key]
        assert len(anomalous) == 5 and all(share is not None and 0 <= share <= 1 for share in anomalous)
        assert found.found["cloth/test/good/0.png"] is None


def test_hostile_names_stay_text(parsed: dict[str, Page]) -> None:
    category = next(page for page in parsed.values() if f"/hole/{HOSTILE}.png" in page.text)
    assert CATEGORY in category.text
    for page in parsed.values():
        for tag, attributes in page.elements:
            assert not [name for name in attributes if name.startswith("on")], page.path
            assert tag != "script" or attributes.get("src") == "assets/report.js"
            assert tag != "img" or attributes["src"].startswith("images/")
            assert attributes.get("src") != "x"
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in parsed)


def test_pages_can_be_read_without_seeing_them(parsed: dict[str, Page]) -> None:
    for page in parsed.values():
        tags = [tag for tag, _ in page.elements]
        assert ("html", {"lang": "en"}) in page.elements
        assert tags.count("h1") == tags.count("main") == 1
        for tag, attributes in page.elements:
            if tag == "th":
                assert attributes.get("scope") in ("row", "col")
            if tag == "img":
                assert attributes["alt"] and attributes["width"].isdigit()
            if tag == "table" and "sortable" in attributes.get("class", ""):
                assert f"{attributes['id']}-caption" in page.ids
    category = next(page for name, page in parsed.items() if name.startswith("parts-cloth"))
    assert any("Anomaly map of clip" in attributes.get("alt", "") for _, attributes in category.elements)
    assert "Pixel PRO AUPRO at 0.3 in percent: " in category.text


def test_a_record_page_tells_everything_but_the_machine(
    records: list[Record], parsed: dict[str, Page], made: tuple[Path, Path]
) -> None:
    record = next(record for record in records if record.method == "mine.Mine")
    page = next(page for name, page in parsed.items() if record.digest[:12] in name)
    for text in (
        "preprocess.size 42",
        f"observation {record.observation_digest}",
        str(record.observation["dataset"]["contents"]),
        str(record.observation["environment"]["torch"]),
        str(record.observation["backbone"]["sha256"]),
        "window 2, 3",
    ):
        assert text in page.text
    clip = next(page for name, page in parsed.items() if name.startswith("record-clip"))
    assert method_cards()["clip"].paper in clip.text
    assert str(made[1].parents[1]) not in "".join(page.path.read_text() for page in parsed.values())


def test_equal_records_give_equal_files(results: Path, site: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    build_report([results], again, gallery=4, users=users(results))
    files = sorted(path.relative_to(site) for path in site.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert not [name for name in files if (site / name).read_bytes() != (again / name).read_bytes()]


def test_a_report_replaces_a_report_but_nothing_else(tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "report"
    boardkit.save(results, boardkit.observation())
    build_report([results], out, gallery=0)
    (out / "old-page.html").write_text("from an earlier report")
    (out / "images").mkdir()
    (out / "images" / "old.webp").write_bytes(b"")
    build_report([results], out, gallery=0)
    assert not (out / "old-page.html").exists() and not (out / "images").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.html").write_text("mine")
    with pytest.raises(UsageError, match="is not a report"):
        build_report([results], tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.html").read_text() == "mine"
    with pytest.raises(RecordError, match="no readable record"):
        build_report([tmp_path / "thesis"], tmp_path / "none")


def test_what_cannot_be_shown_is_said(made: tuple[Path, Path], tmp_path: Path) -> None:
    results = shutil.copytree(made[0], tmp_path / "results")
    for path in results.rglob("record.json"):  # the data set has moved
        content = json.loads(path.read_text())
        content["observation"]["dataset"] |= {"root": str(tmp_path / "gone"), "spec": str(tmp_path / "gone")}
        path.write_text(json.dumps(content))
    broken = results / "parts" / "broken" / "0" / "reference"
    broken.mkdir(parents=True)
    (broken / "record.json").write_text("{")
    boardkit.save(
        results,
        boardkit.observation("other", dataset="tiles", flags={"foreign": True}),
        boardkit.row("a", None),
    )
    out = tmp_path / "report"
    summary = build_report([results], out, gallery=2)
    site = pages(out)
    assert "record.json: cut short or damaged" in site["index"].text
    assert str(tmp_path) not in site["index"].text
    moved = next(page for name, page in site.items() if name.startswith("parts-cloth"))
    assert "What is not shown" in moved.text and "gone" in moved.text
    assert "Image ROC" in moved.text and "Pixel ROC" not in moved.text
    assert "All images" in moved.text and not (out / "images").exists()
    foreign = next(page for name, page in site.items() if name.startswith("tiles-a"))
    assert "maps of other code, scored here; they are not " in foreign.text
    own = next(page for name, page in site.items() if name.startswith("record-other"))
    assert "pixel_auroc of a the dataset has no masks" in own.text
    assert any("cut short" in problem for problem in summary.problems)


def test_of_several_seeds_the_first_is_drawn(tmp_path: Path) -> None:
    for seed in (3, 4):
        boardkit.save(tmp_path / "results", boardkit.observation("anoclip", seed=seed))
    build_report([tmp_path / "results"], tmp_path / "report")
    site = pages(tmp_path / "report")
    assert "anoclip (2 seeds) seed 4" in site["index"].text
    drawn = next(page for name, page in site.items() if name.startswith("mtd-tile"))
    assert "anoclip (seed 3) no normal image; 1 anomalous" in drawn.text
    assert len([name for name in site if name.startswith("record-")]) == 2


def test_boards_have_intervals_where_they_are_asked_for(made: tuple[Path, Path], tmp_path: Path) -> None:
    results = shutil.copytree(made[0], tmp_path / "results")
    build_report([results], tmp_path / "report", gallery=0, intervals=True)
    index = Page(tmp_path / "report" / "index.html")
    table = index.text[index.text.index("Rank Method") :]
    value = boards(load_records([results]), intervals=True)[0].rows[0].cell("pixel_auroc")
    assert value.interval and f"{percent(value.interval.low)}, {percent(value.interval.high)}]" in table
    assert "95 % interval" in table


def test_data_may_lie_elsewhere_and_other_images_are_noticed(made: tuple[Path, Path], tmp_path: Path) -> None:
    data = shutil.copytree(made[1], tmp_path / "moved" / "parts")
    image = data / "cloth" / "test" / "good" / "0.png"
    pixels = np.array(Image.open(image))
    Image.fromarray(255 - pixels).save(image)
    summary = build_report([made[0]], tmp_path / "report", data=data, gallery=10, users=users(made[0]))
    assert summary.problems == ()
    site = pages(tmp_path / "report")
    page = next(page for name, page in site.items() if name.startswith("parts-cloth"))
    assert "cloth/test/good/0.png: the file is another one than when it was observed" in page.text
    tiles = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(tiles) == 3 * 3 * 9  # three galleries; image and two maps of every image but one


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium here (Debian's package: apt-get install chromium)")
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


def test_the_browser_shows_it_without_errors(site: Path, chromium: Browser) -> None:
    kinds = ("index.html", "parts.html", "parts-cloth-*.html", "record-clip-*.html")
    for page in (next(site.glob(kind)) for kind in kinds):
        for width in (400, 1400):
            chromium.open(page, width=width)
            assert not chromium.log
            assert chromium.js("document.getElementById('theme').textContent") == "Theme: system"
            assert chromium.js("document.documentElement.scrollWidth") <= width  # tables scroll, not the page


def test_the_browser_sorts_tables(site: Path, chromium: Browser, records: list[Record]) -> None:
    def order(direction: str) -> Any:
        chromium.open(page, f"#sort=images:2:{direction}")
        assert not chromium.log
        assert chromium.js(f"!!document.querySelector('#images th[aria-sort={direction}] button')")
        return chromium.js("[...document.querySelectorAll('#images tbody th')].map((e) => e.textContent)")

    page = next(site.glob("parts-cloth*.html"))
    first = next(record for record in records if record.method == boards(records)[0].rows[0].label)
    scores = {row.key: row.image_score or 0.0 for row in first.images() if row.category == "cloth"}
    rising = sorted(scores, key=lambda key: scores[key])
    assert order("ascending") == rising
    assert order("descending") == rising[::-1]


def test_the_browser_runs_nothing_from_names(site: Path, chromium: Browser) -> None:
    chromium.open(next(site.glob("parts-bolt*.html")))
    assert HOSTILE in chromium.js("document.body.innerText")
    assert chromium.js("document.scripts.length") == 1
    for link in range(chromium.js("document.querySelectorAll('a.zoom').length")):
        chromium.js(f"document.querySelectorAll('a.zoom')[{link}].click()")
        assert chromium.js("[...document.images].every((e) => e.src.includes('/images/'))")
        chromium.js("document.querySelector('.lens').close()")
    assert not chromium.log


PLACES = """(() => {
  const head = document.querySelector("HEADING"), body = head.closest("table").querySelector("tbody th");
  const scroll = head.closest(".scroll"), at = scroll.getBoundingClientRect().x;
  scroll.scrollLeft = 10000;
  const places = [head, body, scroll.querySelector("caption span")].map(
    (e) => Math.round(e.getBoundingClientRect().x - at));
  return [places, body.getBoundingClientRect().width / scroll.clientWidth, scroll.scrollLeft];
})()"""


def test_what_names_a_row_stays_in_view_at_400_pixels(site: Path, chromium: Browser) -> None:
    pages = {"index.html": ".name", "parts-cloth-*.html": ".name", "record-clip-*.html": "#full .name"}
    for kind, heading in pages.items():
        chromium.open(next(site.glob(kind)), width=400)
        left, width, moved = chromium.js(PLACES.replace("HEADING", heading))
        assert moved > 0 and left == [0, 0, 0], kind
        assert width < 0.5, kind  # the larger part is left to the numbers


def test_pictures_enlarge_by_mouse_and_by_keys(site: Path, chromium: Browser) -> None:
    lens = "document.querySelector('dialog.lens')"
    shown = f"[{lens}.open, {lens}.querySelector('img').getAttribute('src') || '']"
    files = "[...document.querySelectorAll('a.zoom')].map((e) => e.href)"
    for width in (400, 1400):
        chromium.open(next(site.glob("parts-cloth-*.html")), width=width)
        first, second, *_, last = chromium.js(files)
        chromium.js("document.querySelector('a.zoom').focus()")
        chromium.press("Enter", "\r")
        assert chromium.js(shown) == [True, first]
        chromium.press("ArrowRight")
        assert chromium.js(shown) == [True, second]
        said = chromium.js(f"{lens}.querySelector('p').textContent")
        assert said.startswith("cloth/test/") and "score" in said and "rank" in said
        chromium.press("Escape")
        assert chromium.js(shown) == [False, second]
        assert chromium.until(f"document.activeElement.href === '{second}'")  # one goes on from there
        chromium.click("a.zoom")
        assert chromium.js(shown) == [True, first]
        small, large = chromium.js(
            "['a.zoom img', '.lens img'].map((e) => document.querySelector(e).getBoundingClientRect().width)"
        )
        assert large > 1.5 * small
        chromium.press("ArrowLeft")
        assert chromium.js(shown) == [True, last]
        chromium.click(".lens img")
        assert chromium.js(f"{lens}.open") is False and not chromium.log


def test_it_prints_light_and_whole(site: Path, chromium: Browser) -> None:
    chromium.open(next(site.glob("parts-cloth-*.html")))
    chromium.js("document.documentElement.dataset.theme = 'dark'")
    colour = "getComputedStyle(document.body).color"
    assert chromium.js(colour) == "rgb(232, 234, 237)"
    chromium.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert chromium.js(colour) == "rgb(27, 27, 27)"
        styles = chromium.js(
            """[["header", "display"], [".scroll", "overflowX"], [".scroll tbody th", "position"],
                ["tbody tr", "breakInside"], [".tiles figure", "breakInside"]].map(
              ([name, rule]) => getComputedStyle(document.querySelector(name))[rule])"""
        )
        assert styles == ["none", "visible", "static", "avoid", "avoid"]
    finally:
        chromium.call("Emulation.setEmulatedMedia", media="")


def test_pages_hold_what_the_script_and_the_style_need(site: Path, parsed: dict[str, Page]) -> None:
    category = next(page for name, page in parsed.items() if name.startswith("parts-cloth"))
    links = [attributes for tag, attributes in category.elements if attributes.get("class") == "zoom"]
    pictures = [attributes for tag, attributes in category.elements if tag == "img"]
    assert len(links) == len(pictures) > 0
    assert all(link["href"] == picture["src"] for link, picture in zip(links, pictures, strict=True))
    for page in parsed.values():  # where a table scrolls, one heading says what its rows are named by
        opened = [attributes.get("class") for tag, attributes in page.elements if tag in ("thead", "th")]
        tables = sum(tag == "thead" for tag, _ in page.elements)
        assert opened.count("name") == tables
    style = (site / "assets" / "report.css").read_text()
    assert "position: sticky; left: 0" in style and "@media print" in style


def row(key: str, anomalous: bool, score: float | None) -> ImageRow:
    return ImageRow(key, "tile", anomalous, score, 0.0, 1.0)


def test_images_are_compared_by_rank() -> None:
    first = [row("a", False, 0.1), row("b", True, 5.0), row("c", True, 0.1), row("d", True, None)]
    second = [row("a", False, 30.0), row("b", True, 20.0), row("c", True, 10.0), row("d", True, 0.0)]
    found = standings([first, second])
    assert [image.key for image in found] == ["a", "b", "c"]  # d has no score of the first method
    assert [image.ranks for image in found] == [(0.25, 1.0), (1.0, 0.5), (0.25, 0.0)]
    assert [image.correctness for image in found] == [0.375, 0.75, 0.125]
    assert [image.dispute for image in found] == [0.75, 0.5, 0.25]


def test_galleries_hold_the_worst_the_disputed_and_the_best() -> None:
    images = [
        Standing("n1", False, (0.0, 0.0), (0.0, 0.0)),
        Standing("n2", False, (4.0, 0.0), (0.8, 0.0)),
        Standing("n3", False, (5.0, 5.0), (1.0, 1.0)),
        Standing("p1", True, (1.0, 1.0), (0.2, 0.2)),
        Standing("p2", True, (2.0, 4.0), (0.4, 0.8)),
        Standing("p3", True, (3.0, 3.0), (0.6, 0.6)),
    ]
    chosen = {gallery.title: [image.key for image in gallery.images] for gallery in galleries(images, 2)}
    assert chosen == {"Worst": ["p1", "n3"], "Most disputed": ["n2", "p2"], "Best": ["p2", "n1"]}
    only = [image for image in images if image.anomalous]
    assert [len(gallery.images) for gallery in galleries(only, 3)] == [3, 3, 3]
    assert [len(gallery.images) for gallery in galleries(images, 5)] == [5, 5, 5]
    single = [Standing(image.key, image.anomalous, (1.0,), image.ranks[:1]) for image in images]
    assert [gallery.title for gallery in galleries(single, 2)] == ["Worst", "Best"]
    assert galleries(images, 0) == galleries(images[:1], 2) == []


def test_the_outline_lies_around_the_mask() -> None:
    picture = Image.new("RGB", (9, 9), (100, 100, 100))
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    drawn = np.array(outlined(picture, mask))[..., 0]
    assert drawn[4].tolist() == [100, 100, 0, 255, 100, 255, 0, 100, 100]
    assert np.array_equal(
        np.array(outlined(picture, ~np.zeros((9, 9), bool)))[4, :, 0] == 255, [1, *[0] * 7, 1]
    )
    assert outlined(picture, None) is picture


def test_thin_defects_survive_the_shrinking() -> None:
    mask = np.zeros((100, 50), bool)
    mask[37, 11] = True
    small = shrink_mask(mask, (10, 10))
    assert small.shape == (10, 10) and np.argwhere(small).tolist() == [[3, 2]]
    assert shrink_mask(mask[:1], (3, 50)).shape == (3, 50)


def test_names_are_safe_and_never_given_twice() -> None:
    names = Names()
    assert names.new("../../etc", "Größe <b>") == "etc-groe-b"
    assert [names.new("a/b"), names.new("a b"), names.new("INDEX"), names.new("日本")] == [
        "a-b",
        "a-b-2",
        "index-2",
        "page",
    ]
    limits = [metric_title(f"pixel_aupro@{limit}") for limit in (0.05, 0.1)]
    assert limits == ["AUPRO at 0.05", "AUPRO at 0.1"]


def test_the_command_writes_a_report(tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "report"
    boardkit.save(results, boardkit.observation())
    done = CliRunner().invoke(app(), ["report", str(results), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert str(out / "index.html") in done.output and (out / "index.html").is_file()


def test_the_command_shows_the_metrics_that_are_asked_for(tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "report"
    for method, value in (("clip", 0.5), ("winclip", 0.75)):
        boardkit.save(results, boardkit.observation(method), boardkit.row("tile", value))
    words = ["report", str(results), "--out", str(out), "--metric", "mad", "--metric", "rank"]
    done = CliRunner().invoke(app(), words)
    assert done.exit_code == 0, done.output
    page = (out / "index.html").read_text()
    assert "Mean of seven (mAD)" in page and "Image AUROC" not in page.partition("<tbody>")[0]
    head = '<th scope="col" class="number low-first">Average rank</th>'
    assert head in page and 'data-value="2.0">2.00<' in re.sub(r">\s+", ">", page)
    assert (out / "leaderboard.csv").read_text().partition("\n")[0].endswith("mad,average_rank")
    wrong = CliRunner().invoke(app(), [*words[:-1], "mean"])
    assert isinstance(wrong.exception, UsageError) and "unknown metric 'mean'" in str(wrong.exception)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = CliRunner().invoke(app(), ["report", str(tmp_path)])
    assert isinstance(done.exception, UsageError)
    assert 'pip install "zsadbench[report]"' in str(done.exception)

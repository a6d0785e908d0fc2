"""``zsad compare`` as a user runs it."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit.boardkit import observation, protocol, row, save
from tests.kit.terminal import call
from zsadbench.metrics import image_metrics
from zsadbench.records.records import write_record


@dataclass
class Answer:
    """What a command printed and its exit code."""

    code: int
    out: str
    err: str


Compare = Callable[..., Answer]


@pytest.fixture
def zsad(capsys: pytest.CaptureFixture[str]) -> Compare:
    def compared(*arguments: object) -> Answer:
        code = call("compare", *arguments)
        return Answer(code, *capsys.readouterr())

    return compared


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    save(folder, observation("clip"), row("tile", 0.5))
    save(folder, observation("winclip"), row("tile", 0.75))
    return folder


def test_inductive_only_leaves_rows_out_of_table_files_and_gate(
    zsad: Compare, results: Path, tmp_path: Path
) -> None:
    assert zsad(results, "--out", tmp_path).code == 0
    save(results, observation("musc", flags={"relates": True}), row("tile", 0.9))
    answer = zsad(results, "--inductive-only", "--baseline", tmp_path / "leaderboard.csv")
    assert answer.code == 0
    assert "need other test images: musc" in " ".join(answer.out.split())
    table = (results / "leaderboard.csv").read_text()
    assert "winclip" in table and "musc" not in table
    assert zsad(results).code == 0 and "musc" in (results / "leaderboard.csv").read_text()


def test_a_table_is_printed_and_files_lie_beside_the_records(zsad: Compare, results: Path) -> None:
    answer = zsad(results)
    assert answer.code == 0
    assert "MTD (mtd): 8 images" in answer.out
    assert answer.out.index("winclip") < answer.out.index("50.0")
    assert "leaderboard.csv" in answer.err
    assert (results / "leaderboard.md").read_text().startswith("## MTD (mtd)")
    first = (results / "leaderboard.csv").read_bytes()
    assert zsad(results).code == 0
    assert (results / "leaderboard.csv").read_bytes() == first


def test_several_paths_are_written_to_none_of_them(zsad: Compare, results: Path, tmp_path: Path) -> None:
    runs = sorted(path for path in (results / "mtd").iterdir())
    answer = zsad(*runs)
    assert answer.code == 0 and "Not written: there are several paths; give --out DIR" in answer.err
    assert not list(tmp_path.rglob("leaderboard*"))
    answer = zsad(*runs, "--out", tmp_path / "boards")
    said = f"Writing leaderboard.csv, leaderboard.md into {tmp_path / 'boards'}"
    assert said in answer.err and len(list(tmp_path.rglob("leaderboard*"))) == 2


def test_nothing_is_written_on_request(zsad: Compare, results: Path) -> None:
    assert zsad(results, "--no-write").code == 0
    assert not list(results.glob("leaderboard*"))


def test_out_names_the_folder(zsad: Compare, results: Path, tmp_path: Path) -> None:
    assert zsad(results, "--out", tmp_path / "boards", "--format", "table,csv,json").code == 0
    assert sorted(path.name for path in (tmp_path / "boards").iterdir()) == [
        "leaderboard.csv",
        "leaderboard.json",
    ]
    assert not list(results.glob("leaderboard*"))


def test_one_format_goes_to_stdout_alone(zsad: Compare, results: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(zsad(results, "--format", "csv").out)))
    assert [line["method"] for line in lines] == ["winclip", "clip"]
    assert json.loads(zsad(results, "--format", "json").out)[0]["rows"][1]["image_ap"] == 0.5
    assert zsad(results, "--format", "md").out.startswith("## MTD (mtd)")
    assert not list(results.glob("leaderboard*"))


def test_metrics_sorting_and_categories(zsad: Compare, results: Path) -> None:
    save(results, observation("anoclip"), row("tile", 0.25, pixel_ap=0.9))
    answer = zsad(
        results, "--metric", "pixel_ap", "--sort", "pixel_ap", "--format", "csv", "--by", "category"
    )
    lines = list(csv.DictReader(io.StringIO(answer.out)))
    assert [line["method"] for line in lines] == ["anoclip", "winclip", "clip"]
    assert "image_ap" not in lines[0]
    assert {line["category"] for line in lines} == {"tile"}


def test_merging_different_groups_is_refused(zsad: Compare, results: Path) -> None:
    assert zsad(results, "--merge", "--no-write").code == 0
    save(results, observation("anoclip"), rules=protocol("common-1"))
    answer = zsad(results, "--merge")
    assert answer.code == 2
    assert answer.err.startswith("error: these records cannot stand in one column: ")
    assert answer.err.count("\n") == 1


def test_a_broken_record_is_told_and_the_rest_compared(zsad: Compare, results: Path) -> None:
    broken = save(results, observation("anoclip")).path
    broken.write_text("{")
    answer = zsad(results)
    assert answer.code == 0
    assert f"left out: {broken}: cut short" in answer.err
    assert "anoclip" not in answer.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["."], "no readable record here; `zsad run"),
        (["results", "--format", "xlsx"], "unknown format 'xlsx'"),
        (
            ["results", "--metric", "auroc"],
            "unknown metric 'auroc'. Did you mean 'image_auroc' or 'pixel_auroc'?",
        ),
        (["results", "--baseline", "no.csv"], "no.csv: no such file; the baseline is a leaderboard.csv"),
        (["results", "--by", "method-name"], "cannot make a board by 'method-name'"),
    ],
)
def test_mistakes_are_one_line(
    zsad: Compare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if "results" in arguments:
        save(tmp_path / "results", observation())
    answer = zsad(*arguments)
    assert answer.code == 2
    assert message in answer.err
    assert answer.err.count("\n") == 1


def test_the_default_folder_is_results(zsad: Compare, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(results.parent)
    assert "winclip" in zsad("--no-write").out


def test_a_single_record_is_shown_with_a_hint(zsad: Compare, tmp_path: Path) -> None:
    record = save(tmp_path, observation())
    answer = zsad(record.path)
    assert (answer.code, "clip" in answer.out) == (0, True)
    assert "Only one record here" in answer.err
    assert not list(tmp_path.rglob("leaderboard*"))


def test_the_gate_passes_and_fails(zsad: Compare, results: Path, tmp_path: Path) -> None:
    zsad(results, "--out", tmp_path)
    baseline = tmp_path / "leaderboard.csv"
    answer = zsad(results, "--baseline", baseline)
    assert answer.code == 0
    assert "Gate passed: 14 values" in answer.err
    save(results, observation("clip"), row("tile", 0.5, pixel_ap=0.25, image_ap=0.625))
    answer = zsad(results, "--baseline", baseline, "--tolerance", 1)
    assert answer.code == 1
    assert "fell: mtd reference clip pixel_ap: 50.00 -> 25.00 (-25.00 points)" in answer.err
    assert "improved: mtd reference clip image_ap: 50.00 -> 62.50 (+12.50 points)" in answer.err
    assert "Gate failed: 1 fell, 14 values compared with " in answer.err
    assert zsad(results, "--baseline", baseline, "--tolerance", 25).code == 0


def test_the_verdict_is_json_on_stdout_and_annotations_on_github(
    zsad: Compare, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zsad(results, "--out", tmp_path)
    save(results, observation("clip"), row("tile", 0.5, pixel_ap=0.25))
    gated = (results, "--baseline", tmp_path / "leaderboard.csv", "--no-write")
    answer = zsad(*gated, "--json")
    verdict = json.loads(answer.out)
    assert answer.code == 1 and not verdict["passed"] and verdict["compared"] == 14
    (fell,) = verdict["fell"]
    assert (fell["method"], fell["metric"], fell["now"]) == ("clip", "pixel_ap", 0.25)
    assert "::error" not in answer.err
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert "\n::error title=zsad gate::mtd reference clip pixel_ap: 50.00 -> 25.00" in zsad(*gated).err
    log = tmp_path / "logs" / "gate.log"
    assert zsad(*gated, "--log-file", log).code == 1
    assert "Gate failed: 1 fell, 14 values" in log.read_text()
    assert "give --baseline FILE" in zsad(results, "--json").err


def test_a_stale_record_lets_no_regression_pass(zsad: Compare, results: Path, tmp_path: Path) -> None:
    zsad(results, "--out", tmp_path)
    gated = (results, "--baseline", tmp_path / "leaderboard.csv", "--no-write")
    later = "2026-05-01T00:00:00+00:00"
    worse = save(results, observation("clip", parameters={"tau": 2}), row("tile", 0.25), created=later)
    answer = zsad(*gated)
    assert answer.code == 1 and answer.err.count("fell: mtd reference clip ") == 7
    told = f"judged the newest of 2 records of this name, {worse.path.parent} ({later})"
    assert f"note: mtd reference clip: {told}" in answer.err
    assert any(told in note for note in json.loads(zsad(*gated, "--json").out)["notes"])
    save(results, observation("clip", parameters={"tau": 3}), row("tile", 0.5), created=later)
    answer = zsad(*gated)
    assert answer.code == 2 and "2 records of this name are equally new" in answer.err
    assert "Gate" not in answer.err


def test_one_latex_table_over_several_datasets(zsad: Compare, results: Path, tmp_path: Path) -> None:
    save(results, observation("clip", dataset="parts"), row("nut", 0.25))
    asked = ("--format", "latex", "--metric", "image_auroc", "--metric", "pixel_ap", "--one-table")
    text = zsad(results, *asked).out
    assert text.count(r"\begin{tabular}") == text.count(r"\label{tab:reference-1}") == 1
    assert r"\multicolumn{2}{c}{mtd} & \multicolumn{2}{c}{parts}" in text
    assert r"clip & \underline{50.0} & \underline{50.0} & 25.0 & 25.0" in text
    assert r"winclip & \textbf{75.0} & \textbf{75.0} & -- & --" in text
    zsad(results, *asked, "--out", tmp_path / "o")
    assert (tmp_path / "o" / "leaderboard.tex").read_text() == text
    save(results, observation("clip", dataset="parts"), rules=protocol("common-1"))
    answer = zsad(results, *asked)
    assert answer.code == 2 and "one table needs one protocol" in answer.err
    assert "give --format latex" in zsad(results, "--one-table").err


def test_published_figures_of_other_conditions_come_on_request(zsad: Compare, tmp_path: Path) -> None:
    save(tmp_path, observation("winclip", dataset="visa"), row("candle", 0.5))
    assert "published" not in zsad(tmp_path).out
    answer = zsad(tmp_path, "--published", "all")
    assert "published: paper [1]" in answer.out and "other backbone" in answer.out
    former = zsad(tmp_path, "--no-published")
    assert former.out == zsad(tmp_path, "--published", "none").out
    assert former.err.splitlines()[0] == "--no-published goes with 0.3: write --published none"
    assert "published" not in former.out
    assert "Did you mean 'all'" in zsad(tmp_path, "--published", "al").err


def test_the_gate_never_overwrites_its_baseline(zsad: Compare, results: Path) -> None:
    zsad(results)
    baseline = results / "leaderboard.csv"
    before = baseline.read_bytes()
    save(results, observation("clip"), row("tile", 0.25))
    answer = zsad(results, "--baseline", baseline)
    assert answer.code == 1
    assert baseline.read_bytes() == before
    assert "is the baseline and stays as it is" in answer.err


def test_a_baseline_of_another_protocol_is_refused(zsad: Compare, results: Path, tmp_path: Path) -> None:
    zsad(results, "--out", tmp_path)
    other = tmp_path / "other"
    save(other, observation("clip"), rules=protocol("common-1"))
    answer = zsad(other, "--baseline", tmp_path / "leaderboard.csv")
    assert answer.code == 2
    assert "protocol reference instead of common-1" in answer.err


def test_a_folder_that_cannot_be_written_is_told(zsad: Compare, results: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = zsad(results, "--out", tmp_path / "file")
    assert answer.code == 2
    assert "cannot be written" in answer.err
    assert "winclip" in answer.out


def test_a_board_that_cannot_be_written_beside_the_records_is_told(zsad: Compare, results: Path) -> None:
    (results / "leaderboard.csv").mkdir()
    answer = zsad(results)
    assert answer.code == 0
    assert "not written: " in answer.err
    assert "winclip" in answer.out


def test_intervals_and_pairs(zsad: Compare, tmp_path: Path) -> None:
    paths = []
    for name, good in (("clip", 4), ("winclip", 9)):
        images = [
            {
                "key": f"{number}.png",
                "category": "tile",
                "anomalous": int(number < 10),
                "image_score": float(number < good) + number / 100,
                "map_min": None,
                "map_max": None,
            }
            for number in range(20)
        ]
        scores, labels = ([image[key] for image in images] for key in ("image_score", "anomalous"))
        tile = {"category": "tile", "normal": 10, "anomalous": 10, **image_metrics(scores, labels)}
        content = {"observation": observation(name), "protocol": protocol(), "metric_version": 1}
        run_dir = tmp_path / "results" / "mtd" / name / "0"
        paths.append(run_dir)
        write_record(run_dir, "reference", content | {"categories": [tile]}, images)
    answer = zsad(tmp_path / "results", "--intervals", "--replicates", 200)
    assert answer.code == 0
    assert "rank: 1 + the number of methods significantly better in Image AUROC" in answer.out
    assert "Pairs on the same images" not in answer.out
    answer = zsad(*reversed(paths), "--paired", "--format", "csv", "--metric", "image_auroc")
    (line,) = csv.DictReader(io.StringIO(answer.out))
    assert (line["first"], line["second"]) == ("winclip", "clip")
    assert float(line["difference"]) == pytest.approx(0.5)
    assert float(line["p"]) < 0.05 and line["p_holm"] == ""
    answer = zsad(tmp_path / "results", "--paired", "--format", "latex", "--metric", "image_auroc")
    assert answer.out.count(r"\begin{tabular}") == 2
    zsad(tmp_path / "results", "--paired")
    written = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert written == ["comparisons.csv", "leaderboard.csv", "leaderboard.md", "mtd"]
    answer = zsad(paths[0], "--paired")
    assert answer.code == 2 and "a pair needs two" in answer.err


def test_comparing_loads_no_torch(results: Path) -> None:
    code = (
        "import sys; from zsadbench.cli import main; sys.argv = ['zsad', 'compare', sys.argv[1]]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'pandas' in sys.modules and 'torch' not in sys.modules and 'cv2' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(results)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def viewed(folder: Path) -> None:
    """Write a record of six objects of two views, of which the second never shows the defect."""
    scores = [(n, v, n > 2 and v == 1, 0.1 * n + 0.05 * v) for n in range(6) for v in (1, 2)]
    images = [
        {"key": f"S{n}_C{v}.png", "category": "usb", "anomalous": int(bad), "image_score": score}
        | {"map_min": None, "map_max": None, "group_view": f"C{v}", "group_object": f"S{n}"}
        for n, v, bad, score in scores
    ]
    known = image_metrics([score for *_, score in scores], [bad for _, _, bad, _ in scores])
    numbers = row("usb", None, normal=9, anomalous=3, **known)
    seen = observation("clip", dataset="real_iad")
    content = {"observation": seen, "protocol": protocol(), "metric_version": 1, "categories": [numbers]}
    write_record(folder / "real_iad/clip" / seen["observation"][:12], "reference", content, images)


def test_one_score_per_object_and_a_row_per_view(zsad: Compare, tmp_path: Path) -> None:
    results = tmp_path / "results"
    viewed(results)
    answer = zsad(results, "--per", "object", "--metric", "image_auroc", "--format", "csv")
    assert answer.code == 0, answer.err
    (line,) = csv.DictReader(io.StringIO(answer.out))
    assert (line["per"], float(line["image_auroc"])) == ("object", 1.0)
    answer = zsad(results, "--per", "object", "--metric", "image_auroc")
    assert "6 groups of 'object' (3 normal, 3 anomalous" in answer.out
    assert "One score per 'object': the highest of its images" in answer.out.replace("\n", " ")
    assert (results / "leaderboard-per-object.csv").exists() and not (results / "leaderboard.csv").exists()
    answer = zsad(results, "--by", "view", "--metric", "image_auroc")
    assert answer.code == 0 and "by view: 12 images" in answer.out
    assert [line.split()[:1] for line in answer.out.splitlines() if " C1 " in f" {line} "] != []
    answer = zsad(results, "--baseline", results / "leaderboard-per-object.csv")
    assert answer.code == 2
    assert "a board made with --per" in answer.err


def test_groups_that_are_not_there_are_one_line(zsad: Compare, tmp_path: Path) -> None:
    results = tmp_path / "results"
    viewed(results)
    for option, words in {
        ("--by", "views"): "cannot make a board by 'views'. Did you mean 'view'",
        ("--per", "patient"): "no group 'patient'",
        ("--group-by", "object"): "give --intervals or --paired too",
    }.items():
        answer = zsad(results, *option)
        assert answer.code == 2
        assert words in answer.err.replace("\n", " ")
        assert "Traceback" not in answer.err

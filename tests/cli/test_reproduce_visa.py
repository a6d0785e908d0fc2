"""``zsad reproduce`` on a tree of VisA, with a published tag of small weights and figures of a test's own."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from tests.kit.terminal import call
from zsadbench import cards
from zsadbench.boards import beside
from zsadbench.clip import weights
from zsadbench.clip.towers import load_clip
from zsadbench.data import shipped_description
from zsadbench.inputs import Backbone
from zsadbench.metrics import METRICS
from zsadbench.records import published
from zsadbench.records.records import find_records

NAME = "ViT-L-14-336"
SMALL: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 518, "layers": 2, "width": 64, "head_width": 32, "patch_size": 74},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1},
}
COLUMNS = (
    "method",
    "variant",
    "dataset",
    "category",
    "metric",
    "value",
    "kind",
    "backbone",
    "image_size",
    "source",
    "protocol",
)
EACH = 3
Figures = dict[tuple[str, str, str], tuple[float, str]]
"""(protocol, category, metric) -> percent and kind."""


def visa(root: Path) -> None:
    """Write the original tree of VisA with few and tiny images: class ids in the masks, as published."""
    lines = ["object,split,label,image,mask"]
    for place, category in enumerate(shipped_description("visa").classes):
        rng = np.random.RandomState(place)
        for number in range(EACH):
            for label, folder in (("normal", "Normal"), ("anomaly", "Anomaly")):
                pixels = rng.randint(90, 160, (24, 24, 3)).astype(np.uint8)
                image = f"{category}/Data/Images/{folder}/{number:03}.JPG"
                mask = f"{category}/Data/Masks/Anomaly/{number:03}.png" if label == "anomaly" else ""
                if mask:
                    truth = np.zeros((24, 24), np.uint8)
                    truth[4 + number : 14, 6:16] = 1 + number
                    pixels[truth > 0] = 20
                    (root / mask).parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(truth).save(root / mask)
                (root / image).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / image, "JPEG")
                lines.append(f"{category},test,{label},{image},{mask}")
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with VisA's tree and a hub cache in which OpenAI's tag has the weights of a small tower."""
    root = tmp_path_factory.mktemp("visa")
    visa(root / "data/visa")
    (root / "small.json").write_text(json.dumps(SMALL))
    state = load_clip(Backbone(str(root / "small.json"), "random:7")).text.module.state_dict()
    cached = root / "hub/models--timm--vit_large_patch14_clip_336.openai"
    (cached / "snapshots/0123abcd").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("0123abcd")
    save_file(
        {key: value.clone() for key, value in state.items()},
        cached / "snapshots/0123abcd/open_clip_model.safetensors",
    )
    configured = weights._any_config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root / "hub"))
        patch.setattr(weights, "_any_config", lambda name: SMALL if name == NAME else configured(name))
        yield root


@pytest.fixture
def shipped(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Figures], None]]:
    """Give VisA the counts of the small tree; what is returned puts figures in place of the shipped ones."""
    counts = dict.fromkeys(shipped_description("visa").classes, (EACH, EACH))
    text = cards.card_path("datasets", "visa").read_text()
    start, end = text.index("[expect]"), text.index("[[samples]]")
    expect = f"[expect]\nnormal = {EACH * len(counts)}\nanomaly = {EACH * len(counts)}\n[expect.categories]\n"
    expect += "".join(f"{name} = {list(each)}\n" for name, each in counts.items())
    (tmp_path / "visa.toml").write_text(text[:start] + expect + text[end:])
    paths = {kind: cards.card_paths(kind) for kind in ("datasets", "methods")}
    own = paths | {"datasets": paths["datasets"] | {"visa": tmp_path / "visa.toml"}}
    monkeypatch.setattr(cards, "card_paths", own.__getitem__)

    class Results:
        @staticmethod
        def files(package: str) -> Path:
            return tmp_path

    monkeypatch.setattr(published, "resources", Results)

    def put(figures: Figures) -> None:
        with (tmp_path / "published.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            for (protocol, category, metric), (value, kind) in figures.items():
                about = {"backbone": f"{NAME} (OpenAI)", "image_size": "518", "source": "a test's own list"}
                row = {
                    "method": "clip",
                    "variant": "",
                    "dataset": "visa",
                    "category": category,
                    "metric": metric,
                }
                writer.writerow({**row, "value": value, "kind": kind, **about, "protocol": protocol})
        _forget()

    yield put
    _forget()


def _forget() -> None:
    for cached in (published.published_numbers, published._by_place, beside._whole, beside._reference):
        cached.cache_clear()


def reproduce(prepared: Path, *words: object) -> int:
    out = ("--out", prepared / "results", "--report", prepared / "report", "--device", "cpu")
    return call("reproduce", "clip", "--dataset", "visa", "--data", prepared / "data", "-q", *out, *words)


@pytest.fixture(scope="module")
def ours(prepared: Path) -> dict[tuple[str, str, str], float]:
    """The numbers of a first call in percent, by protocol, category and metric; it judges nothing."""
    with pytest.MonkeyPatch.context() as patch:
        said: list[object] = []
        patch.setattr("zsadbench.text.say", lambda line, *_: said.append(line))
        assert reproduce(prepared) == 2
    assert said == ["error: clip on visa: nothing was judged (incomplete set)"]
    (prepared / "report").rename(prepared / "first")
    records, _ = find_records([prepared / "results"])
    assert len(records) == 2
    return {
        (str(record.protocol["id"]), category, metric): 100 * value
        for record in records
        for category in (*record.categories, "mean")
        for metric in METRICS
        if (value := record.mean(metric).value if category == "mean" else record.value(category, metric))
        is not None
    }


def test_fewer_images_than_the_dataset_has_are_not_judged(
    prepared: Path, ours: dict[tuple[str, str, str], float]
) -> None:
    """The shipped description and the shipped figures: AnomalyCLIP's paper has four for CLIP on VisA."""
    (content,) = json.loads((prepared / "first/reproduction.json").read_text())
    assert content["verdict"] == "not judged" and len(content["lines"]) == 4
    assert {line["why"] for line in content["lines"]} == {"incomplete set"}
    for line in content["lines"]:
        place = line["protocol"].removesuffix("-1"), "mean", line["metric"]
        assert line["ours"] == pytest.approx(ours[place] / 100, abs=1e-12)


def lines_of(prepared: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    (content,) = json.loads((prepared / "report/reproduction.json").read_text())
    return {(line["protocol"], line["category"], line["metric"]): line for line in content["lines"]}


def test_every_category_agrees(
    prepared: Path, ours: dict[tuple[str, str, str], float], shipped: Any, capsys: Any
) -> None:
    figures: Figures = {}
    for place, ((protocol, category, metric), value) in enumerate(ours.items()):
        sign = 1 if place % 2 else -1
        if protocol == "reference" and metric in ("image_auroc", "pixel_ap"):
            kind, off = ("paper", 0.99) if category == "mean" else ("author-log", 0.49)
            figures["", category, metric] = value + sign * off, kind
        if protocol == "legacy200" and metric == "pixel_aupro" and category != "mean":
            figures["legacy200", category, metric] = value + sign * 0.4, "author-log"
    assert len(figures) == 2 * 13 + 9  # of three categories 200 thresholds give no area
    shipped(figures)
    assert reproduce(prepared) == 0
    said = capsys.readouterr().out
    assert "clip on visa: agrees; all 35 figures agree, the largest by 0.99 points" in said
    found = lines_of(prepared)
    assert len(found) == 35 and {line["verdict"] for line in found.values()} == {"agrees"}
    assert {protocol for protocol, _, metric in found if metric == "pixel_aupro"} == {"legacy200-1"}
    for (protocol, category, metric), line in found.items():
        value, kind = figures["legacy200" if protocol == "legacy200-1" else "", category, metric]
        mine = ours[protocol.removesuffix("-1"), category, metric]
        assert line["ours"] == pytest.approx(mine / 100, abs=1e-12)
        assert (line["published"], line["kind"]) == (pytest.approx(value / 100, abs=1e-12), kind)
        assert line["difference"] == pytest.approx(100 * line["ours"] - value, abs=1e-9)
    page = (prepared / "report/reproduction.md").read_text()
    assert page.startswith("## clip on visa: agrees\n") and "No paper defines this baseline" in page


def test_what_differs_is_told_by_category_and_exits_1(
    prepared: Path, ours: dict[tuple[str, str, str], float], shipped: Any, capsys: Any
) -> None:
    points = {"candle": 0.51, "capsules": -0.51, "cashew": 0.5, "pcb1": -0.3}
    image = {
        category: value for (protocol, category, metric), value in ours.items() if metric == "image_auroc"
    }
    figures: Figures = {
        ("", name, "image_auroc"): (image[name] + off, "author-log") for name, off in points.items()
    }
    figures["", "mean", "image_auroc"] = image["mean"] - 1.01, "paper"
    figures["", "fryum", "image_auroc"] = 0.0, "quoted"
    figures["legacy200", "mean", "pixel_aupro"] = ours["legacy200", "mean", "pixel_aupro"], "author-log"
    shipped(figures)
    assert reproduce(prepared) == 1
    said = capsys.readouterr().out
    assert "clip on visa: differs; 3 of 5 figures differ, the largest by 1.01 points" in said
    found = {(protocol, category): line for (protocol, category, _), line in lines_of(prepared).items()}
    assert {place: (line["verdict"], line["why"]) for place, line in found.items()} == {
        ("reference-1", "mean"): ("differs", ""),
        ("reference-1", "candle"): ("differs", ""),
        ("reference-1", "capsules"): ("differs", ""),
        ("reference-1", "cashew"): ("agrees", ""),
        ("reference-1", "fryum"): ("not judged", "quoted figures are not judged"),
        ("reference-1", "pcb1"): ("agrees", ""),
        ("legacy200-1", "mean"): ("not judged", "ours is a mean over 9 of 12 categories"),
    }
    for name, off in points.items():
        assert found["reference-1", name]["difference"] == pytest.approx(-off, abs=1e-9)
    page = (prepared / "report/reproduction.md").read_text()
    values = f"{image['capsules']:.2f} | {image['capsules'] - 0.51:.2f}"
    assert (
        f"| reference-1 | capsules | image_auroc | {values} | author-log | +0.51 | 0\\.5 | differs |" in page
    )
    assert "\n    zsad run --method clip --dataset visa" in page

"""The committed board of the demo: methods that find most faults, and noise that finds none."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from zsadbench.method.card import method_cards

BOARDS = Path(__file__).parents[2] / "results" / "boards"
METRICS = ["image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_aupro"]


@pytest.fixture(scope="module")
def board() -> pd.DataFrame:
    return pd.read_csv(BOARDS / "demo.csv")


@pytest.fixture(scope="module")
def trained_clip(board: pd.DataFrame) -> pd.DataFrame:
    return board[board["backbone"] == "demo/demo"].set_index("method")


def test_every_method_is_on_it_and_an_untrained_network_beside_them(board: pd.DataFrame) -> None:
    trained = board["backbone"] == "demo/demo"
    learned = {path.stem for path in (BOARDS / "checkpoints").glob("*.safetensors")}
    able = [name for name, card in method_cards().items() if not card.trained or name in learned]
    assert sorted(board[trained]["method"]) == sorted(able)
    (noise,) = board[~trained].to_dict("records")
    assert (noise["method"], noise["backbone"], noise["seeds"]) == ("clip", "demo/random", 5)
    assert 0.4 <= noise["image_auroc"] <= 0.6
    assert noise["marks"] == "random weights"


def test_the_best_method_without_training_finds_most_faults_and_none_finds_all(
    trained_clip: pd.DataFrame,
) -> None:
    free = [name for name, card in method_cards().items() if not card.trained]
    best = trained_clip.loc[free].max(numeric_only=True)
    assert best["image_auroc"] >= 0.85
    assert best["pixel_auroc"] >= 0.93
    assert best["pixel_aupro"] >= 0.75
    assert trained_clip[METRICS].max().max() <= 0.99


def test_fixed_temperatures_leave_image_scores_apart(trained_clip: pd.DataFrame) -> None:
    """Where most scores are exactly 1, as with a logit scale far below 100, they tie and the AUROC falls."""
    image = trained_clip["image_auroc"]
    assert image["april-gan"] >= image["clip"] - 0.05


def test_checkpoints_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in (BOARDS / "checkpoints").iterdir()}
    assert max(sizes.values()) <= 2e6


def test_value_value_attention_localises_better_than_plain_patch_tokens(trained_clip: pd.DataFrame) -> None:
    pixel = trained_clip["pixel_auroc"]
    assert pixel["anoclip"] >= pixel["clip"] + 0.03


@pytest.mark.parametrize(
    ("document", "name", "noise"),
    [
        ("README.md", "{}", "clip, random weights (5 seeds)"),
        ("docs/demo-model-card.md", "`{}`", "`clip`, random weights (mean of 5 seeds)"),
    ],
)
def test_readme_and_model_card_show_the_board(
    board: pd.DataFrame, document: str, name: str, noise: str
) -> None:
    text = (BOARDS.parents[1] / document).read_text()
    shown = ["image_auroc", "pixel_auroc", "pixel_aupro"]
    for row in board.to_dict("records"):
        title = name.format(row["method"]) if row["backbone"] == "demo/demo" else noise
        numbers = " | ".join(f"{100 * row[metric]:.1f}" for metric in shown)
        assert f"| {title} | {numbers} |" in text

"""The demo factory: pictures, masks, the folder it writes, captions and the pruned tokenizer."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.kit.boardkit import observation, save
from zsadbench.clip.tokens import PrunedTokenizer, rows_for, tokens_of
from zsadbench.clip.weights import _config
from zsadbench.data.load import load_dataset
from zsadbench.demo import captions, data, factory
from zsadbench.demo.batches import GRID, LOOKS, WINDOWS, pairs, said, window
from zsadbench.demo.defects import FAULTS, Unfit
from zsadbench.demo.factory import AUXILIARY, HELD_OUT, generator
from zsadbench.demo.sheet import newest
from zsadbench.demo.traits import GROUPS, colour, group, meaning, traits
from zsadbench.errors import UsageError


@pytest.fixture(scope="module")
def full() -> Any:
    import open_clip

    return open_clip.tokenizer.SimpleTokenizer(context_length=77)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data.ensure_demo(tmp_path_factory.mktemp("cache"))


def test_enough_categories_and_none_in_both_sets() -> None:
    assert len(AUXILIARY) >= 15
    assert len(HELD_OUT) >= 8
    assert not set(AUXILIARY) & set(HELD_OUT)
    assert len(FAULTS) >= 8


@pytest.mark.parametrize("category", [*AUXILIARY, *HELD_OUT])
def test_a_picture_depends_on_seed_category_and_number_alone(category: str) -> None:
    first, again = (factory.bad(category, generator(3, category, 5), "hole") for _ in range(2))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.image, factory.bad(category, generator(4, category, 5), "hole").image)
    assert not np.array_equal(first.image, factory.bad(category, generator(3, category, 6), "hole").image)


@pytest.mark.parametrize(
    ("category", "fault"), [(c, fault) for c in ("gear", "brick") for fault in factory.faults_of(c)]
)
def test_the_mask_is_where_the_picture_changed(category: str, fault: str) -> None:
    rng = generator(0, category, 1)
    scene = factory.specimen(category, rng)
    view = replace(factory.camera(scene, rng), blur=0.0, quality=99)
    picture = factory.faulty(scene, view, rng, fault)
    change = np.abs(picture.image.astype(int) - factory.photograph(scene, view)).max(axis=2)
    near = cv2.dilate(picture.mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert picture.mask.sum() >= 40
    assert np.median(change[picture.mask]) > 12
    assert change[~near].max() <= 12  # what is below the visible difference
    assert picture.fault == fault


def test_a_surface_has_no_part_to_miss() -> None:
    rng = generator(0, "wood", 0)
    scene = factory.specimen("wood", rng)
    with pytest.raises(Unfit):
        FAULTS["missing_part"](scene, rng)
    assert "missing_part" not in factory.faults_of("wood")


def test_the_folder_is_the_described_dataset(tree: Path) -> None:
    dataset = load_dataset("demo", tree)
    assert dataset.categories == HELD_OUT
    assert set(dataset.counts().values()) == {(data.NORMAL, data.ANOMALOUS)}
    assert not [p for p in dataset.problems if p.severity != "note"]
    for sample in dataset.samples:
        if sample.mask is not None:
            mask = cv2.imread(str(sample.mask), cv2.IMREAD_UNCHANGED)
            assert mask is not None
            assert set(np.unique(mask)) == {0, 255}
    assert {s.specie for s in dataset.samples} == {"good", *FAULTS}


def test_the_folder_is_the_same_bytes_again_and_made_once(tree: Path, tmp_path: Path) -> None:
    data.write_demo(tmp_path / "again")
    assert _digest(tmp_path / "again") == _digest(tree)
    stamp = tree.stat().st_mtime_ns
    assert data.ensure_demo(tree.parent.parent) == tree
    assert tree.stat().st_mtime_ns == stamp


def _digest(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*.png")
    }


def test_a_folder_in_use_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(UsageError, match="not an empty folder"):
        data.write_demo(tmp_path)


def test_the_picture_shows_the_newest_record_of_each_method_and_no_noise(tmp_path: Path) -> None:
    old, new = (save(tmp_path / day, observation("clip"), created=f"2026-01-{day}") for day in ("02", "03"))
    noise = save(tmp_path / "noise", observation("clip", weights="random:1"), created="2026-01-04")
    other = save(tmp_path / "other", observation("anoclip"), created="2026-01-01")
    assert newest([new, old, noise, other]) == [other, new]
    assert newest([noise]) == [noise]


def test_a_caption_fits_the_pictures_it_is_true_of() -> None:
    good = captions.Caption("", "gear", captions.GOOD)
    some = captions.Caption("", "", captions.ANY)
    crack = captions.Caption("", "gear", "crack")
    truths = [("gear", "good"), ("gear", "crack"), ("gear", "hole"), ("key", "good"), ("key", "crack")]
    assert [good.fits(*t) for t in truths] == [True, False, False, False, False]
    assert [some.fits(*t) for t in truths] == [False, True, True, False, True]
    assert [crack.fits(*t) for t in truths] == [False, True, False, False, False]


def test_a_caption_with_a_trait_fits_what_has_it() -> None:
    red = captions.Caption("", "", captions.GOOD, frozenset({"red"}))
    assert red.fits("gear", "good", frozenset({"red", "dark"}))
    assert not red.fits("gear", "good", frozenset({"blue", "dark"}))
    assert not red.fits("gear", "hole", frozenset({"red"}))


def test_captions_say_no_trait_that_is_not_true() -> None:
    rng, true = generator(0, "captions", 1), frozenset({"red", "bright", "grainy"})
    false = {word for group in GROUPS for word in group} - true
    made = [captions.caption(rng, "gear", captions.GOOD, true) for _ in range(1000)]
    words = [set(c.text.replace("black and white", "").replace(".", "").split()) for c in made]
    assert not [found & false for found in words if found & false]
    said = {word for c in made for word in c.traits}
    assert said == true
    assert [c.traits for c in made] == [found & true for found in words]


def test_traits_are_read_off_the_scene_and_the_camera() -> None:
    rng = generator(0, "gear", 0)
    scene = factory.specimen("gear", rng)
    view = factory.camera(scene, rng)
    painted = np.zeros_like(scene.image)
    for tone, word in (((200, 20, 20), "red"), ((30, 40, 190), "blue"), ((250, 245, 240), "white")):
        painted[:] = tone
        assert colour(replace(scene, image=painted)) == word
    side = np.ones((factory.SIDE, factory.SIDE), np.float32)
    noise = np.zeros((*side.shape, 3), np.float32)
    dull = replace(view, light=0.8 * side, blur=0.6, noise=noise)
    assert traits(scene, dull) == {"grey", "dark", "blurry", "smooth"}
    plain = replace(
        view, light=0.95 * side, blur=0.35, noise=noise + 1.8 * rng.standard_normal(noise.shape, np.float32)
    )
    assert traits(scene, plain) == {"grey"}


def test_twins_differ_in_one_word() -> None:
    rng, known = generator(0, "twins", 0), frozenset({"red", "bright"})
    for _ in range(200):
        first, second = captions.rivals(rng, known)
        assert first in known and second not in known
        assert group(first) == group(second) and first != second
        for words in ((first, second), captions.idle(rng, AUXILIARY)):
            texts = captions.twins(rng, words)
            assert texts[0].replace(words[0], words[1], 1) == texts[1] != texts[0]
        assert not group(words[0]) and not group(words[1])


def test_some_names_and_states_never_meet_in_training() -> None:
    rng = generator(0, "captions", 0)
    phrases = captions.phrases(captions.ANY)
    withheld = [p for p in phrases if captions.withheld("gear", p)]
    assert 0 < len(withheld) < len(phrases) / 2
    texts = [captions.caption(rng, "gear", captions.ANY).text for _ in range(2000)]
    for phrase in withheld:
        assert not [text for text in texts if phrase.format("gear") in text]
    assert [text for text in texts if "damaged gear" in text or captions.withheld("gear", "damaged {}")]


def test_the_shipped_table_is_that_of_the_captions(full: Any) -> None:
    config = _config("demo")
    assert config["vocabulary"] == tokens_of(full, captions.vocabulary(AUXILIARY))
    assert config["text_cfg"]["vocab_size"] == rows_for(config["vocabulary"])


def test_held_out_names_are_unknown_and_known_words_are_not(full: Any) -> None:
    tokenizer = PrunedTokenizer(full, _config("demo")["vocabulary"])
    for name in HELD_OUT:
        ids = tokenizer([name.replace("_", " ")], 77)[0]
        assert set(ids[1 : int(ids.argmax())].tolist()) == {1}
    ids = tokenizer(["a photo of a damaged gear.", "flawless"], 77)
    assert ids.shape == (2, 77)
    assert (ids[:, 0] == rows_for(tokenizer_kept(tokenizer)) - 2).all()
    assert ids.argmax(dim=1).tolist() == [8, 2]
    assert (ids[0, 9:] == 0).all() and (ids[0, 1:8] > 1).all()


def tokenizer_kept(tokenizer: PrunedTokenizer) -> list[int]:
    return sorted(set(tokenizer.table.tolist()) - {1})[:-2]


def test_a_batch_is_pairs_with_true_captions() -> None:
    batch, again = pairs(4, 7, 2), pairs(4, 7, 2)
    assert np.array_equal(batch.images, again.images) and batch.texts == again.texts
    assert batch.images.shape == (8, factory.SIDE, factory.SIDE, 3)
    assert batch.share.shape == (8, GRID, GRID)
    assert (batch.share[0::2] == 0).all()
    assert (batch.share[1::2].reshape(4, -1).max(axis=1) > 0).all()
    assert batch.fits.diagonal().all()
    assert not batch.fits[0::2, 1::2].any() and not batch.fits[1::2, 0::2].any()
    assert len(batch.twins) == 8 and batch.says.shape == (8, 4)
    assert set(np.unique(batch.says)) <= {-1, 0, 1}
    assert not batch.says[:, 0::2].any()  # idle words
    assert batch.says[2, 1] == 1  # the first of two rivals is true of the picture it was made for


def test_windows_are_squares_and_half_of_those_in_faulty_pictures_see_the_fault() -> None:
    batch = pairs(12, 0, 0)
    for side, places in zip(WINDOWS, batch.windows, strict=True):
        assert places.shape == (24, LOOKS, side * side)
        rows, columns = np.divmod(places, GRID)
        assert (rows.max(axis=2) - rows.min(axis=2) == side - 1).all()
        assert (columns.max(axis=2) - columns.min(axis=2) == side - 1).all()
    share = np.zeros((GRID, GRID), np.float32)
    share[0, 5] = 0.5
    rng = generator(0, "windows", 0)
    hits = [5 in window(rng, share, 2) for _ in range(400)]
    assert 0.45 < np.mean(hits) < 0.57


def test_of_two_rivals_only_a_true_one_tells() -> None:
    seen = frozenset({"red", "dark"})
    assert [said(*both, seen) for both in (("red", "blue"), ("blue", "red"), ("blue", "green"))] == [1, -1, 0]
    assert said("red", "old", seen) == said("old", "new", seen) == 0
    assert said("dull", "shiny", seen, connote=True) == 1
    assert said("shiny", "red", seen, connote=True) == -1
    assert said("red", "warm", seen, connote=True) == said("dull", "zzz", seen, connote=True) == 0


def test_every_idle_word_has_a_connotation_and_no_trait_another() -> None:
    rng, traits_ = generator(0, "connoted", 0), {word for words in GROUPS for word in words}
    for _ in range(300):
        for word in captions.connoted(rng):
            assert meaning(word, connote=True) <= traits_
            assert meaning(word, connote=True)
            assert meaning(word) == ({word} if word in traits_ else set())

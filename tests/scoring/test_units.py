"""Scoring by (method, category): side by side, one core each, the same digits however many."""

from __future__ import annotations

import dataclasses
import pickle
import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.kit import tiny
from tests.kit.factory import make_folder
from zsadbench.engine import encoder
from zsadbench.errors import RecordError
from zsadbench.images import ahead
from zsadbench.records import Record
from zsadbench.run.jobs import Request
from zsadbench.run.run import execute
from zsadbench.scoring import StoredMaps, on_cores
from zsadbench.scoring.category import CategoryScores
from zsadbench.scoring.observation import Scoring, score_run, scored


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """``winclip`` on two categories, with towers of noise."""
    folder = tmp_path_factory.mktemp("units")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "load_clip", tiny.load)
        request = Request(
            backbone="tiny-l14", weights="random", settings={"size": "42"}, out=folder / "results", quiet=True
        )
        return execute(["winclip"], [str(make_folder(folder / "parts"))], request).records[0]


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_no_digit_depends_on_the_threads(record: Record, threads: int) -> None:
    again = score_run(record.path.parents[1], "reference", settings={}, workers=threads)
    assert again.content["categories"] == record.content["categories"]
    assert again.content["warnings"] == record.content["warnings"]
    assert (again.path.parent / "images.csv").read_bytes() == (record.path.parent / "images.csv").read_bytes()


def test_a_unit_travels(record: Record) -> None:
    stored = StoredMaps.of(record)
    units = [partial(stored.scored, category) for category in stored.categories]
    for unit, row in zip(units, record.content["categories"], strict=True):
        found = pickle.loads(pickle.dumps(unit))(0)
        assert found is not None and found.row == row
        assert [*found.hashes] == [image["key"] for image in found.images]


def test_torch_computes_with_one_thread_in_each_unit_and_as_before_outside() -> None:
    inside: list[int] = []

    def unit(helpers: int) -> None:
        inside.append(torch.get_num_threads())
        inside.extend(ahead(lambda _: torch.get_num_threads(), range(3), max(1, helpers)))

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert [*on_cores([unit] * 3, 2)] == [None] * 3
        assert set(inside) == {1} and len(inside) == 12
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (torch.get_num_threads(), later) == (3, [3])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("units", "workers", "helpers"), [(1, 1, 0), (1, 4, 4), (2, 5, 2), (3, 4, 1), (4, 4, 0), (9, 2, 0)]
)
def test_threads_are_shared_not_multiplied(units: int, workers: int, helpers: int) -> None:
    given: list[int] = []
    lock, at_once, most = threading.Lock(), 0, 0

    def unit(count: int) -> CategoryScores:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
            given.append(count)
            number = len(given)
        with lock:
            at_once -= 1
        return CategoryScores({"number": number}, [], [])

    assert [scores is not None for scores in on_cores([unit] * units, workers)] == [True] * units
    assert given == [helpers] * units
    assert most <= min(units, workers)


def test_results_keep_their_order_and_an_error_ends_the_rest() -> None:
    gate = threading.Event()

    def first(_: int) -> CategoryScores:
        assert gate.wait(10)
        return CategoryScores({"category": "first"}, [], [])

    def second(_: int) -> CategoryScores:
        gate.set()
        return CategoryScores({"category": "second"}, [], [])

    done = [scores for scores in on_cores([first, second], 2) if scores]
    assert [scores.row["category"] for scores in done] == ["first", "second"]

    def broken(_: int) -> None:
        raise RecordError("gone")

    with pytest.raises(RecordError, match="gone"):
        [*on_cores([second, broken, second], 2)]


def test_evidence_of_other_images_is_refused(record: Record, tmp_path: Path) -> None:
    stored = StoredMaps.of(record)
    units = [partial(stored.scored, category) for category in stored.categories]
    observation = {
        **record.observation,
        "dataset": record.observation["dataset"] | {"contents": "0" * 64},
    }
    with pytest.raises(RecordError, match="its evidence is of other images"):
        next(scored([Scoring.of(tmp_path, observation, stored.dataset, stored.rules, units)], 1))

    def bare(helpers: int) -> CategoryScores | None:
        found = units[0](helpers)
        return found and dataclasses.replace(found, hashes={})

    # What carries no hashes, as maps of other code, has nothing to compare.
    next(scored([Scoring.of(tmp_path, observation, stored.dataset, stored.rules, [bare])], 1))

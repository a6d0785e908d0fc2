"""Rows walked in pieces: the same result, side by side on a CPU's cores, each with one thread."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from zsadbench.images import in_pieces


@pytest.fixture
def cores(request: pytest.FixtureRequest) -> int:
    """How many threads torch has, for the time of a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    request.addfinalizer(lambda: torch.set_num_threads(before))
    return int(request.param)


@pytest.mark.parametrize(
    ("cores", "rows", "limits", "sizes"),
    [
        (1, 21, [7], [7, 7, 7]),
        (1, 10, [4], [4, 4, 2]),
        (1, 3, [100], [3]),
        (2, 21, [7], [6, 6, 6, 3]),  # whole rounds: no core waits for the last piece
        (2, 3, [100], [2, 1]),
        (2, 3, [100, 3], [3]),
        (4, 9, [100, 4], [4, 4, 1]),
        (4, 2, [100], [1, 1]),
        (3, 0, [5], [0]),
    ],
    indirect=["cores"],
)
def test_pieces_are_joined_in_order(cores: int, rows: int, limits: list[int], sizes: list[int]) -> None:
    pieces: list[tuple[int, int, int, bool]] = []
    own = threading.get_ident()

    def walk(some: Tensor) -> Tensor:
        first = int(some[0, 0]) if len(some) else 0
        elsewhere = threading.get_ident() != own
        pieces.append((first, len(some), torch.get_num_threads() if elsewhere else 1, elsewhere))
        return some.sum(dim=1) * 2

    taken = torch.arange(3.0 * rows).view(rows, 3)
    assert torch.equal(in_pieces(walk, taken, *limits), taken.sum(dim=1) * 2)
    pieces.sort()
    assert [size for _, size, _, _ in pieces] == sizes
    assert {threads for _, _, threads, _ in pieces} == {1}
    assert {elsewhere for *_, elsewhere in pieces} == {cores > 1 and len(sizes) > 1}
    assert torch.get_num_threads() == cores


@pytest.mark.parametrize("cores", [1, 2], indirect=True)
def test_pieces_keep_no_gradients(cores: int) -> None:
    weight = torch.ones(2, requires_grad=True)
    assert not in_pieces(lambda some: some * weight, torch.ones(8, 2), 2).requires_grad


@pytest.mark.parametrize("cores", [1, 2], indirect=True)
def test_what_fails_in_a_piece_is_raised(cores: int) -> None:
    def walk(some: Tensor) -> Tensor:
        if some.max() == 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return some

    with pytest.raises(RuntimeError, match="can't allocate"):
        in_pieces(walk, torch.arange(8.0)[:, None], 1)
    assert torch.get_num_threads() == cores

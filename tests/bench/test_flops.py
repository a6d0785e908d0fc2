"""Counted operations are those of the architecture."""

from __future__ import annotations

import torch

from methods.anoclip import encode_views
from tests.kit import tiny
from zsadbench.bench.flops import counted, product_rate


def test_the_operations_of_a_tower_are_those_of_its_architecture() -> None:
    vision = tiny.clip("tiny-l14").vision
    images = tiny.images(0, 2, 84)
    tokens, width, depth, patch = 1 + 6 * 6, 128, 24, 14

    def walk() -> None:
        with torch.no_grad():
            x = vision.embed(images)
            for block in vision.blocks:
                x = block(x)

    linear = 2 * tokens * (4 + 8) * width**2  # queries, keys, values, output; the MLP is four times as wide
    attention = 4 * tokens**2 * width
    embedding = 2 * 6 * 6 * width * 3 * patch**2
    assert counted(walk) == 2 * (depth * (linear + attention) + embedding)


def test_operations_of_other_threads_are_counted_too() -> None:
    clip, threads = tiny.clip("tiny-b16p"), torch.get_num_threads()
    found = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(counted(lambda: encode_views(clip, tiny.images(0, 1, 48))))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] > 1e6


def test_the_rate_of_a_matrix_product_is_measured() -> None:
    rate = product_rate(torch.device("cpu"), torch.float32, repeats=3, side=256)
    assert 1e7 < rate < 1e15

"""How long a method takes for a single image, once warm."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..images import Loaded, decode, preprocess, read
from ..inputs import Backbone
from ..samples import Sample
from .encoder import Clips, Encoder
from .task import Spent, Task

WARM = 3
"""Calls that come first and are not counted: the first one loads the CLIP."""
CALLS = 32
"""Single images that are counted in a latency."""


def latency(task: Task, samples: Sequence[Sample], shared: Encoder) -> dict[str, Any]:
    """Return median and 95th percentile of the milliseconds of single images, once warm.

    ``shared`` has the towers: the walk is one of the method's own.
    """
    alone = dataclasses.replace(task, observer=None, spent=Spent())
    shared.clip(task.method.backbone)
    towers: Clips = {key: clip for key, clip in shared.clips.items() if isinstance(key, Backbone)}
    encoder = Encoder([alone], device=shared.device, dtype=shared.dtype, clips=towers)
    median, high = np.percentile(one_at_a_time(alone, samples, encoder, CALLS), (50, 95)).tolist()
    return {"calls": CALLS, "median_ms": round(median, 3), "p95_ms": round(high, 3)}


def one_at_a_time(task: Task, samples: Sequence[Sample], encoder: Encoder, calls: int) -> list[float]:
    """Return the milliseconds of each of ``calls`` single images in turn, after some that are not counted.

    They go from the image's file to its evidence and its map of the network's input size; methods that relate
    images have no map of one image.
    """
    spec, found = task.method.preprocess, []
    for number in range(WARM + calls):
        sample = samples[number % len(samples)]
        start = time.perf_counter()
        image = decode(read(sample.image), name=sample.key)
        loaded = Loaded(0, sample, {spec: preprocess(image, spec)})
        (evidence,) = encoder.observe([loaded], [task])
        if not task.relates:
            task.method.maps(evidence, (spec.size, spec.size))
        found.append(1000 * (time.perf_counter() - start))
    return found[WARM:]

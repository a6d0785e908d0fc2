"""The one curve every exact metric is read from.

Between two neighbouring scores of anomalous items only the false positives change.  So it is
enough to know, for each distinct score of an anomalous item, how many anomalous items have it,
what they weigh in their regions, and how many normal items lie above it and exactly on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ..errors import MetricError
from .keys import Counts, Floats

Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Counts at the K distinct scores of anomalous items, in falling order of the score.

    An item is called anomalous at threshold t when its score is >= t; items of equal score enter
    together.  Metrics are in [0, 1], or None where undefined: all of them without an anomalous
    item, AUROC and AUPRO without a normal one.
    """

    scores: Floats
    """(K,) the distinct scores."""
    hits: Counts
    """(K,) anomalous items with exactly this score."""
    weights: Points
    """(K,) sum of 1 / area of their region over those items; zeros where there are no regions."""
    above: Counts
    """(K,) normal items with a higher score."""
    equal: Counts
    """(K,) normal items with exactly this score."""
    normals: int
    regions: int = 0
    saturated: Points | None = None
    """(K,) what those items add to the sum of the saturated overlaps of all defects; None without defects."""
    defects: int = 0

    @property
    def anomalous(self) -> int:
        """Number of anomalous items."""
        return int(self.hits.sum())

    @property
    def auroc(self) -> float | None:
        """Share of (anomalous, normal) pairs in the right order, half for ties."""
        positives = self.anomalous
        if not positives or not self.normals:
            return None
        doubled = 2 * (self.normals - self.above) - self.equal
        # The sum may pass 2**63, so its two halves are summed apart and joined as Python integers.
        high = int((self.hits * (doubled >> 31)).sum())
        low = int((self.hits * (doubled & 0x7FFFFFFF)).sum())
        return ((high << 31) + low) / (2 * positives * self.normals)

    @property
    def ap(self) -> float | None:
        """Average precision: step sum of recall gained times precision, no interpolation."""
        if not self.hits.size:
            return None
        found = np.cumsum(self.hits)
        return float(np.sum(self.hits * (found / (found + self.above + self.equal))) / found[-1])

    @property
    def f1max(self) -> float | None:
        """Highest F1 over all thresholds."""
        return self._best()[0] if self.hits.size else None

    @property
    def f1max_threshold(self) -> float | None:
        """Highest threshold that reaches the highest F1."""
        return float(self.scores[self._best()[1]]) if self.hits.size else None

    @property
    def iou(self) -> float | None:
        """Highest intersection over union over all thresholds; same threshold as F1."""
        if not self.hits.size:
            return None
        k = self._best()[1]
        found = int(self.hits[: k + 1].sum())
        return found / (self.anomalous + int(self.above[k] + self.equal[k]))

    def fpr_at(self, tpr: float | Fraction) -> float | None:
        """Smallest false-positive rate of a threshold that keeps at least ``tpr`` of the anomalous items."""
        if not self.hits.size or not self.normals:
            return None
        wanted = math.ceil(_as_written(tpr) * self.anomalous)
        k = int(np.searchsorted(np.cumsum(self.hits), wanted))
        return float((self.above[k] + self.equal[k]) / self.normals) if wanted else 0.0

    def tpr_at(self, fpr: float | Fraction) -> float | None:
        """Largest true-positive rate of a threshold with a false-positive rate of at most ``fpr``."""
        if not self.hits.size or not self.normals:
            return None
        allowed = math.floor(_as_written(fpr) * self.normals)
        reached = int(np.searchsorted(self.above + self.equal, allowed, side="right"))
        return float(self.hits[:reached].sum() / self.anomalous)

    def aupro(self, limit: float = 0.3) -> float | None:
        """Area under mean region overlap against false-positive rate, up to ``limit``, over ``limit``."""
        if not self.hits.size or not self.normals or not self.regions:
            return None
        return self._area(self._overlap(), limit)

    def spro(self, limit: float = 0.3) -> float | None:
        """Area under mean saturated overlap against false-positive rate, up to ``limit``, over ``limit``.

        sPRO of MVTec LOCO AD (Bergmann et al., IJCV 2022): the overlap of a defect counts as 1 once as many
        of its pixels are found as its saturation says.
        """
        if self.saturated is None or not self.hits.size or not self.normals or not self.defects:
            return None
        return self._area(np.minimum(np.cumsum(self.saturated) / self.defects, 1.0), limit)

    def _area(self, overlap: Points, limit: float) -> float:
        end = limit * self.normals
        reached = int(np.searchsorted(self.above, end))
        above, equal = self.above[:reached], self.equal[:reached]
        overlap = overlap[:reached]
        before = np.concatenate(([0.0], overlap[:-1]))
        following = np.append(self.above[1 : reached + 1], self.normals)[:reached]
        ramp = np.clip(end - above, 0, equal)
        part = np.divide(ramp, equal, out=np.zeros(reached), where=equal > 0)
        flat = np.clip(np.minimum(following, end) - (above + equal), 0, None)
        return float(np.sum(ramp * (before + part * (overlap - before) / 2) + flat * overlap) / end)

    def roc(self, points: int = 2000) -> tuple[Points, Points]:
        """Return (false-positive rate, true-positive rate) to plot; the area is the exact one."""
        found = np.cumsum(self.hits)
        return self._plot(found / max(self.anomalous, 1), points)

    def pro(self, points: int = 2000) -> tuple[Points, Points]:
        """Return (false-positive rate, mean region overlap) to plot; the area is the exact one."""
        return self._plot(self._overlap(), points)

    def pr(self, points: int = 2000) -> tuple[Points, Points]:
        """Return (recall, precision) to plot as steps: each precision holds back to the recall before.

        Neighbouring steps are merged into one with their mean, so the area under the steps is AP.
        """
        if not self.hits.size:
            return np.empty(0), np.empty(0)
        found = np.cumsum(self.hits)
        area = np.cumsum(self.hits * (found / (found + self.above + self.equal)))
        wanted = np.linspace(0, found[-1], points + 1)[1:]
        last = np.unique(np.minimum(np.searchsorted(found, wanted), found.size - 1))
        gained = np.diff(found[last], prepend=0)
        return found[last] / found[-1], np.diff(area[last], prepend=0.0) / gained

    def _best(self) -> tuple[float, int]:
        found = np.cumsum(self.hits)
        f1 = 2 * found / (found + self.above + self.equal + found[-1])
        k = int(np.argmax(f1))
        return float(f1[k]), k

    def _overlap(self) -> Points:
        return np.minimum(np.cumsum(self.weights) / max(self.regions, 1), 1.0)

    def _plot(self, heights: Points, points: int) -> tuple[Points, Points]:
        """Return the polyline through (FPR, height) at every distinct score, thinned."""
        if not self.hits.size or not self.normals:
            return np.empty(0), np.empty(0)
        x = np.empty(2 * heights.size + 2)
        y = np.empty_like(x)
        x[0], x[1:-1:2], x[2:-1:2], x[-1] = 0, self.above, self.above + self.equal, self.normals
        y[0], y[1], y[3:-1:2], y[2:-1:2], y[-1] = 0, 0, heights[:-1], heights, heights[-1]
        return thin(x / self.normals, y, points)


def _as_written(rate: float | Fraction) -> Fraction:
    """Return a rate as it is written: 0.95 of 20 items are 19, not a little more."""
    if not 0 <= rate <= 1:
        raise MetricError(f"{rate} is no rate: give a number from 0 to 1")
    return Fraction(repr(rate)) if isinstance(rate, float) else Fraction(rate)


def thin(x: Points, y: Points, points: int) -> tuple[Points, Points]:
    """Return a rising polyline of at most ``points`` points with the area of (``x``, ``y``).

    The line is cut into pieces of equal rise plus run.  A rising piece lies inside its bounding
    box, and the one corner on the box's falling diagonal that leaves the piece's area as it is
    always exists; so the area up to any x moves by less than the area of one box.
    """
    if x.size <= points:
        return x, y
    length = x + y
    cuts = np.linspace(length[0], length[-1], (points - 1) // 2 + 1)
    k = np.clip(np.searchsorted(length, cuts, side="right") - 1, 0, x.size - 2)
    step = length[k + 1] - length[k]
    share = np.divide(cuts - length[k], step, out=np.zeros(cuts.size), where=step > 0)
    cut_x = x[k] + share * (x[k + 1] - x[k])
    cut_y = y[k] + share * (y[k + 1] - y[k])
    area = np.concatenate(([0.0], np.cumsum(np.diff(x) * (y[1:] + y[:-1]) / 2)))
    cut_area = area[k] + (cut_x - x[k]) * (y[k] + cut_y) / 2
    run, rise = np.diff(cut_x), np.diff(cut_y)
    box = run * rise
    filled = np.diff(cut_area) - run * cut_y[:-1]
    fill = np.clip(np.divide(filled, box, out=np.full(box.size, 0.5), where=box > 1e-15), 0, 1)
    thin_x, thin_y = np.empty(2 * cuts.size - 1), np.empty(2 * cuts.size - 1)
    thin_x[::2], thin_y[::2] = cut_x, cut_y
    thin_x[1::2] = cut_x[:-1] + (1 - fill) * run
    thin_y[1::2] = cut_y[:-1] + fill * rise
    return thin_x, thin_y

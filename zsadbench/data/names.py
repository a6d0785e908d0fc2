"""What the names of folders mean to people: normal, anomalous, masks, splits, or nothing at all."""

from __future__ import annotations

import re
from collections.abc import Collection

IMAGES = frozenset({"images", "image", "imgs", "img"})
"""Folders that hold the images of the folder above, beside masks."""

GENERIC = IMAGES | {"data", "dataset", "datasets", "photos", "pictures"}
"""Folders that say nothing about what is in them, so no category is called like that."""

TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation", "eval")
"""Folders of a split, those that are evaluated in order of preference."""

_NORMAL = frozenset(
    {"good", "ok", "okay", "normal", "pass", "passed", "io", "healthy", "undamaged", "flawless"}
    | {"nondefective", "nondefect", "nodefect", "nodefects", "defectfree"}
)
_ANOMALOUS = frozenset(
    {"bad", "ko", "ng", "nok", "notok", "nogood", "nio", "anomaly", "anomalous", "anomalies", "abnormal"}
    | {"defective", "defect", "defects", "fail", "failed", "fault", "faulty", "reject", "rejected"}
    | {"damaged", "ungood", "notgood"}
)
_MASK = frozenset(
    {"mask", "masks", "gt", "gts", "truth", "groundtruth", "groundtruths", "label", "labels"}
    | {"annotation", "annotations", "annot", "annots", "seg", "segmentation", "segmentations"}
)
_GROUND = {"ground"}
_FILL = IMAGES | {"dir", "folder", "files", "sample", "samples", "part", "parts", "set", "data"}
_PIECE = re.compile(r"[^\W\d_]+")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")


def words_of(name: str) -> list[str]:
    """Return the words of a name in lower case: ``"GroundTruth_2"`` is ground, truth."""
    return [word.lower() for piece in _PIECE.findall(name) for word in _HUMP.split(piece)]


def _core(name: str) -> str:
    """Return the words that carry the meaning, as one."""
    found = words_of(name)
    return "".join(word for word in found if word not in _FILL) or "".join(found)


def means_normal(name: str) -> bool:
    """Tell whether a folder is called like one of normal images: ``good``, ``OK``, ``normal_dir``."""
    return _core(name) in _NORMAL


def means_anomalous(name: str) -> bool:
    """Tell whether a folder is called like one of anomalous images: ``NG``, ``Bad``, ``defects``."""
    return _core(name) in _ANOMALOUS


def means_masks(name: str, beside: Collection[str] = ()) -> bool:
    """Tell whether a folder is called like one of masks: ``ground_truth``, ``mask_dir``, ``labels``.

    ``crack_mask`` is one only where ``crack`` lies ``beside`` it: ``wrong_label`` is a defect.
    """
    rest = masks_of(name)
    return rest is not None and (not rest or any(words_of(other) == rest for other in beside))


def masks_of(name: str) -> list[str] | None:
    """Return the words of whose masks a folder is called like one: of nobody's in particular, or None."""
    found = words_of(name)
    rest = [word for word in found if word not in _MASK | _GROUND]
    if len(rest) == len(found) or set(found) <= _GROUND:
        return None
    return [word for word in rest if word not in _FILL]


def is_split(name: str) -> bool:
    """Tell whether a folder is called like a split."""
    return name.lower() in TRAIN + TEST

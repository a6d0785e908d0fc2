"""What all golden checkers share: a file with its arrays, the comparison of one stage, and the usual inputs.

``tests/test_goldens.py`` hands every file of ``goldens/<method>/`` to ``check(path)`` of
``tests/checkers/<method>.py``.  A new checker is short::

    def check(path: Path) -> None:
        with opened(path, 1e-4) as golden:
            golden.hand_to(golden.word(0), _infer, _losses)


    def _infer(golden: Golden) -> None:
        golden.near("text_anchors", anchors)  # the array of that name, of largest value
        golden.near("class_probs", probabilities, tolerance=5e-4, of="span")
        golden.near("parts", parts, golden["parts"][step])  # a part of an array
        golden.near_maps("final_map", lambda: method.maps(evidence, size))

Whoever makes goldens states in ``meta`` what they were made from, so a checker holds no seed and no size.
A file with an array that no stage asked for fails: a stage was forgotten.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from tests.kit import tiny
from zsadbench.clip.checkpoints import Provenance, save_checkpoint
from zsadbench.clip.towers import Clip
from zsadbench.images.batches import to_batch_images
from zsadbench.images.loader import preprocess
from zsadbench.images.masks import MaskRule, mask_at
from zsadbench.inputs import Batch
from zsadbench.maps import exact_maps
from zsadbench.samples import Sample
from zsadbench.training.stages import Features, Stage, Truth

Scale = Literal["max", "span", "one"]
_asserted = True
_errors: list[tuple[str, float, float]] = []


def begin_measuring(asserted: bool) -> None:
    """Forget what was measured; from now on errors are measured, and large ones refused if ``asserted``."""
    global _asserted
    _asserted = asserted
    _errors.clear()


def measured() -> list[tuple[str, float, float]]:
    """Return stage, error and what is allowed (both relative) of all comparisons so far."""
    return list(_errors)


Meta = Mapping[str, Any]


@dataclass(frozen=True)
class Golden:
    """The arrays of one file, and what they were made from."""

    path: Path
    meta: Meta
    arrays: Mapping[str, NDArray[Any]]
    tolerance: float
    """Where a stage states no other."""
    read: set[str] = field(default_factory=set)
    """Names of the arrays that a stage asked for."""
    prefix: str = ""
    """Stands before every name that is asked for."""

    def word(self, number: int) -> str:
        """Return a word of the file's name, which is joined by underscores."""
        return self.path.stem.split("_")[number]

    def hand_to(self, word: str, *checks: Callable[[Golden], None]) -> None:
        """Run the check that is named after ``word``, as ``_infer`` is after ``infer``."""
        {check.__name__.removeprefix("_"): check for check in checks}[word](self)

    def below(self, prefix: str) -> Self:
        """Return the arrays whose names begin with ``prefix``, to be asked for without it."""
        return dataclasses.replace(self, prefix=self.prefix + prefix)

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self.arrays

    def __getitem__(self, key: str) -> NDArray[Any]:
        self.read.add(self.prefix + key)
        return self.arrays[self.prefix + key]

    def leave(self, start: str) -> None:
        """Leave out the arrays whose names begin with ``start``; say why beside the call."""
        self.read.update(key for key in self.arrays if key.startswith(self.prefix + start))

    def tensor(self, key: str) -> Tensor:
        """Return an array as a tensor."""
        return torch.from_numpy(self[key])

    def near(
        self,
        stage: str,
        found: ArrayLike,
        wanted: ArrayLike | None = None,
        *,
        tolerance: float | None = None,
        of: Scale = "max",
    ) -> None:
        """Assert equal shapes and ``max |found - wanted| <= tolerance`` times the largest value, span or 1.

        ``wanted`` is by default the array named ``stage``.
        """
        a, b = (np.asarray(x, np.float64) for x in (found, self._wanted(stage, wanted)))
        where, allowed = self._where(stage), self.tolerance if tolerance is None else tolerance
        assert a.shape == b.shape, f"{where}: shape {a.shape}, golden {b.shape}"
        assert np.isfinite(a).all(), f"{where}: not finite"
        scale = {"max": float(np.abs(b).max()), "span": float(np.ptp(b)), "one": 1.0}[of]
        error = float(np.abs(a - b).max())
        _errors.append((self.prefix + stage, error / scale if scale else error, allowed))
        if _asserted:
            assert error <= allowed * scale, (
                f"{where}: error {error:.2e} of {of} {scale:.3g}, allowed {allowed}"
            )

    def near_maps(
        self, stage: str, render: Callable[[], ArrayLike], wanted: ArrayLike | None = None, **rule: Any
    ) -> None:
        """Assert that maps rendered fast and maps rendered exactly are both near."""
        wanted = self._wanted(stage, wanted)
        for exact in (False, True):
            with exact_maps(exact):
                maps = render()
            self.near(f"{stage} (exact: {exact})", maps, wanted, **rule)

    def same(self, stage: str, found: ArrayLike, wanted: ArrayLike | None = None) -> None:
        """Assert equal shapes and values: tokens, labels, masks."""
        a, b = np.asarray(found), np.asarray(self._wanted(stage, wanted))
        assert a.shape == b.shape, f"{self._where(stage)}: shape {a.shape}, golden {b.shape}"
        if _asserted:
            assert np.array_equal(a, b), (
                f"{self._where(stage)}: {np.count_nonzero(a != b)} of {a.size} differ"
            )

    def _wanted(self, stage: str, wanted: ArrayLike | None) -> ArrayLike:
        return self[stage] if wanted is None else wanted

    def _where(self, stage: str) -> str:
        return f"{self.path.name}: {self.prefix}{stage}"


@contextmanager
def opened(path: Path, tolerance: float) -> Iterator[Golden]:
    """Open a file for its checks; in the end every array must have been asked for."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(str(arrays.pop("meta")))
    golden = Golden(path, meta, arrays, tolerance)
    yield golden
    left = sorted(arrays.keys() - golden.read)
    assert not left, f"{path.name}: no stage asked for {', '.join(left)}"


def activation_of(meta: Meta) -> Literal["gelu", "quick_gelu"]:
    """Return the activation that ``meta`` states."""
    return "quick_gelu" if meta["quick_gelu"] else "gelu"


def drawn_batch(seed: int, categories: Sequence[str], size: int) -> Batch:
    """Return the miniature images of a seed, one for each of ``categories``, as one batch."""
    return tiny.batch(tiny.images(seed, len(categories), size), list(categories))


def prepared(
    method: Any, kind: str, clip: Clip, tensors: Mapping[str, Tensor], words: Mapping[str, str]
) -> Any:
    """Return the observer of ``method`` (of the id ``kind``) with ``tensors`` as its checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "learned.safetensors"
        save_checkpoint(path, tensors, Provenance(kind))
        return dataclasses.replace(method, checkpoint=str(path)).prepare(clip, words)


def begin(stage: Stage, tensors: Mapping[str, Tensor]) -> None:
    """Let a stage of a training begin with ``tensors``."""
    for name, value in stage.parameters.items():
        value.data.copy_(tensors[name])


def gradient(stage: Stage, name: str) -> Tensor:
    """Return the gradient of a parameter after a step."""
    found = stage.parameters[name].grad
    assert found is not None, f"{name}: no gradient"
    return found


def fixed_batches(golden: Golden, stage: Stage) -> list[tuple[Features, Truth]]:
    """Return the batches of a training file: frozen features of its images, its masks and labels."""
    meta, batches = golden.meta, []
    for seed, masks, labels in zip(meta["image_seeds"], golden["masks"], golden["labels"], strict=True):
        names = ["any"] * meta["batch"]
        with torch.no_grad():
            features = stage.features(drawn_batch(seed, names, meta["size"]))
        batches.append((features, Truth(torch.from_numpy(masks).float(), torch.from_numpy(labels), names)))
    return batches


class Pictures(NamedTuple):
    """What a run makes of the pictures of a file: inputs, exact maps, image scores, and the masks."""

    inputs: Tensor
    maps: NDArray[np.float32]
    scores: NDArray[np.float32]
    masks: NDArray[np.bool_]


def run_pictures(
    golden: Golden, method: Any, observer: Any, categories: Sequence[str] | None = None
) -> Pictures:
    """Read the pictures of an end-to-end file as a run reads files, and observe them as one batch."""
    files = [preprocess(Image.fromarray(image), method.preprocess) for image in golden["images"]]
    inputs = to_batch_images(files, method.preprocess)
    evidence = observer.observe(tiny.batch(inputs, list(categories or ["any"] * len(files))))
    size = (golden.meta["size"], golden.meta["size"])
    with exact_maps():
        maps = method.maps(evidence, size).numpy()
    scores = method.image_scores(evidence, torch.zeros(len(files), 2)).numpy()
    masks = np.stack([mask_of(mask, size, "bilinear50") for mask in golden["masks"]])
    return Pictures(inputs, maps, scores, masks)


def padded(tokens: Tensor, width: int) -> Tensor:
    """Return token rows filled up with zeros to ``width``, as CLIP's own tokenizer does."""
    return F.pad(tokens, (0, width - tokens.shape[1]))


def mask_of(pixels: NDArray[Any], size: tuple[int, int], rule: MaskRule) -> NDArray[np.bool_]:
    """Return the mask of a picture of a mask, as a run reads it from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.png"
        Image.fromarray(pixels).save(path)
        return mask_at(Sample("image", "any", True, path, path), size, rule)

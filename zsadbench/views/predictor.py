"""A method made ready for images of no dataset: inductive scores and maps, of whole images or of tiles.

Each score comes from its image alone, but for methods that judge images by each other: those see all images
of a call.  A tile, or a region of interest, is what the method sees as an image.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..clip import checkpoint_file, find_seconds, find_weights, hub_address, load_checkpoint
from ..environment import environment
from ..errors import DatasetError, MethodError, UsageError
from ..files import sha256_of, whole_path
from ..images import Loaded, decode, preprocess, stream
from ..method import Relating, Resolved, resolve
from ..records import EvidenceStore, Slice, select_rows
from ..run import Encoder, Gathered, Task, pick_device, pick_dtype, related, too_few, trained_on
from ..samples import Sample
from ..scoring import EvidenceMaps
from ..text import terminal
from .overlay import Scale, resized
from .tiles import Box, Tiling, tiling

DEFAULT_WORDS = "object"
MAX_OVERLAP = 0.9
NOTHING = Slice({}, [], [])


@dataclass(frozen=True)
class Setup:
    """What predicts: a method with its CLIP and its words, and which parts of an image it sees.

    ``words`` name the object in prompts.  ``roi`` is a region in pixels of the upright image; with ``tile``
    it is cut into squares of so many pixels that share at least ``overlap`` (a fraction) of their side.
    """

    method: str
    words: str = ""
    backbone: str | None = None
    weights: str | None = None
    activation: str | None = None
    checkpoint: str | Path | None = None
    prompts: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    tile: int | None = None
    overlap: float = 0.25
    roi: Box | None = None
    device: str = "auto"
    dtype: str = "fp32"
    batch_size: int | None = None
    workers: int | None = None


@dataclass(frozen=True)
class Prediction:
    """What became of one image: a score and the extremes of its map, or the ``error`` that says why not.

    ``size`` is height and width after the EXIF rotation; ``verdict`` that of a threshold, ``overlay`` the
    file written for it and ``thumbnails`` small pictures of the photograph and of the overlay, if any.
    """

    path: Path
    size: tuple[int, int] = (0, 0)
    sha256: str = ""
    score: float | None = None
    extremes: Scale = (0.0, 0.0)
    tiles: Tiling | None = None
    notes: tuple[str, ...] = ()
    verdict: str | None = None
    overlay: Path | None = None
    thumbnails: tuple[Path, ...] = ()
    error: str | None = None


class Predictor:
    """A method that is ready to predict; loads its CLIP with the first image.

    Raises:
        ZsadError: for a name, parameter or file that cannot be used.
    """

    def __init__(self, setup: Setup) -> None:
        _check(setup)
        self.setup = setup
        self.words = setup.words.strip() or DEFAULT_WORDS
        device = pick_device(setup.device)
        self.resolved = _resolved(setup)
        self.method = self.resolved.inductive
        self.weights = find_weights(self.method.backbone)
        nowhere = EvidenceStore(Path())  # the encoder hands evidence back, it stores none
        self.task = Task(
            self.resolved.id,
            self.method,
            {self.words: self.words},
            nowhere,
            self.resolved.card.order_dependent,
        )
        if setup.tile and self.task.relates:
            raise UsageError(
                f"--tile {setup.tile}: '{self.resolved.id}' would compare the tiles of an image with each "
                "other; leave it out, or look at one region of every image with --roi"
            )
        self.encoder = Encoder(
            [self.task], device=device, dtype=pick_dtype(setup.dtype), batch_size=setup.batch_size
        )

    def observe(
        self, paths: Sequence[Path], step: Callable[[str, float], None] = lambda what, done: None
    ) -> Iterator[tuple[Prediction, Slice]]:
        """Yield the prediction of each image with its evidence, a row per tile; few images are held at once.

        An image that cannot be read becomes a prediction with ``error`` and no evidence.  ``step`` is told
        what takes long and how far it is (0 to 1).

        Raises:
            MethodError: for fewer images than the method compares with each other.
        """
        samples = [Sample(terminal(path.name), self.words, False, path, None) for path in paths]
        cut = self.setup.tile or self.setup.roi
        seen = self._in_parts(samples) if cut else self._whole(samples)
        if isinstance(self.method, Relating):
            seen = self._related(self.method, seen, len(samples), step)
        for loaded, tiles, part in seen:
            yield self._predicted(loaded, tiles, part), part

    def _related(
        self,
        method: Relating,
        seen: Iterator[tuple[Loaded, Tiling | None, Slice]],
        images: int,
        step: Callable[[str, float], None],
    ) -> Iterator[tuple[Loaded, Tiling | None, Slice]]:
        """Observe all images before the first one is judged: each is judged by the others."""
        self._check_enough(images)
        gathered, held = Gathered(images, self.resolved.id), []
        for loaded, tiles, part in seen:
            gathered.add([loaded], part.evidence)
            held.append((dataclasses.replace(loaded, inputs={}), tiles))
        whole = gathered.slice()
        self._check_enough(len(whole.keys))
        name, device = self.resolved.id, self.encoder.device
        whole = related(whole, method, name, device, lambda done: step(f"{name} relates the images", done))
        rows = count()
        for loaded, tiles in held:
            own = [next(rows)] if tiles else []
            keys, hashes = [whole.keys[row] for row in own], [whole.hashes[row] for row in own]
            yield loaded, tiles, Slice(select_rows(whole.evidence, own), keys, hashes) if own else NOTHING

    def _check_enough(self, images: int) -> None:
        if reason := too_few(self.method, images):
            raise MethodError(f"{self.resolved.id} {reason}; here are {images} that can be read")

    def _whole(self, samples: Sequence[Sample]) -> Iterator[tuple[Loaded, Tiling | None, Slice]]:
        """Observe images as they are, in batches."""
        spec, workers = self.method.preprocess, self.setup.workers
        with closing(stream(samples, [spec], workers=workers, orient=True)) as loader:
            while batch := list(islice(loader, self.encoder.batch_size)):
                good = [loaded for loaded in batch if loaded.error is None]
                (evidence,) = self.encoder.observe(good, [self.task])
                rows = count()
                for loaded in batch:
                    if loaded.error is not None:
                        yield loaded, None, NOTHING
                        continue
                    part = Slice(select_rows(evidence, [next(rows)]), [loaded.sample.key], [loaded.sha256])
                    yield loaded, tiling(loaded.size, None, None, 0.0, loaded.sample.key), part

    def _in_parts(self, samples: Sequence[Sample]) -> Iterator[tuple[Loaded, Tiling | None, Slice]]:
        """Observe a region or tiles, one image after another."""
        # Without a preprocessing the loader only checks, hashes and measures.
        with closing(stream(samples, [], workers=1, ahead=1, orient=True)) as loader:
            for loaded in loader:
                try:
                    yield loaded, *((None, NOTHING) if loaded.error is not None else self._tiles(loaded))
                except DatasetError as error:
                    yield dataclasses.replace(loaded, error=str(error)), None, NOTHING

    def _tiles(self, loaded: Loaded) -> tuple[Tiling, Slice]:
        """Return the tiles of an image with their evidence; a batch of them is held at once."""
        sample, setup, spec = loaded.sample, self.setup, self.method.preprocess
        tiles = tiling(loaded.size, setup.roi, setup.tile, setup.overlap, sample.key)
        image = decode(sample.image, name=sample.key, orient=True)
        pieces = (
            dataclasses.replace(
                loaded,
                sample=dataclasses.replace(sample, key=f"{sample.key}#{number}"),
                inputs={spec: preprocess(image.crop(box), spec, name=sample.key)},
            )
            for number, box in enumerate(tiles.boxes)
        )
        found: list[dict[str, torch.Tensor]] = []
        while batch := list(islice(pieces, self.encoder.batch_size)):
            found += self.encoder.observe(batch, [self.task])
        evidence = {name: torch.cat([rows[name] for rows in found]) for name in found[0]}
        keys = [f"{sample.key}#{number}" for number in range(len(tiles.boxes))]
        return tiles, Slice(evidence, keys, [loaded.sha256] * len(keys))

    def _predicted(self, loaded: Loaded, tiles: Tiling | None, part: Slice) -> Prediction:
        """Return the prediction of one image: its score is that of its most anomalous tile."""
        path, notes = loaded.sample.image, loaded.notes
        if tiles is None:
            reason = (loaded.error or "").removeprefix(f"{loaded.sample.key}: ")
            return Prediction(path, sha256=loaded.sha256, notes=notes, error=reason)
        low_high = [(float(one.min()), float(one.max())) for one in self.maps(part)]
        scores = EvidenceMaps(self.method, part).image_scores(torch.tensor(low_high))
        score = float(scores.double().max())
        if not math.isfinite(score):
            reason = f"its score is {score}; the method gave no finite number"
            return Prediction(path, loaded.size, loaded.sha256, notes=notes, error=reason)
        lows, highs = zip(*low_high, strict=True)
        extremes = (min(lows), max(highs))
        return Prediction(path, loaded.size, loaded.sha256, score, extremes, tiles, notes)

    def maps(self, part: Slice) -> Iterator[NDArray[np.float32]]:
        """Yield the map (H, W) of every tile at the size the method is evaluated at."""
        maps = EvidenceMaps(self.method, part)
        size = self.resolved.size
        for row in range(len(part.keys)):
            yield maps.render(row, maps.own_size(row) if size == "frame" else (size, size))

    def map_of(self, prediction: Prediction, part: Slice) -> NDArray[np.float32]:
        """Return the map (H, W) of an image's region in pixels of the image: bilinear, tiles blended.

        Raises:
            UsageError: for an image that could not be read.
        """
        if prediction.tiles is None:
            raise UsageError(f"{terminal(prediction.path)}: has no map, because {prediction.error}")
        sides = [(bottom - top, right - left) for left, top, right, bottom in prediction.tiles.boxes]
        maps = zip(self.maps(part), sides, strict=True)
        return prediction.tiles.blend(resized(one, side) for one, side in maps)

    @property
    def rule(self) -> str:
        """How an image comes by its score, in words."""
        what = "the region" if self.setup.roi else "the image"
        if self.task.relates:
            return f"of {what} by comparison with all others of this call"
        if self.setup.tile:
            return f"inductive, each tile of {what} by itself; the maximum over tiles"
        return f"inductive, from {what} alone"

    def identity(self) -> dict[str, Any]:
        """Return everything a score depends on, as JSON values; weights and checkpoint by their digests."""
        setup, parameters = self.setup, dict(self.resolved.parameters)
        parameters["backbone"] = parameters["backbone"] | self.weights.identity()
        seconds = find_seconds(self.method)
        parameters |= {field: parameters[field] | {"weights": one.digest} for field, one in seconds.items()}
        if parameters.get("checkpoint"):
            parameters["checkpoint"] = sha256_of(Path(parameters["checkpoint"]))
        return {
            "method": self.resolved.id,
            "version": self.resolved.card.version,
            "parameters": parameters,
            "words": self.words,
            "image_score": "inductive",
            "dtype": setup.dtype,
            "tile": setup.tile,
            "overlap": setup.overlap if setup.tile else None,
            "roi": list(setup.roi) if setup.roi else None,
        }

    def names(self) -> dict[str, str]:
        """Return what :meth:`identity` holds by digests as names that lead to the files again."""
        setup, backbone = self.setup, self.method.backbone
        checkpoint = str(getattr(self.method, "checkpoint", "") or "")
        return {
            "method": setup.method,
            "backbone": whole_path(backbone.name),
            "weights": whole_path(backbone.weights),
            "activation": self.weights.activation,
            "checkpoint": checkpoint and (hub_address(checkpoint) or str(Path(checkpoint).resolve())),
        }

    def about(self) -> dict[str, Any]:
        """Return the identity and the environment, for files that hold scores."""
        return self.identity() | {
            "rule": self.rule,
            "weights": self.weights.tag,
            "environment": environment(self.encoder.device, self.setup.dtype),
        }


def _check(setup: Setup) -> None:
    pick_dtype(setup.dtype)  # before anything is read
    if setup.tile is not None and setup.tile < 1:
        raise UsageError(f"--tile {setup.tile}: a tile has a side of 1 pixel or more")
    if not 0 <= setup.overlap <= MAX_OVERLAP:
        raise UsageError(
            f"--overlap {setup.overlap:g}: give the part of a tile that neighbours share, 0 to {MAX_OVERLAP}"
        )
    for name, number in (("--batch-size", setup.batch_size), ("--workers", setup.workers)):
        if number is not None and number < 1:
            raise UsageError(f"{name} {number}: give 1 or more")


def _resolved(setup: Setup) -> Resolved:
    """Return the method with its inductive score.

    Raises:
        MethodError: if a trained method has no checkpoint, or scores of one image alone do not exist.
    """
    checkpoint = checkpoint_file(setup.checkpoint) if setup.checkpoint else None
    chosen = {"checkpoint": str(checkpoint)} if checkpoint else {}
    towers: dict[str, str] = {}
    if setup.backbone is None and checkpoint:
        towers = trained_on(checkpoint, resolve(setup.method).method.backbone.name)
    given = {name: getattr(setup, name) for name in ("backbone", "weights", "activation")}
    towers |= {name: value for name, value in given.items() if value is not None}
    resolved = resolve(setup.method, prompts=setup.prompts, settings={**setup.settings, **chosen}, **towers)
    if resolved.needs_checkpoint:
        load_checkpoint("", resolved.card.id, {})  # says how to come by one
    if resolved.card.transductive and not resolved.card.inductive:
        raise MethodError(
            f"'{resolved.id}' scores an image by comparing it with others and has no inductive rule; "
            "choose another method"
        )
    return resolved

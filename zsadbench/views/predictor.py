"""A method made ready for images of no dataset: inductive scores and maps, of whole images or of tiles.

Each score comes from its image alone, but for methods that judge images by each other: those see all images
of a call.  A tile, or a region of interest, is what the method sees as an image.  What judges is an
``Engine``: a method on its CLIP, or an exported file, for which nothing here needs torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DatasetError, UsageError, suggest
from ..images import Loaded, decode, picture_of, preprocess, stream, to_rgb
from ..samples import Sample
from ..text import terminal
from .overlay import Scale, draw_scale, overlay, resized
from .setup import Engine, Evidence, Prediction, Seen, Setup, verdict
from .tiles import Box, Tiling, tiling

MAX_OVERLAP = 0.9
Picture: TypeAlias = str | Path | Image.Image | NDArray[np.uint8]
"""A path, an image of PIL, or an array (H, W, 3) or (H, W) uint8."""
Pictures: TypeAlias = list[Any] | tuple[Any, ...]
"""Several of them."""
_Observed: TypeAlias = Generator[Seen, None, None]


@dataclass(frozen=True, eq=False)
class Scored:
    """One image, judged: what calling a ``Predictor`` returns.

    ``score`` is higher the more anomalous the image; ``map`` (H, W) float32 of the upright image, in the
    method's own values, NaN outside a region of interest; ``decision`` is "OK" or "NG" where there is a
    threshold; ``image`` the upright RGB picture.
    """

    score: float
    map: NDArray[np.float32] = field(repr=False)
    decision: str | None
    image: Image.Image = field(repr=False)
    notes: tuple[str, ...] = ()
    region: Box = field(default=(0, 0, 0, 0), repr=False)

    def overlay(self, scale: Scale | None = None) -> Image.Image:
        """Return the picture under the colours of its map, with a scale bar where there is room.

        ``scale`` gives the map values of the first and the last colour; without it the map's own extremes.

        Raises:
            UsageError: for a scale that does not rise.
        """
        if scale and not -math.inf < scale[0] < scale[1] < math.inf:
            raise UsageError(f"scale {scale}: give the lowest and the highest map value, as in (0.2, 0.8)")
        left, top, right, bottom = self.region
        values = self.map[top:bottom, left:right]
        scale = scale or (float(values.min()), float(values.max()))
        picture = overlay(self.image, values, scale, (left, top))
        caption = "  ".join(filter(None, (self.decision, f"{self.score:.6g}")))
        draw_scale(picture, values, scale, (left, top), caption)
        return picture


class Predictor:
    """What is ready to predict; call it with images, from several threads if you like.

    ``engine`` judges, by default the setup's method on its CLIP, loaded once, with the first image; it knows
    the method's ``id`` and the ``words`` for what is seen.

    Raises:
        ZsadError: for a name, parameter or file that cannot be used.
    """

    def __init__(self, setup: Setup, engine: Engine | None = None, limit: float | None = None) -> None:
        _check(setup)
        self.setup, self.limit = setup, limit
        self.engine = engine or _clip_engine(setup)
        if setup.tile and self.engine.relates:
            raise UsageError(
                f"--tile {setup.tile}: '{self.engine.id}' would compare the tiles of an image with each "
                "other; leave it out, or look at one region of every image with --roi"
            )

    @property
    def limit(self) -> float | None:
        """The score above which an image is NG; None where nothing is decided."""
        return self._limit

    @limit.setter
    def limit(self, limit: float | None) -> None:
        if not (limit is None or (_is_number(limit) and math.isfinite(limit))):
            raise UsageError(f"threshold {limit!r}: give a finite number, or a file of zsad calibrate")
        self._limit = None if limit is None else float(limit)

    @overload
    def __call__(self, image: Picture, *, order: str = "rgb") -> Scored: ...

    @overload
    def __call__(self, image: Pictures, *, order: str = "rgb") -> list[Scored]: ...

    def __call__(self, image: Picture | Pictures, *, order: str = "rgb") -> Scored | list[Scored]:
        """Return the score and the map of an image, or a list of them for a list.

        An image is a path, an image of PIL (turned as its EXIF entry says), or an array (H, W, 3) or (H, W)
        uint8; ``order`` tells how the colours of arrays lie, "rgb" or, as OpenCV reads them, "bgr".

        Raises:
            DatasetError: for an image that cannot be used; nothing is returned of the others either.
            UsageError: for another order of colours.
        """
        if order not in ("rgb", "bgr"):
            raise UsageError(f"order '{order}' of colours is not known.{suggest(str(order), ('rgb', 'bgr'))}")
        if not isinstance(image, list | tuple):
            return self._scored([image], order)[0]
        return self._scored(image, order) if image else []

    def _scored(self, images: Sequence[Any], order: str) -> list[Scored]:
        names = [_name(image, number) for number, image in enumerate(images, 1)]
        pictures = [_opened(image, name, order) for image, name in zip(images, names, strict=True)]
        samples = [Sample(name, self.engine.words, False, Path(), None) for name in names]
        found = []
        for (prediction, evidence), picture in zip(
            self._predictions(samples, pictures), pictures, strict=True
        ):
            if prediction.tiles is None or prediction.score is None:
                raise DatasetError(f"{prediction.path}: {prediction.error}")
            values = self.map_of(prediction, evidence)
            left, top, right, bottom = region = prediction.tiles.region
            if values.shape != prediction.size:
                whole = np.full(prediction.size, np.nan, np.float32)
                whole[top:bottom, left:right] = values
                values = whole
            decision = verdict(prediction.score, self.limit)
            found.append(
                Scored(prediction.score, values, decision, to_rgb(picture), prediction.notes, region)
            )
        return found

    def observe(
        self, paths: Sequence[Path], step: Callable[[str, float], None] = lambda what, done: None
    ) -> Iterator[tuple[Prediction, Evidence]]:
        """Yield the prediction of each image with its evidence, a row per tile; few images are held at once.

        An image that cannot be read becomes a prediction with ``error`` and no evidence.  ``step`` is told
        what takes long and how far it is (0 to 1).

        Raises:
            MethodError: for fewer images than the method compares with each other.
        """
        samples = [Sample(terminal(path.name), self.engine.words, False, path, None) for path in paths]
        return self._predictions(samples, (), step)

    def _predictions(
        self,
        samples: Sequence[Sample],
        pictures: Sequence[Image.Image],
        step: Callable[[str, float], None] = lambda what, done: None,
    ) -> Iterator[tuple[Prediction, Evidence]]:
        seen = self._in_parts if self.setup.tile or self.setup.roi else self._whole
        with self.engine.call(), closing(seen(samples, pictures)) as images:
            related = self.engine.relate(images, len(samples), step) if self.engine.relates else images
            for loaded, tiles, evidence in related:
                yield self._predicted(loaded, tiles, evidence), evidence

    def _whole(self, samples: Sequence[Sample], pictures: Sequence[Image.Image]) -> _Observed:
        """Observe images as they are, in batches."""
        engine, workers = self.engine, 1 if len(samples) == 1 else self.setup.workers
        with closing(
            stream(samples, [engine.spec], workers=workers, orient=True, pictures=pictures)
        ) as loader:
            while batch := list(islice(loader, engine.batch_size)):
                good = [loaded for loaded in batch if loaded.error is None]
                evidence, row = engine.observe(good) if good else {}, 0
                for loaded in batch:
                    if loaded.error is not None:
                        yield loaded, None, {}
                        continue
                    own = {name: value[row : row + 1] for name, value in evidence.items()}
                    row += 1
                    yield loaded, tiling(loaded.size, None, None, 0.0, loaded.sample.key), own

    def _in_parts(self, samples: Sequence[Sample], pictures: Sequence[Image.Image]) -> _Observed:
        """Observe a region or tiles, one image after another."""
        # Without a preprocessing the loader only checks, hashes and measures.
        with closing(stream(samples, [], workers=1, ahead=1, orient=True, pictures=pictures)) as loader:
            for loaded in loader:
                if loaded.error is not None:
                    yield loaded, None, {}
                    continue
                try:
                    picture = pictures[loaded.index] if pictures else None
                    tiles, evidence = self._tiles(loaded, picture)
                except DatasetError as error:
                    yield dataclasses.replace(loaded, error=str(error)), None, {}
                    continue
                yield loaded, tiles, evidence

    def _tiles(self, loaded: Loaded, picture: Image.Image | None) -> tuple[Tiling, Evidence]:
        """Return the tiles of an image with their evidence; a batch of them is held at once."""
        sample, setup, spec = loaded.sample, self.setup, self.engine.spec
        tiles = tiling(loaded.size, setup.roi, setup.tile, setup.overlap, sample.key)
        image = picture or decode(sample.image, name=sample.key, orient=True)
        pieces = (
            dataclasses.replace(
                loaded,
                sample=dataclasses.replace(sample, key=f"{sample.key}#{number}"),
                inputs={spec: preprocess(image.crop(box), spec, name=sample.key)},
            )
            for number, box in enumerate(tiles.boxes)
        )
        found: list[Evidence] = []
        while batch := list(islice(pieces, self.engine.batch_size)):
            found.append(self.engine.observe(batch))
        return tiles, found[0] if len(found) == 1 else _joined(found)

    def _predicted(self, loaded: Loaded, tiles: Tiling | None, evidence: Evidence) -> Prediction:
        """Return the prediction of one image: its score is that of its most anomalous tile."""
        path, notes = loaded.sample.image, loaded.notes
        if path == Path():
            path = Path(loaded.sample.key)
        if tiles is None:
            reason = (loaded.error or "").removeprefix(f"{loaded.sample.key}: ")
            return Prediction(path, sha256=loaded.sha256, notes=notes, error=reason)
        extremes = [(float(one.min()), float(one.max())) for one in self.engine.maps(evidence)]
        score = float(self.engine.scores(evidence, extremes).max())
        if not math.isfinite(score):
            reason = f"its score is {score}; the method gave no finite number"
            return Prediction(path, loaded.size, loaded.sha256, notes=notes, error=reason)
        lows, highs = zip(*extremes, strict=True)
        return Prediction(path, loaded.size, loaded.sha256, score, (min(lows), max(highs)), tiles, notes)

    def map_of(self, prediction: Prediction, evidence: Evidence) -> NDArray[np.float32]:
        """Return the map (H, W) of an image's region in pixels of the image: bilinear, tiles blended.

        Raises:
            UsageError: for an image that could not be read.
        """
        if prediction.tiles is None:
            raise UsageError(f"{terminal(prediction.path)}: has no map, because {prediction.error}")
        sides = [(bottom - top, right - left) for left, top, right, bottom in prediction.tiles.boxes]
        maps = zip(self.engine.maps(evidence), sides, strict=True)
        return prediction.tiles.blend(resized(one, side) for one, side in maps)

    @property
    def rule(self) -> str:
        """How an image comes by its score, in words."""
        what = "the region" if self.setup.roi else "the image"
        if self.engine.relates:
            return f"of {what} by comparison with all others of this call"
        if self.setup.tile:
            return f"inductive, each tile of {what} by itself; the maximum over tiles"
        return f"inductive, from {what} alone"

    def identity(self) -> dict[str, Any]:
        """Return everything a score depends on, as JSON values; weights and checkpoint by their digests."""
        setup = self.setup
        return self.engine.identity() | {
            "tile": setup.tile,
            "overlap": setup.overlap if setup.tile else None,
            "roi": list(setup.roi) if setup.roi else None,
        }

    def about(self) -> dict[str, Any]:
        """Return the identity and the environment, for files that hold scores."""
        return self.identity() | {"rule": self.rule} | self.engine.surroundings()


def _clip_engine(setup: Setup) -> Engine:
    from .engine import ClipEngine  # torch is loaded for it alone

    return ClipEngine(setup)


def _name(image: object, number: int) -> str:
    return terminal(str(image)) if isinstance(image, str | Path) else f"image {number}"


def _opened(image: Picture, name: str, order: str) -> Image.Image:
    """Return a picture in memory, whichever way it was given."""
    if isinstance(image, str | Path):
        return decode(Path(image), name=name, orient=True)
    return picture_of(image, order, name=name)


def _joined(parts: Iterable[Evidence]) -> Evidence:
    """Return evidence of several batches as one, in arrays."""
    held = list(parts)
    return {name: np.concatenate([np.asarray(part[name]) for part in held]) for name in held[0]}


def _check(setup: Setup) -> None:
    counts = {"--tile": setup.tile, "--batch-size": setup.batch_size, "--workers": setup.workers}
    for name, count in counts.items():
        if count is not None and not (isinstance(count, Integral) and count >= 1):
            raise UsageError(f"{name} {count!r}: give a whole number of 1 or more")
    if not (_is_number(setup.overlap) and 0 <= setup.overlap <= MAX_OVERLAP):
        raise UsageError(
            f"--overlap {setup.overlap!r}: give the part of a tile that neighbours share, 0 to {MAX_OVERLAP}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)

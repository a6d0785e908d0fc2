"""An exported file judges images in onnxruntime; nothing here needs torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError, WeightsError
from ..files import sha256_of
from ..images import Loaded
from ..inputs import Preprocess
from ..text import terminal
from ..views import Evidence, Predictor, Seen, Setup, Threshold, check_fits

KEY = "zsadbench"
"""The entry of a file's metadata that says what it holds."""
SCHEMA = 1
BATCH = 8


class ModelEngine:
    """An exported file in onnxruntime, on the CPU; threads may share it.

    Raises:
        UsageError: without onnxruntime.
        WeightsError: for a file that cannot be read or was not written by ``zsad export``.
    """

    relates = False

    def __init__(self, path: Path, batch_size: int | None = None) -> None:
        self.path, self.batch_size = path, batch_size or BATCH
        self.session, self.about = _opened(path)
        try:
            self.identity_of: Mapping[str, Any] = self.about["identity"]
            self.id, self.words = str(self.identity_of["method"]), str(self.identity_of["words"])
            self.tower = (str(self.about["tower"][0]), str(self.about["tower"][1]))
            self.spec = _preprocess(self.about["preprocess"])
            self.bytes_in = self.about["input"] == "uint8"
            calibrated, limit = self.about.get("calibrated"), self.about.get("threshold")
            self.threshold = Threshold(**calibrated) if calibrated else None
            self.limit = None if limit is None else float(limit)
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(path, repr(error)) from None

    @property
    def threads(self) -> int | None:
        """How many threads one call uses, as ``OMP_NUM_THREADS`` says; None for onnxruntime's own choice."""
        return self.session.get_session_options().intra_op_num_threads or None

    def call(self) -> AbstractContextManager[None]:
        """Surround a call: images are judged each for itself, so there is nothing to do."""
        return nullcontext()

    def observe(self, loaded: Sequence[Loaded]) -> Evidence:
        """Return ``score`` (N,) and ``map`` (N, h, w) of images, float32."""
        pixels = np.stack([item.inputs[self.spec].tiles[0] for item in loaded]).transpose(0, 3, 1, 2)
        inputs = np.ascontiguousarray(pixels if self.bytes_in else normalised(pixels, self.spec))
        scores, maps = self.session.run(["score", "map"], {"images": inputs})
        return {"score": scores, "map": maps}

    def relate(self, seen: Iterator[Seen], images: int, step: Callable[[str, float], None]) -> Iterator[Seen]:
        """Return ``seen``: no exported method relates images."""
        return seen

    def maps(self, evidence: Evidence) -> Iterator[NDArray[np.float32]]:
        """Yield the map (h, w) of every row, as the file gives it."""
        yield from evidence["map"]

    def scores(self, evidence: Evidence, extremes: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
        """Return the scores (N,) of the rows, as the file gives them."""
        return np.asarray(evidence["score"], np.float64)

    def identity(self) -> dict[str, Any]:
        """Return what a score depends on: that of the method, with the precision of the file."""
        return dict(self.identity_of)

    def names(self) -> dict[str, str]:
        """Return nothing: a file is named by who runs it."""
        return {}

    def surroundings(self) -> dict[str, Any]:
        """Return the weights' tag and the file with its digest."""
        return {"weights": self.about.get("weights"), "model": self.path.name, "model_sha256": self._digest}

    @cached_property
    def _digest(self) -> str:
        return sha256_of(self.path)

    def remarks(self) -> list[str]:
        """Return nothing: all was chosen when the file was written."""
        return []


def normalised(pixels: NDArray[np.uint8], spec: Preprocess) -> NDArray[np.float32]:
    """Return ``pixels`` (N, 3, S, S) as the loader's batches are: /255, - mean, / std in float32."""
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in spec.normalisation)
    return np.asarray((pixels.astype(np.float32) / np.float32(255) - mean) / std, np.float32)


def load_model(path: Path, setup: Setup) -> Predictor:
    """Return what predicts with the file ``path``; of ``setup`` what it says of parts, batches and threads.

    Where the file holds a threshold of ``zsad calibrate``, images are seen in the parts it was found with.

    Raises:
        ZsadError: as ``ModelEngine`` does.
        UsageError: for other parts of images than its threshold was found with.
    """
    engine = ModelEngine(path, setup.batch_size)
    found = engine.threshold
    if found and setup.tile is None and setup.roi is None:
        parts = {name: found.identity.get(name) for name in ("tile", "overlap", "roi")}
        parts["roi"] = tuple(parts["roi"]) if parts["roi"] else None
        setup = replace(setup, **{name: value for name, value in parts.items() if value is not None})
    predictor = Predictor(setup, engine, engine.limit)
    if found:
        check_fits(found, predictor, path)
    return predictor


def threshold_of(predictor: Predictor) -> Threshold | None:
    """Return the threshold of ``zsad calibrate`` that an exported file holds; None where there is none."""
    return predictor.engine.threshold if isinstance(predictor.engine, ModelEngine) else None


def _opened(path: Path) -> tuple[Any, dict[str, Any]]:
    try:
        import onnxruntime
    except ImportError:
        raise UsageError(
            f"{terminal(path)}: onnxruntime runs it and is not installed; pip install 'zsadbench[export]'"
        ) from None
    if not path.is_file():
        raise WeightsError(f"{terminal(path)}: no such file; write one with zsad export")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = _threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        said = session.get_modelmeta().custom_metadata_map.get(KEY)
        about = json.loads(said) if said else None
    except Exception as error:  # onnxruntime raises types of its own
        raise _damaged(path, " ".join(str(error).split())[:120]) from None
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        raise WeightsError(f"{terminal(path)}: was not written by zsad export of this version; export again")
    return session, about


def _threads() -> int:
    """Return the threads of one call, as torch takes them from the environment; 0 for every core."""
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(said) if said.isdecimal() else 0


def _preprocess(said: Mapping[str, Any]) -> Preprocess:
    colours = {name: tuple(map(float, said[name])) for name in ("mean", "std")}
    return Preprocess(**{**said, **colours})


def _damaged(path: Path, reason: str) -> WeightsError:
    return WeightsError(f"{terminal(path)}: no model that can be run ({reason}); export it again")

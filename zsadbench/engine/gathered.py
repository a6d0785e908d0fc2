"""Evidence as it comes in: from the device, batch by batch, and related where a method asks for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MethodError, is_out_of_memory
from ..images import Lanes, Loaded
from ..inputs import Batch
from ..method import Evidence, Method, Relating, Tell, blamed
from ..records import Slice, shapes_of, undefined

Rows = dict[str, Tensor]
"""Evidence of some images, and their ``frame`` (B, 2)."""
Keep = Callable[[Evidence, Batch, str, bool], Rows]
"""Takes what ``observe`` returns for a batch, the method's name, and whether half precision may stay."""


def at_home(evidence: Evidence, batch: Batch, name: str, half: bool) -> Rows:
    """Return evidence on the CPU with the frame added, checked for rows and finite numbers.

    It is float32, but what is to be related may stay in half precision: it is not kept.

    Raises:
        MethodError: for what is no evidence of the batch.
    """
    rows = checked(evidence, batch.keys, f"{name}: observe()", half=half)
    return {**rows, "frame": batch.frame.to("cpu", torch.float32)}


class Sent:
    """Evidence of a batch on its way home, with one word on whether all of it is finite."""

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self._rows: list[Rows] = []
        self._of: list[tuple[Sequence[str], Tensor, str]] = []
        self._landing: Callable[[], list[Tensor]] = list

    def take(self, evidence: Evidence, batch: Batch, name: str, half: bool) -> Rows:
        """Take evidence along where it lies; what the method writes to it later does not matter.

        Raises:
            MethodError: for what is no evidence of the batch.
        """
        rows = shaped(evidence, batch.keys, f"{name}: observe()", half=half)
        self._rows.append({key: value.clone() for key, value in rows.items()})
        self._of.append((batch.keys, batch.frame, name))
        return self._rows[-1]

    def leave(self) -> None:
        """Start on the way, once all evidence was taken."""
        values = [value for rows in self._rows for value in rows.values()]
        words = [value.isfinite().all().to(self.lanes.device) for value in values]
        finite = [torch.stack(words).all()] if words else []
        self._landing = self.lanes.download([*values, *finite])

    def landed(self) -> list[Rows]:
        """Return what was taken, as `at_home` does; wait for it.

        Raises:
            MethodError: for numbers that are not finite.
        """
        home = iter(self._landing())
        found = [{key: next(home) for key in rows} for rows in self._rows]
        sound = all(bool(word) for word in home)
        for rows, (keys, frame, name) in zip(found, self._of, strict=True):
            if not sound:
                require_finite(rows, keys, f"{name}: observe()")
            rows["frame"] = frame.to("cpu", torch.float32)
        return found


Group = tuple[range, list[tuple[int, int]]]
"""A run of samples, and the (task, slice) pairs that need them."""


@dataclass
class Flight:
    """A batch whose evidence is on its way; ``last`` of its group, or not."""

    group: Group
    loaded: list[Loaded]
    landed: Callable[[], list[Rows]]
    last: bool


def joined(parts: Sequence[Rows], name: str) -> Rows:
    """Return the evidence of several batches as one.

    Raises:
        MethodError: for evidence of other names or shapes than that of the images before.
    """
    for part in parts[1:]:
        require_alike(parts[0], part, name)
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


class Gathered:
    """Evidence of the images of one slice, at most ``images`` of them, of the method called ``name``.

    Rows go into tensors that are made once: joining parts would hold all of them twice.
    """

    def __init__(self, images: int, name: str) -> None:
        self.images, self.name = images, name
        self._part = Slice({}, [], [])

    def add(self, loaded: Sequence[Loaded], rows: Evidence) -> None:
        """Take images and the evidence (B, ...) of those of them that could be read.

        Raises:
            MethodError: for evidence of other names or shapes than that of the images before.
        """
        part, start = self._part, len(self._part.keys)
        for item in loaded:
            if item.error is not None:
                part.failed[item.sample.key] = item.error
                continue
            part.keys.append(item.sample.key)
            part.hashes.append(item.sha256)
        if rows and not part.evidence:
            part.evidence |= {
                name: torch.empty(self.images, *value.shape[1:], dtype=value.dtype)
                for name, value in rows.items()
            }
        if rows:
            require_alike(part.evidence, rows, self.name)
        for name, value in rows.items():
            part.evidence[name][start : len(part.keys)] = value

    def slice(self) -> Slice:
        """Return what came in."""
        part = self._part
        rows = {name: value[: len(part.keys)] for name, value in part.evidence.items()}
        return Slice(rows, part.keys, part.hashes, part.failed)


def require_alike(some: Evidence, other: Evidence, name: str) -> None:
    """Refuse evidence of other names or shapes than that of the images before.

    Raises:
        MethodError: naming the method.
    """
    kept, shapes = shapes_of(some), shapes_of(other)
    if kept != shapes:
        raise MethodError(f"{name}: observe() returns {kept} for some images and {shapes} for others")


def too_few(method: Method, images: int) -> str:
    """Return why ``method`` cannot judge a category of so many images; empty where it can."""
    if not isinstance(method, Relating) or images >= method.fewest:
        return ""
    return f"compares the images of a category with each other and needs at least {method.fewest}"


def related(part: Slice, method: Relating, name: str, device: torch.device, tell: Tell) -> Slice:
    """Return the evidence to keep of a whole category, from that which ``observe`` gave of it.

    Raises:
        MethodError: for evidence that cannot be kept, or where memory runs out.
    """
    try:
        with torch.no_grad(), blamed(method, "relate"):
            found = method.relate(part.evidence, device, tell)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MethodError(
            f"{name}: out of memory on {device} where it relates {len(part.keys)} images; choose a smaller "
            "--set size=... or another --device"
        ) from error
    rows = checked(found, part.keys, f"{name}: relate()")
    return Slice({**rows, "frame": part.evidence["frame"]}, part.keys, part.hashes, part.failed)


def checked(evidence: Evidence, keys: Sequence[str], said: str, *, half: bool = False) -> dict[str, Tensor]:
    """Return evidence on the CPU in float32, with a row of finite numbers for each of ``keys``.

    With ``half`` numbers of half precision stay as they are.

    Raises:
        MethodError: for anything else; ``said`` is the method and the function that returned it.
    """
    rows = {key: value.to("cpu") for key, value in shaped(evidence, keys, said, half=half).items()}
    require_finite(rows, keys, said)
    return rows


def require_finite(rows: Evidence, keys: Sequence[str], said: str) -> None:
    """Refuse evidence with a number that is not finite, of the images ``keys``.

    Raises:
        MethodError: naming the method that ``said`` begins with, and the image.
    """
    for key, value in rows.items():
        if bad := undefined(value, keys):
            raise MethodError(
                f"{said.partition(': ')[0]}: evidence '{key}' of {bad} is not finite; with half precision "
                "try --dtype fp32"
            )


def shaped(evidence: Evidence, keys: Sequence[str], said: str, *, half: bool = False) -> dict[str, Tensor]:
    """Return evidence where it lies, as ``checked`` does but for whether its numbers are finite.

    Raises:
        MethodError: for anything but a tensor with a row for each of ``keys``.
    """
    name = said.partition(": ")[0]
    if not isinstance(evidence, Mapping):
        raise MethodError(f"{said} returns {type(evidence).__name__}, not a dict of tensors")
    rows = {}
    for key, value in evidence.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or value.is_complex():
            raise MethodError(f"{name}: evidence {key!r:.40} is {_kind(value)}, not a tensor of real numbers")
        if not value.ndim or len(value) != len(keys):
            raise MethodError(
                f"{name}: evidence '{key}' has shape {tuple(value.shape)} for {len(keys)} images; its "
                "first axis is the image"
            )
        kept = half and value.dtype in (torch.float16, torch.bfloat16)
        rows[key] = value.detach().to(value.dtype if kept else torch.float32)
    return rows


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__

"""Evidence of a slice as it comes in, batch by batch, and related where a method asks for its category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import MethodError, is_out_of_memory
from ..images import Loaded
from ..method import Evidence, Method, Relating, Tell, blamed
from ..records import Slice, shapes_of, undefined


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
        rows[key] = value.detach().to("cpu", value.dtype if kept else torch.float32)
        if bad := undefined(rows[key], keys):
            raise MethodError(
                f"{name}: evidence '{key}' of {bad} is not finite; with half precision try --dtype fp32"
            )
    return rows


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__

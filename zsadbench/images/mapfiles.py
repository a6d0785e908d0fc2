"""Maps and scores of other code: found by the sample's key, maps judged by their headers, read as data."""

from __future__ import annotations

import csv
import math
import struct
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RecordError
from ..files import stand_in
from ..metrics import as_real
from ..samples import Sample, nfc
from .decoding import MAX_PIXELS, probe

SUFFIXES = (".npy", ".npz", ".tiff", ".tif", ".png")

SQUARE = 1.02
"""Sides whose ratio is less are as good as equal, so that they tell no orientation."""

Shape = tuple[int, int]


def find_maps(folder: Path, samples: Sequence[Sample]) -> dict[str, Path]:
    """Return the file of each sample's map, by the sample's key.

    Sample ``a/b.png`` has ``a/b.png.npy`` or ``a/b.npy``, or another of the suffixes.

    Raises:
        RecordError: listing samples without a map, or naming two that would share one.
    """
    if not folder.is_dir():
        raise RecordError(f"{folder}: no such folder of maps; check the path given with --maps")
    found: dict[str, Path] = {}
    owners: dict[Path, str] = {}
    missing: list[str] = []
    for sample in samples:
        path = _file_of(folder, sample)
        if path is None:
            missing.append(sample.key)
            continue
        first = owners.setdefault(path, sample.key)
        if first != sample.key:
            raise RecordError(
                f"{path}: would be the map of {first} and of {sample.key}; name maps after the whole key, as "
                f"in {sample.key}{path.suffix}"
            )
        found[sample.key] = path
    if missing:
        example = Path(missing[0]).with_suffix(".npy")
        raise RecordError(
            f"{folder}: no map for {len(missing)} samples: {some(missing)}; maps are found by the sample's "
            f"key (its path below the dataset), as in {example}"
        )
    return found


def some(keys: Sequence[str]) -> str:
    """Return the first keys, in words."""
    return ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")


def _file_of(folder: Path, sample: Sample) -> Path | None:
    whole = folder / f"{sample.key}"
    candidates = [base for s in SUFFIXES for base in (Path(f"{whole}{s}"), whole.with_suffix(s))]
    return next((path for path in candidates if path.is_file() and not path.samefile(sample.image)), None)


def check_maps(files: Mapping[str, Path], samples: Iterable[Sample]) -> None:
    """Refuse maps that lie on their side, or whose headers are no map's; no map is read.

    A map may have another size than its image, but not the height where the image has its width.

    Raises:
        RecordError: naming the file.
    """
    for sample in samples:
        shape, image = shape_of(files[sample.key]), probe(sample.image, name=sample.key).size
        if _transposed(shape, image):
            raise RecordError(
                f"{files[sample.key]}: {shape[0]} x {shape[1]} (rows x columns) lies on its side: the image "
                f"{sample.key} is {image[0]} x {image[1]}; transpose the maps, an array is (height, width)"
            )


def _transposed(shape: Shape, image: Shape) -> bool:
    if image[0] == image[1]:
        return False
    ratio, wanted = shape[0] / shape[1], image[0] / image[1]
    if shape == image[::-1]:
        return True
    return min(max(ratio, 1 / ratio), max(wanted, 1 / wanted)) > SQUARE and (ratio > 1) != (wanted > 1)


def shape_of(path: Path) -> Shape:
    """Return height and width of a map, from the header of its file.

    Raises:
        RecordError: if it is no file of one map, or claims more than it holds or than an image may have.
    """
    refuse_stand_in(path)
    try:
        with path.open("rb") as stream:
            return _header(path, stream)
    except RecordError:
        raise
    except Exception as error:  # zipfile, numpy and PIL each raise their own
        raise _unreadable(path, str(error)) from None


def read_map(path: Path) -> NDArray[np.floating[Any]]:
    """Return the map in a .npy, .npz, .tiff or .png file as reals (H, W).

    They are float64 where float32 cannot hold them.

    Raises:
        RecordError: if the file is damaged, holds no single map, or numbers that are not finite.
    """
    shape = shape_of(path)
    try:
        values = _read(path)
    except RecordError:
        raise
    except Exception as error:
        raise _unreadable(path, str(error)) from None
    values = values.reshape(_flat(path, values.shape, f"{values.dtype} "))
    if values.shape != shape or values.dtype.kind not in "fiub":
        raise _no_map(path, f"{values.dtype} {values.shape}")
    values = as_real(values)
    if not np.isfinite(values).all():
        raise RecordError(f"{path}: the map holds numbers that are not finite; write it again")
    return values


def _header(path: Path, stream: IO[bytes]) -> Shape:
    size = path.stat().st_size
    if size == 0:
        raise RecordError(f"{path}: the file is empty; write it again")
    if path.suffix == ".npy":
        return _array_shape(path, stream, size)
    if path.suffix == ".npz":
        with zipfile.ZipFile(stream) as archive:
            item = _member(path, archive)
            with archive.open(item) as part:
                return _array_shape(path, part, item.file_size)
    if stream.read(8) == b"\x89PNG\r\n\x1a\n":
        width, height = struct.unpack(">8x2I", stream.read(16))
        return _flat(path, (height, width))
    return _flat(path, _tiff_shape(stream))


def _array_shape(path: Path, stream: IO[bytes], size: int) -> Shape:
    """Judge the header of a numpy file of ``size`` bytes."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, _, dtype = readers[np.lib.format.read_magic(stream)](stream)
    if dtype.kind not in "fiub":
        raise _no_map(path, f"{'Python objects' if dtype.hasobject else dtype} {shape}")
    flat, claimed = _flat(path, shape, f"{dtype} "), math.prod(shape) * dtype.itemsize
    if claimed > size - stream.tell():
        raise RecordError(f"{path}: claims {claimed:,} bytes of {shape}, but holds {size:,}; write it again")
    return flat


def _flat(path: Path, shape: Sequence[int], kind: str = "") -> Shape:
    """Return the shape without axes of length 1, unless it is no map's; ``kind`` is for the message."""
    sides = [side for side in shape if side != 1]
    if len(sides) != 2 or 0 in sides:
        raise _no_map(path, f"{kind}{tuple(shape)}")
    if math.prod(sides) > MAX_PIXELS:
        raise RecordError(
            f"{path}: {sides[0]} x {sides[1]} is more than {MAX_PIXELS:,} pixels; shrink the map"
        )
    return sides[0], sides[1]


def _member(path: Path, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    names = {item.filename.removesuffix(".npy"): item for item in archive.infolist()}
    if len(names) != 1 and "map" not in names:
        raise RecordError(f"{path}: it holds {some([*names]) or 'nothing'}; name the array 'map'")
    return names["map"] if "map" in names else next(iter(names.values()))


def _tiff_shape(stream: IO[bytes]) -> Shape:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    stream.seek(0)
    start = stream.read(8)
    if start[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        raise ValueError("neither PNG nor TIFF")
    directory = ImageFileDirectory_v2(start + (stream.read(8) if 43 in start[2:4] else b""))
    stream.seek(directory.next)
    directory.load(stream)
    return int(directory[257]), int(directory[256])


def _read(path: Path) -> NDArray[Any]:
    if path.suffix == ".npy":
        with path.open("rb") as stream:
            return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive, archive.open(_member(path, archive)) as part:
            return np.asarray(np.lib.format.read_array(part, allow_pickle=False))
    import cv2

    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("no whole PNG or TIFF image")
    return np.asarray(pixels)


def read_scores(path: Path, keys: Collection[str]) -> dict[str, float]:
    """Read the image score of every key from a csv with the columns ``key`` and ``score``, in any case.

    Keys are those of the samples; they may be written with backslashes.

    Raises:
        RecordError: naming the file and line that is wrong, or the keys without a score.
    """
    scores: dict[str, float] = {}
    refuse_stand_in(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            names = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
            if not {"key", "score"} <= names.keys():
                raise RecordError(f"{path}: needs the columns 'key' and 'score'; has {reader.fieldnames}")
            for row in reader:
                where = f"{path}: line {reader.line_num}"
                key, score = row[names["key"]] or "", _number(row[names["score"]], where)
                key = nfc(key.strip().replace("\\", "/").removeprefix("./"))
                if scores.setdefault(key, score) != score:
                    raise RecordError(f"{where}: '{key}' has another score before; keep one")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecordError(
            f"{path}: cannot be read ({error}); give a csv with the columns key,score"
        ) from None
    if missing := [key for key in keys if key not in scores]:
        raise RecordError(
            f"{path}: no score for {len(missing)} samples: {some(missing)}; add rows with their keys"
        )
    return scores


def refuse_stand_in(path: Path) -> None:
    """Refuse a file that another one stands for, or was fetched in place of."""
    with suppress(OSError), path.open("rb") as stream:
        if other := stand_in(stream.read(512)):
            raise RecordError(f"{path}: {other}")


def _number(text: str | None, where: str) -> float:
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RecordError(f"{where}: score {text!r} is no finite number; correct it")
    return number


def _no_map(path: Path, found: str) -> RecordError:
    return RecordError(f"{path}: an anomaly map is one array of real numbers (H, W); this is {found}")


def _unreadable(path: Path, reason: str) -> RecordError:
    words = " ".join(reason.split())[:120]
    return RecordError(f"{path}: cannot be read as an anomaly map ({words or 'damaged'}); write it again")

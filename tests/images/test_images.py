"""Decode, preprocess, prefetch: the arithmetic of the references, in order, in bounded memory."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from zsadbench.bench.loader import bench_loader, bench_memory
from zsadbench.errors import DatasetError, UsageError
from zsadbench.images import loader as images
from zsadbench.images.batches import to_batch_images
from zsadbench.images.decoding import probe
from zsadbench.images.loader import preprocess, stream
from zsadbench.inputs import OPENAI_MEAN, OPENAI_STD, Preprocess
from zsadbench.samples import Sample

GOLDENS = Path(__file__).parents[1] / "goldens"
TOLERANCE = 2e-5
SQUASH = Preprocess(size=28)


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width, bands) if bands > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode)


def tensor(image: Image.Image, spec: Preprocess) -> torch.Tensor:
    return to_batch_images([preprocess(image, spec)], spec)[0]


def write(folder: Path, count: int, width: int = 40, height: int = 30) -> list[Sample]:
    samples = []
    for i in range(count):
        path = folder / f"{i:03}.png"
        noise(width, height, seed=i).save(path)
        samples.append(Sample(path.name, "thing", False, path, None))
    return samples


@pytest.mark.parametrize("direction", ["up", "down"])
def test_preprocess_equals_anomalyclip(direction: str) -> None:
    golden = np.load(GOLDENS / f"anomalyclip/anomalyclip_preprocess_{direction}.npz")
    meta = json.loads(str(golden["meta"]))
    spec = Preprocess(meta["size"], rgb="after", mean=tuple(meta["mean"]), std=tuple(meta["std"]))
    colour = Image.fromarray(golden["image"])
    grey = Image.fromarray(np.ascontiguousarray(golden["image"][..., 0]))
    for image, key in ((colour, "tensor"), (grey, "tensor_gray")):
        np.testing.assert_allclose(tensor(image, spec)[0].numpy(), golden[key], rtol=0, atol=1e-6)


def test_preprocess_equals_aa_clip() -> None:
    golden = np.load(GOLDENS / "aa-clip/preprocess_s0.npz")
    spec = Preprocess(json.loads(str(golden["meta"]))["img_size"])
    got = tensor(Image.fromarray(golden["image_uint8"]), spec)[0].numpy()
    np.testing.assert_allclose(got, golden["image"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("way", [{}, {"interpolation": "bilinear"}, {"resize": "shortest", "tiles": "ends"}])
def test_pixels_that_cannot_differ_are_prepared_once(tmp_path: Path, mode: str, way: dict[str, str]) -> None:
    before, after = (Preprocess(28, rgb=rgb, **way) for rgb in ("before", "after"))  # type: ignore[arg-type]
    image = noise(75, 52, mode)
    image.save(tmp_path / "one.png")
    (one,) = stream([Sample("one.png", "thing", False, tmp_path / "one.png", None)], [after, before])
    assert one.inputs[before] is one.inputs[after]
    for spec in (before, after):
        np.testing.assert_array_equal(one.inputs[before].tiles, preprocess(image, spec).tiles)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_pixels_that_differ_are_prepared_twice(tmp_path: Path, mode: str) -> None:
    before, after = Preprocess(28), Preprocess(28, rgb="after")
    image = noise(75, 52, "RGBA") if mode == "RGBA" else noise(75, 52).quantize(16)
    image.save(tmp_path / "one.png")
    (one,) = stream([Sample("one.png", "thing", False, tmp_path / "one.png", None)], [after, before])
    assert not np.array_equal(one.inputs[before].tiles, one.inputs[after].tiles)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "CMYK", "P", "1"])
@pytest.mark.parametrize("rgb", ["before", "after"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("resize", "size"), [("squash", 28), ("shortest", 27), ("shortest", 75)])
def test_preprocess_is_bit_equal_with_torchvision(
    mode: str, rgb: str, interpolation: str, resize: str, size: int
) -> None:
    image = noise(53, 37).convert(mode) if mode in ("P", "1") else noise(53, 37, mode)
    spec = Preprocess(size, resize, interpolation, rgb)  # type: ignore[arg-type]
    how = getattr(transforms.InterpolationMode, interpolation.upper())
    shape = (size, size) if resize == "squash" else size
    steps = [transforms.Resize(shape, how), lambda im: im.convert("RGB")]
    if rgb == "before":
        steps.reverse()
    steps += [transforms.ToTensor(), transforms.Normalize(OPENAI_MEAN, OPENAI_STD)]
    assert torch.equal(tensor(image, spec)[0], transforms.Compose(steps)(image))


def test_other_dtypes_are_rounded_from_float32() -> None:
    prepared = [preprocess(noise(40, 40), SQUASH)]
    full = to_batch_images(prepared, SQUASH)
    assert full.is_contiguous()
    assert torch.equal(to_batch_images(prepared, SQUASH, dtype=torch.bfloat16), full.to(torch.bfloat16))


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60), (40, 40), (79, 40), (80, 40)])
def test_tiles_lie_flush_with_both_ends(width: int, height: int) -> None:
    spec = Preprocess(20, "shortest", "bilinear", tiles="ends")
    image = noise(width, height)
    prepared = preprocess(image, spec)
    frame_h, frame_w = prepared.frame.tolist()
    assert (frame_w, frame_h) == (int(20 * width / 40), int(20 * height / 40))
    assert prepared.boxes.tolist() == [[0, 0, 20, 20], [frame_w - 20, frame_h - 20, frame_w, frame_h]]
    whole = np.asarray(image.resize((frame_w, frame_h), Image.Resampling.BILINEAR))
    for tile, (left, top, right, bottom) in zip(prepared.tiles, prepared.boxes.tolist(), strict=True):
        np.testing.assert_array_equal(tile, whole[top:bottom, left:right])


def test_tiles_refuse_a_gap() -> None:
    spec = Preprocess(20, "shortest", tiles="ends")
    with pytest.raises(DatasetError, match=r"long\.png: 84 x 40 pixels are longer than 2:1"):
        preprocess(noise(84, 40), spec, name="long.png")
    assert preprocess(noise(82, 40), Preprocess(20, tiles="ends")).boxes.tolist() == [[0, 0, 20, 20]] * 2


def test_the_scan_finds_shapes_a_preprocessing_refuses(tmp_path: Path) -> None:
    noise(90, 40).save(tmp_path / "long.png")
    samples = [Sample("long.png", "thing", False, tmp_path / "long.png", None)]
    tiled = Preprocess(20, "shortest", tiles="ends")
    assert images.scan(samples, [SQUASH]) == []
    (problem,) = images.scan(samples, [SQUASH, tiled])
    assert (problem.severity, problem.key) == ("error", "long.png") and "longer than 2:1" in problem.reason
    (loaded,) = stream(samples, [SQUASH, tiled])
    assert loaded.error == f"long.png: {problem.reason}; {problem.remedy}"


def test_a_thread_like_image_is_refused_before_the_resize() -> None:
    with pytest.raises(DatasetError, match="become 20720000 x 518"):
        preprocess(Image.new("L", (40_000, 1)), Preprocess(518, "shortest"))


def test_unequal_frames_are_no_batch() -> None:
    spec = Preprocess(20, "shortest")
    frames = [preprocess(noise(60, 40), spec), preprocess(noise(50, 40), spec)]
    with pytest.raises(UsageError, match="cannot be one batch"):
        to_batch_images(frames, spec)


def test_stream_keeps_the_order_and_equals_one_by_one(tmp_path: Path) -> None:
    samples = write(tmp_path, 12)
    specs = [SQUASH, Preprocess(20, "shortest", "bilinear", tiles="ends"), SQUASH]
    for index, loaded in enumerate(stream(samples, specs, workers=3, ahead=5)):
        assert (loaded.index, loaded.sample, loaded.error) == (index, samples[index], None)
        assert loaded.size == (30, 40)
        assert loaded.sha256 == hashlib.sha256(samples[index].image.read_bytes()).hexdigest()
        assert list(loaded.inputs) == specs[:2]
        for spec, prepared in loaded.inputs.items():
            alone = preprocess(images.decode(samples[index].image), spec)
            np.testing.assert_array_equal(prepared.tiles, alone.tiles)
    assert index == 11


def test_stream_reads_and_decodes_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("read", "decode", "preprocess"):
        original = getattr(images, name)

        def counted(
            *args: object, _name: str = name, _original: object = original, **kwargs: object
        ) -> object:
            calls.append(_name)
            return _original(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(images, name, counted)
    list(stream(write(tmp_path, 4), [SQUASH, Preprocess(20), SQUASH], workers=2))
    assert [calls.count(name) for name in ("read", "decode", "preprocess")] == [4, 4, 8]


def test_stream_reports_a_bad_file_and_goes_on(tmp_path: Path) -> None:
    samples = write(tmp_path, 4)
    samples[1].image.write_bytes(samples[1].image.read_bytes()[:200])
    samples[2].image.unlink()
    results = list(stream(samples, [SQUASH], workers=2))
    assert [r.error is None for r in results] == [True, False, False, True]
    assert results[1].error is not None and results[1].error.startswith("001.png: broken image")
    assert results[1].sha256 and not results[1].inputs and results[1].size == (0, 0)
    assert results[2].error == "002.png: no such file; restore the file or remove its entry"


def test_stream_holds_at_most_ahead_items(tmp_path: Path) -> None:
    sample = write(tmp_path, 1)[0]
    taken = 0

    def endless() -> Iterator[Sample]:
        nonlocal taken
        while True:
            taken += 1
            yield sample

    source = stream(endless(), [SQUASH], workers=2, ahead=5)
    for used in range(1, 20):
        next(source)
        assert taken == used + 5
    source.close()


def test_closing_the_stream_ends_its_threads(tmp_path: Path) -> None:
    def alive() -> int:
        return sum(t.name.startswith("zsad-decode") for t in threading.enumerate())

    source = stream(write(tmp_path, 20), [SQUASH], workers=3)
    next(source)
    assert alive() > 0
    source.close()
    assert alive() == 0

    for loaded in stream(write(tmp_path, 20), [SQUASH], workers=3):
        if loaded.index == 2:
            break
    del loaded
    gc.collect()
    deadline = time.monotonic() + 5
    while alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert alive() == 0


def test_stream_survives_what_pil_cannot_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(images, "preprocess", fail)
    (loaded,) = stream(write(tmp_path, 1), [SQUASH])
    assert loaded.error == "000.png: cannot be prepared (MemoryError: no room); convert it to PNG"


def test_memory_stays_flat_over_a_long_list() -> None:
    row = bench_memory(images=3000)
    assert row["failed"] == 0
    assert row["growth_mb"] < 16


def test_the_benchmark_measures_all_sides() -> None:
    (row,) = bench_loader(images=4, size=28, source=(64, 48), repeats=1, formats=["png"])
    loader, threads, processes = (
        float(row[f"{side}_per_second"]) for side in ("loader", "threads", "processes")
    )
    assert row["ratio"] == pytest.approx(loader / max(threads, processes))


def test_an_empty_list_streams_nothing() -> None:
    assert list(stream([], [SQUASH])) == []


def test_probe_reads_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(50, 30).save(path, exif=exif)
    info = probe(path)
    assert (info.width, info.height, info.size) == (50, 30, (30, 50))
    assert (info.mode, info.format, info.frames, info.exif_orientation) == ("RGB", "JPEG", 1, 6)


def test_pil_limit_is_left_as_it_was(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    list(stream(write(tmp_path, 6), [SQUASH], workers=2))
    assert before == Image.MAX_IMAGE_PIXELS


def test_scan_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys; from zsadbench.images import scan; scan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def listed(data: Path, pattern: str) -> list[Sample]:
    paths = sorted(data.glob(pattern))
    return [Sample(p.relative_to(data).as_posix(), "x", False, p, None) for p in paths if p.suffix != ".csv"]


def test_real_images_decode_and_equal_the_reference_transform(data: Path) -> None:
    samples = listed(data, "brainmri/*/*") + listed(data, "headct/head_ct/head_ct/18*")
    assert len(samples) == 253 + 10
    spec = Preprocess(28, rgb="after")
    reference = transforms.Compose(
        [
            transforms.Resize((28, 28), transforms.InterpolationMode.BICUBIC),
            lambda image: image.convert("RGB"),
            transforms.ToTensor(),
            transforms.Normalize(OPENAI_MEAN, OPENAI_STD),
        ]
    )
    for loaded in stream(samples, [spec]):
        assert loaded.error is None
        got = to_batch_images([loaded.inputs[spec]], spec)[0, 0]
        assert torch.equal(got, reference(Image.open(io.BytesIO(loaded.sample.image.read_bytes()))))


def test_real_oddities_are_seen_by_content(data: Path) -> None:
    infos = {s.key: probe(s.image) for s in listed(data, "brainmri/*/*")}
    misnamed = {k for k, info in infos.items() if info.format == "PNG" and not k.endswith(".png")}
    names = ["No15.jpg", "No17.jpg", "No18.jpg", "no 96.jpg", "no.jpg", "no 98.jpg"]
    assert misnamed == {f"brainmri/no/{name}" for name in names}
    assert infos["brainmri/no/no 98.jpg"].mode == "P"
    assert infos["brainmri/no/no.jpg"].mode == "RGBA"
    modes = [probe(s.image).mode for s in listed(data, "headct/head_ct/head_ct/*")]
    assert (modes.count("RGB"), modes.count("RGBA")) == (188, 12)

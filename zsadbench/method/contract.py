"""What every method keeps to, checked on a miniature CLIP in words anyone can act on.

A method that passes can be run in any batch size beside any other method, resumed, scored again from its
evidence at another size, and compared.  ``zsad methods check`` and the test suite both call ``check``.
"""

from __future__ import annotations

import dataclasses
import inspect
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..clip import Clip, load_clip
from ..errors import ZsadError
from ..inputs import Backbone
from .protocol import Evidence, Method
from .registry import Resolved
from .settings import override, parameters
from .trial import WORDINGS, Bench, Load, with_checkpoint

# Other batches take other matrix kernels: sums differ in their last bits, and a method that optimises on the
# image amplifies that.  A rule that is really different shows up at 1e-2 of the span and above.
TOLERANCE = 2e-3


@dataclass(frozen=True)
class Check:
    """One point of the contract, whether a method keeps it, and what was seen."""

    name: str
    passed: bool
    words: str


class Broken(Exception):
    """A point of the contract does not hold; the text says what was seen and what to do."""


def _load(backbone: Backbone, dtype: torch.dtype) -> Clip:
    return load_clip(backbone, dtype=dtype)


def check(resolved: Resolved, load: Load = _load) -> list[Check]:
    """Check a method against the contract; after a point without which nothing runs, the rest is left out.

    ``load`` gives the CLIP of a backbone with its image tower in a number type.
    A trained method without a checkpoint is given noise of the shapes that the function
    ``checkpoint_shapes(method, clip)`` of its module names.
    """
    points: Sequence[tuple[str, Callable[[Bench], str], bool]] = (
        ("parameters only", parameters_only, True),
        ("evidence", evidence_is_sound, True),
        ("evidence is lean", evidence_is_lean, False),
        ("input untouched", input_untouched, False),
        ("same again", same_again, False),
        ("any batch size", any_batch_size, False),
        ("any order", any_order, False),
        ("unknown category", unknown_category, False),
        ("maps", maps_at_any_size, False),
        ("map parameters", map_parameters_touch_maps_only, False),
        ("image scores", image_scores_are_sound, False),
        ("transductive or not", scores_stand_alone, False),
        ("half precision", half_precision, False),
    )
    found: list[Check] = []
    try:
        clip = load(resolved.method.backbone, torch.float32)
    except ZsadError as error:
        return [Check("backbone", False, str(error))]
    with with_checkpoint(resolved, clip) as ready:
        bench = Bench(ready, clip, load)
        for name, point, vital in points:
            found.append(_run(name, point, bench))
            if vital and not found[-1].passed:
                break
    return found


def _run(name: str, point: Callable[[Bench], str], bench: Bench) -> Check:
    file = inspect.getfile(type(bench.method))
    try:
        with torch.no_grad():
            return Check(name, True, point(bench))
    except Broken as error:
        return Check(name, False, f"{error}{_function(bench, _ABOUT.get(name, ''))}")
    except ZsadError as error:
        return Check(name, False, f"{error}{_line(error, file)}")
    except Exception as error:  # a user's method may raise anything, and the report must say where
        return Check(name, False, f"{type(error).__name__}: {error}{_line(error, file) or _deepest(error)}")


_ABOUT = {
    **dict.fromkeys(("evidence", "evidence is lean", "input untouched", "same again"), "observe"),
    **dict.fromkeys(("any batch size", "any order", "unknown category", "half precision"), "observe"),
    **dict.fromkeys(("maps", "map parameters"), "maps"),
    **dict.fromkeys(("image scores", "transductive or not"), "image_scores"),
}
"""The function that each point is about."""


def _function(bench: Bench, name: str) -> str:
    """Return where the method's function ``name`` begins: ``observe`` is its observer's."""
    owner = bench.observer if name == "observe" else bench.method
    code = getattr(getattr(type(owner), name, None), "__code__", None)
    return _place(code.co_filename, code.co_firstlineno) if code else ""


def _line(error: Exception, file: str) -> str:
    """Return the last line of ``file`` that an error went through."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return _place(file, lines[-1]) if lines else ""


def _deepest(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return _place(frames[-1].filename, frames[-1].lineno) if frames else ""


def _place(file: str, line: int | None) -> str:
    return f" ({Path(file).name}:{line})"


def parameters_only(bench: Bench) -> str:
    """Check that the method is a frozen dataclass whose fields a record can keep."""
    method: Any = bench.method
    settings = getattr(type(method), "__dataclass_params__", None)
    if settings is None or not settings.frozen:
        _fail("the method is no frozen dataclass; put @dataclass(frozen=True) above its class")
    if not isinstance(method, Method):
        _fail("the method lacks one of preprocess, backbone, prepare, maps, image_scores")
    return f"a frozen dataclass, {len(parameters(method))} fields"


def evidence_is_sound(bench: Bench) -> str:
    """Check names, types, rows and values of the evidence."""
    found = {name: value for name, value in bench.evidence.items() if name != "frame"}
    if not found:
        _fail("observe() returns no evidence")
    for name, value in found.items():
        if value.dtype != torch.float32:
            _fail(f"evidence '{name}' is {value.dtype}; return float32 (tensor.float())")
        if len(value) != bench.images:
            rows = f"{len(value)} rows for {bench.images} images"
            _fail(f"evidence '{name}' has {rows}; its first axis is the image")
        if not torch.isfinite(value).all():
            _fail(f"evidence '{name}' holds infinite or undefined numbers")
    shapes = ", ".join(f"{name} {tuple(value.shape[1:])}" for name, value in found.items())
    return f"float32, finite, one row per image: {shapes}"


def evidence_is_lean(bench: Bench) -> str:
    """Check that evidence stays on the patch grid, as lean as the card says: it is stored for every image."""
    images = bench.batch([0]).images
    patches = images.shape[1] * (images.shape[-1] // bench.clip.vision.patch) ** 2
    numbers = sum(value[0].numel() for name, value in bench.evidence.items() if name != "frame")
    words = f"{4 * numbers} bytes an image, {numbers / patches:.1f} numbers per patch"
    allowed = bench.resolved.card.evidence_per_patch
    if numbers > allowed * patches + 64:
        _fail(
            f"{words}, {allowed} allowed; keep evidence on the patch grid and leave up-sampling to maps(), "
            "or declare evidence_per_patch"
        )
    return words


def input_untouched(bench: Bench) -> str:
    """Check that neither the batch nor the shared walk is written to: other methods read them too."""
    batch = bench.batch(range(bench.images))
    images = batch.images.clone()
    runs = []
    for _ in range(2):
        observer = bench.method.prepare(bench.clip, bench.wordings)
        runs.append({name: value.clone() for name, value in observer.observe(batch).items()})
    bench.clip.vision.forget()
    if not torch.equal(images, batch.images):
        _fail("observe() writes into batch.images, which other methods read; work on a copy")
    _same(runs[0], runs[1], 0.0, "observing one batch twice", "do not write into what the trace returns")
    return "batch and shared walk are left as they were"


def same_again(bench: Bench) -> str:
    """Check that a new observer gives the same evidence bit for bit."""
    again = bench.observe(range(bench.images), bench.images)
    _same(
        bench.evidence, again, 0.0, "a second run", "draw random numbers from a generator with a fixed seed"
    )
    return "a new observer gives the same bits"


def any_batch_size(bench: Bench) -> str:
    """Check that images one by one and in pairs give what they give together."""
    worst = 0.0
    for size in (1, 2):
        parts = bench.observe(range(bench.images), size)
        hint = "compute every image for itself, without statistics over the batch"
        worst = max(worst, _same(bench.evidence, parts, TOLERANCE, f"a batch of {size}", hint))
    return f"batches of 1, 2 and {bench.images} agree to {worst:.0e} of the span"


def any_order(bench: Bench) -> str:
    """Check that the order of the images does not matter, unless the card says that it does."""
    if bench.resolved.card.order_dependent:
        return "not asked: the card says order_dependent, so each category runs whole and in order"
    order = [2, 0, *range(3, bench.images), 1]
    shuffled = bench.observe(order, 2)
    back = {name: value[torch.tensor(order).argsort()] for name, value in shuffled.items()}
    hint = "keep no state from image to image, or set order_dependent"
    worst = _same(bench.evidence, back, TOLERANCE, "another order", hint)
    return f"shuffled images agree to {worst:.0e} of the span"


def unknown_category(bench: Bench) -> str:
    """Check that a category that was not prepared is refused."""
    prepared, other = list(WORDINGS.items())
    observer = bench.method.prepare(bench.clip, dict([prepared]))
    batch = dataclasses.replace(bench.batch([0]), categories=[other[0]])
    try:
        observer.observe(batch)
    except ZsadError as error:
        return f"refused: {error}"
    except Exception as error:
        _fail(
            f"a category that was not prepared raises {type(error).__name__}; "
            "raise zsadbench.errors.MethodError"
        )
    finally:
        bench.clip.vision.forget()
    _fail(f"category '{other[0]}' was not prepared but is observed; raise zsadbench.errors.MethodError")


def maps_at_any_size(bench: Bench) -> str:
    """Check shape, type, values and independence of the maps at two sizes."""
    side = bench.method.preprocess.size
    for size in ((side, side), (side // 2 + 3, side + 7)):
        maps = bench.method.maps(bench.evidence, size)
        if tuple(maps.shape) != (bench.images, *size):
            _fail(f"maps() at {size} returns {tuple(maps.shape)}; it must be {(bench.images, *size)}")
        if maps.dtype != torch.float32 or not torch.isfinite(maps).all():
            _fail(f"maps() at {size} must return finite float32 numbers")
        if float((maps.amax((1, 2)) - maps.amin((1, 2))).min()) == 0:
            _fail("a map has one value everywhere, for an image that differs from place to place")
        alone = torch.cat([bench.method.maps(_rows(bench.evidence, i), size) for i in range(bench.images)])
        _same(
            {"map": maps}, {"map": alone}, TOLERANCE, "a map alone", "treat every image for itself in maps()"
        )
    return "finite float32, right shape at two sizes, each image for itself"


def map_parameters_touch_maps_only(bench: Bench) -> str:
    """Check that the card's ``map_parameters`` leave the evidence as it is."""
    names = bench.resolved.card.map_parameters
    for name in names:
        changed = override(bench.method, {name: _another(getattr(bench.method, name))})
        hint = f"take '{name}' from map_parameters: scoring again with another value would be wrong"
        _same(
            bench.evidence,
            bench.observe(range(bench.images), bench.images, changed),
            0.0,
            f"another {name}",
            hint,
        )
    return f"only maps() uses {', '.join(names)}" if names else "none declared"


def _another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return value / 2 or 0.5  # of a share too
    return value + 1 if isinstance(value, int) else value


def image_scores_are_sound(bench: Bench) -> str:
    """Check shape and values of the image scores of one category."""
    for method in (bench.method, bench.resolved.inductive):
        evidence, extrema = _one_category(bench)
        scores = method.image_scores(evidence, extrema)
        if tuple(scores.shape) != (len(extrema),):
            _fail(f"image_scores() returns {tuple(scores.shape)}; it must be one number per image")
        if not scores.is_floating_point() or not torch.isfinite(scores).all():
            _fail("image_scores() must return finite real numbers")
    return "one finite number per image"


def scores_stand_alone(bench: Bench) -> str:
    """Check that image scores use one image alone, unless the card says transductive."""
    if bench.resolved.relates and not bench.resolved.card.transductive:
        _fail("the method has relate(), so no map stands alone; declare transductive")
    evidence, extrema = _one_category(bench)
    rules = {"inductive": bench.resolved.inductive}
    if not bench.resolved.card.transductive:
        rules["reference"] = bench.method
    for rule, method in rules.items():
        together = method.image_scores(evidence, extrema)
        alone = torch.cat(
            [method.image_scores(_rows(evidence, i), extrema[i : i + 1]) for i in range(len(extrema))]
        )
        hint = "declare transductive and name in [inductive] the fields of a rule for one image"
        _same({"score": together}, {"score": alone}, TOLERANCE, f"the {rule} score of one image", hint)
    if bench.resolved.relates:
        return "maps use all images of a category; the inductive score uses the map of one image alone"
    if bench.resolved.card.transductive:
        return "transductive, as the card says; the inductive score uses one image alone"
    return "the score of an image uses that image alone"


def half_precision(bench: Bench) -> str:
    """Check that the method runs beside an image tower in bfloat16 and still returns float32."""
    found = bench.observe(range(bench.images), bench.images, dtype=torch.bfloat16)
    for name, value in found.items():
        if value.dtype != torch.float32 or not torch.isfinite(value).all():
            _fail(f"with --dtype bf16 evidence '{name}' is not finite float32; return tensor.float()")
    return "an image tower in bfloat16 gives finite float32"


def _one_category(bench: Bench) -> tuple[Evidence, Tensor]:
    """Return the evidence and the map extrema (N, 2) of the first category's images."""
    chosen = torch.tensor([name == bench.categories[0] for name in bench.categories])
    evidence = {name: value[chosen] for name, value in bench.evidence.items()}
    side = bench.method.preprocess.size
    maps = bench.method.maps(evidence, (side, side))
    return evidence, torch.stack([maps.amin((1, 2)), maps.amax((1, 2))], dim=1)


def _rows(evidence: Evidence, index: int) -> Evidence:
    return {name: value[index : index + 1] for name, value in evidence.items()}


def _same(a: Evidence, b: Evidence, tolerance: float, what: str, hint: str) -> float:
    """Return the largest difference relative to the span; above ``tolerance`` the point is broken."""
    if a.keys() != b.keys():
        _fail(f"{what} gives other evidence: {sorted(a.keys() ^ b.keys())}; {hint}")
    worst = 0.0
    for name, value in a.items():
        if value.shape != b[name].shape:
            _fail(f"{what} gives '{name}' in shape {tuple(b[name].shape)}, not {tuple(value.shape)}; {hint}")
        error = relative_error(value, b[name])
        if not error <= tolerance:
            _fail(f"{what} changes '{name}' by {error:.1e} of its span (allowed {tolerance:.0e}); {hint}")
        worst = max(worst, error)
    return worst


def relative_error(a: Tensor, b: Tensor) -> float:
    """Return ``max |a - b|`` over the span of ``a`` (at least a thousandth of its largest value)."""
    span = max(float(a.max() - a.min()), 1e-3 * float(a.abs().max()))
    error = float((a - b).abs().max())
    return error / span if error else 0.0


def _fail(words: str) -> NoReturn:
    raise Broken(words)

"""``calibrate``: a threshold from normal images, for a rate of false alarms, and what it may be used with."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import RecordError, UsageError
from ..files import stand_in, write_atomic
from ..method import flattened, resolve
from ..text import terminal
from .predictor import Predictor
from .setup import Setup, verdict

KIND = "zsad threshold"
SCHEMA = 1
CONFIDENCE = 0.95
MARGIN = 1e-3
"""How far above the highest score a threshold lies that no image may exceed, in spans of the scores."""
FEWEST = 20
"""Scores at or below the threshold, of each side, without which nothing is said of a drift."""
LEVEL = 0.01
"""A drift is told where its p is below this: of a hundred comparisons of equal scores, one."""
_EXACT = 1_000_000  # pairs of scores up to which p is computed exactly


@dataclass(frozen=True)
class Threshold:
    """A threshold with what it was found on: an image is NG when its score is above ``value``.

    ``fpr`` is the rate asked for, ``reached`` that of the ``images`` normal images themselves, and ``upper``
    the bound below which the true rate lies with 95 % confidence (Clopper and Pearson, 1934).
    ``identity`` is everything the scores depend on, and ``setup`` the names by which its files are found
    again.  ``scores`` are those of the normal images, rising, and ``about`` is what else its file says.  What
    files of earlier versions do not hold is empty.
    """

    value: float
    fpr: float
    reached: float
    upper: float
    images: int
    identity: Mapping[str, Any] = field(repr=False)
    setup: Mapping[str, Any] = field(default_factory=dict, repr=False)
    scores: tuple[float, ...] = field(default=(), repr=False)
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def smallest_fpr(self) -> float:
        """The smallest rate other than 0 that so many images can tell."""
        return 1 / self.images

    @property
    def words(self) -> str:
        """What the threshold is, in words, with the rates that ``calibrate`` found."""
        return (
            f"NG above {self.value:.6g}: {self.reached:.2%} of {self.images} normal images were "
            f"({self.fpr:.2%} allowed)"
        )

    def verdict(self, score: float | None) -> str | None:
        """Return "OK" or "NG"; None for an image without a score."""
        return verdict(score, self.value)


def fit(
    scores: Sequence[float],
    fpr: float,
    identity: Mapping[str, Any],
    setup: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
) -> Threshold:
    """Return the lowest threshold that at most ``fpr`` of the normal ``scores`` exceed.

    It lies half way from one of the scores to the next higher one, so that the last digits of a score, which
    other batches round otherwise, change no verdict on these images.  With ties fewer are above, never more.

    Raises:
        UsageError: as ``check_enough`` does, and for no score at all.
    """
    if not scores:
        raise UsageError("no normal image could be scored, so there is no threshold; check the images")
    allowed = check_enough(len(scores), fpr, force)
    value = _above(scores, sorted(scores, reverse=True)[allowed])
    above = sum(score > value for score in scores)
    upper = upper_rate(above, len(scores))
    rates = (fpr, above / len(scores), upper)
    return Threshold(value, *rates, len(scores), identity, setup or {}, tuple(sorted(scores)))


def refit(threshold: Threshold, fpr: float, path: Path, *, force: bool = False) -> Threshold:
    """Return the threshold for another rate, from the scores that the file ``path`` keeps.

    Raises:
        UsageError: as :func:`fit`, and where the file keeps no scores.
    """
    require_scores(threshold, path)
    found = fit(threshold.scores, fpr, threshold.identity, threshold.setup, force=force)
    return replace(found, about=threshold.about)


def require_scores(threshold: Threshold, path: Path) -> None:
    """Refuse a threshold of before, of which only the value is known.

    Raises:
        UsageError: saying what it lacks.
    """
    if not threshold.scores:
        raise UsageError(
            f"{terminal(path)}: written by an earlier version, which kept no scores of the normal images; "
            "calibrate again with zsad calibrate --normal DIR"
        )


@dataclass(frozen=True)
class Drift:
    """New scores against those that a threshold was found on, both at or below it.

    ``statistic`` and ``p`` are of the two-sample Kolmogorov-Smirnov test (Smirnov, 1939), None where one side
    has fewer than :data:`FEWEST` scores.  ``images`` and ``below`` count the new scores and those at or below
    the threshold, ``median`` is of the latter; ``then_`` of the normal images of before.
    """

    statistic: float | None
    p: float | None
    images: int
    below: int
    median: float | None
    then_images: int
    then_below: int
    then_median: float | None

    @property
    def moved(self) -> bool:
        """Whether the scores differ by more than chance explains, at :data:`LEVEL`."""
        return self.p is not None and self.p < LEVEL

    @property
    def words(self) -> str:
        """What was found, with numbers, in one line."""
        above, then = 1 - self.below / max(self.images, 1), 1 - self.then_below / self.then_images
        shares = f"{above:.1%} are above it, {then:.1%} when calibrated"
        if self.p is None:
            return (
                f"drift is not judged: {self.below} of {self.images} scores now and {self.then_below} of "
                f"{self.then_images} then are at or below the threshold, each needs {FEWEST}; {shares}"
            )
        numbers = (
            f"Kolmogorov-Smirnov D = {self.statistic:.3f}, p = {self.p:.2g}; {self.below} scores at or "
            f"below the threshold, median {self.median:.6g}, against {self.then_below} with "
            f"{self.then_median:.6g}; {shares}"
        )
        if self.moved:
            return f"scores have moved since calibration: {numbers}; look at light, camera and part"
        return f"no drift is seen: {numbers}"


def drift(threshold: Threshold, scores: Sequence[float]) -> Drift:
    """Compare ``scores`` of new images with those of the normal images that ``threshold`` was found on.

    Both sides are cut at the threshold, for new images may be defective: those above it are left out, and
    normal images at or below it are distributed as they were, however many defects came along.
    """
    from scipy.stats import ks_2samp

    then, now = ([s for s in side if s <= threshold.value] for side in (threshold.scores, scores))
    medians = [median(side) if side else None for side in (now, then)]
    statistic = p = None
    if min(len(then), len(now)) >= FEWEST:
        exact = len(then) * len(now) <= _EXACT
        with warnings.catch_warnings():  # where the exact p is lost in rounding, scipy takes the other
            warnings.simplefilter("ignore", RuntimeWarning)
            found = ks_2samp(then, now, method="exact" if exact else "asymp")
        statistic, p = float(found.statistic), float(found.pvalue)
    here, before = (len(scores), len(now), medians[0]), (len(threshold.scores), len(then), medians[1])
    return Drift(statistic, p, *here, *before)


def check_alone(predictor: Predictor) -> None:
    """Refuse a method whose scores of an image depend on the other images: no threshold holds for those.

    Raises:
        UsageError: naming it.
    """
    if predictor.engine.relates:
        raise UsageError(
            f"'{predictor.engine.id}' judges the images of a call by each other, so a threshold found "
            "on some does not hold for others; choose another method"
        )


def _above(scores: Sequence[float], score: float) -> float:
    """Return a number between ``score`` and the next higher one, or a little above the highest."""
    higher = [other for other in scores if other > score]
    return (score + min(higher)) / 2 if higher else score + MARGIN * (score - min(scores))


def check_enough(images: int, fpr: float, force: bool = False) -> int:
    """Return how many of ``images`` normal images may be above a threshold for the rate ``fpr``.

    Raises:
        UsageError: for a rate outside [0, 1), and, unless ``force``, for fewer than 1 / fpr images, which
            cannot tell that rate from 0.
    """
    if not 0 <= fpr < 1:
        raise UsageError(f"--fpr {fpr:g}: a rate of false alarms lies from 0 to below 1")
    # Exact in the decimals as written: 0.29 of 100 images are 29, in binary floating point 28.
    rate = Fraction(str(fpr))
    allowed = math.floor(rate * images)
    if allowed < 1 and not force:
        needed = f"at least {math.ceil(1 / rate)} images, a larger --fpr," if fpr else "a larger --fpr"
        raise UsageError(
            f"{images} normal images cannot tell a rate of {fpr:g} from 0: the smallest they can is "
            f"{1 / images:.3g}; give {needed} or --force for the highest score as threshold"
        )
    return allowed


def upper_rate(above: int, images: int) -> float:
    """Return the upper 95 % confidence bound of the rate behind ``above`` false alarms of ``images``."""
    from scipy.stats import beta

    return 1.0 if above == images else float(beta.ppf(CONFIDENCE, above + 1, images - above))


def write_threshold(path: Path, threshold: Threshold, about: Mapping[str, Any]) -> None:
    """Write a threshold as JSON, with ``about`` beside it for readers.

    Raises:
        RecordError: if the file cannot be written.
    """
    known = asdict(replace(threshold, scores=()))
    known.pop("scores")
    content = {
        "kind": KIND,
        "schema": SCHEMA,
        **known,
        "smallest_fpr": threshold.smallest_fpr,
        "rule": "NG when score > value",
        "about": dict(about),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    text = json.dumps(content, indent=2).removesuffix("\n}")
    # All scores on one line: people read the rest.
    write_atomic(path, f'{text},\n  "scores": {json.dumps(threshold.scores)}\n}}\n'.encode())


def read_threshold(path: Path) -> Threshold:
    """Return the threshold in a file.

    Raises:
        RecordError: if the file is missing, is none of ``calibrate``'s, or lacks something.
    """
    remedy = "make one with zsad calibrate --normal DIR --fpr RATE --out FILE"
    try:
        start = path.read_bytes()
        if other := stand_in(start[:512]):
            raise RecordError(f"{terminal(path)}: {other}; or {remedy}")
        content = json.loads(start.decode())
    except FileNotFoundError:
        raise RecordError(f"{terminal(path)}: no such threshold file; {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: nested a thousand times
        raise RecordError(f"{terminal(path)}: cannot be read ({error}); {remedy}") from None
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise RecordError(f"{terminal(path)}: no threshold of zsad calibrate; {remedy}")
    if content.get("schema") != SCHEMA:
        raise RecordError(
            f"{terminal(path)}: schema {content.get('schema')}, this version reads {SCHEMA}; {remedy}"
        )
    try:
        value, fpr, reached, upper = (float(content[name]) for name in ("value", "fpr", "reached", "upper"))
        images, identity = int(content["images"]), dict(content["identity"])
        setup, scores = dict(content.get("setup") or {}), tuple(map(float, content.get("scores") or ()))
        about = {"scored": content.get("created"), **(content.get("about") or {})}
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{terminal(path)}: incomplete or damaged ({error!r}); {remedy}") from None
    if not math.isfinite(value) or images < 1:
        raise RecordError(f"{terminal(path)}: holds no finite threshold of one image or more; {remedy}")
    if scores and (len(scores) != images or not all(map(math.isfinite, scores))):
        raise RecordError(f"{terminal(path)}: does not hold a finite score of each image; {remedy}")
    kept = tuple(sorted(scores))
    return Threshold(value, fpr, reached, upper, images, identity, setup, kept, about)


def recalled(threshold: Threshold, path: Path, given: Mapping[str, Any]) -> Setup:
    """Return the setup that a threshold was found with; ``given`` are the fields that the user states anyway.

    Code is never run because a file names it: a class of the user's own must be among the ``given``.  Whether
    what is given agrees with the threshold, ``check_fits`` tells.

    Raises:
        UsageError: if the file does not say enough, or a checkpoint is not where it was.
    """
    kept, said = threshold.setup, threshold.identity
    if not kept:
        if "method" in given:
            return Setup(**given)
        raise UsageError(
            f"{terminal(path)}: keeps no options, as files of earlier versions and of exported methods; give "
            "--method and the others, or the --model, that zsad calibrate was given"
        )
    try:
        method, words = str(kept["method"]), str(said["words"])
        files = {name: kept.get(name) for name in ("backbone", "weights", "activation")}
        cut = {"tile": said["tile"], "overlap": said["overlap"], "roi": said["roi"]}
        found = {"method": method, "words": words, "dtype": str(said["dtype"]), **files, **cut}
        found["roi"] = tuple(cut["roi"]) if cut["roi"] else None
        parameters = dict(said["parameters"])
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{terminal(path)}: incomplete or damaged ({error!r}); calibrate again") from None
    if "method" not in given and (":" in method or method.endswith(".py")):
        raise UsageError(
            f"{terminal(path)}: was found with a class of your own, which is run only when you name it: "
            f"--method {terminal(method)}"
        )
    found |= {"checkpoint": _there(kept.get("checkpoint"), path, given)}
    found = {name: value for name, value in found.items() if value is not None} | dict(given)
    found["settings"] = _changed(found, parameters) | dict(given.get("settings") or {})
    return Setup(**found)


def _there(checkpoint: str | None, path: Path, given: Mapping[str, Any]) -> str | None:
    from ..clip import is_address  # torch comes with it

    if not checkpoint or "checkpoint" in given:
        return None
    if not is_address(checkpoint) and not Path(checkpoint).is_file():
        raise UsageError(
            f"{terminal(path)}: was found with the checkpoint {terminal(checkpoint)}, which is no longer "
            "there; name it with --checkpoint"
        )
    return checkpoint


def _changed(found: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters by which a threshold's method differs from the one its names alone give."""
    plain = resolve(
        found["method"],
        backbone=found.get("backbone"),
        weights=found.get("weights"),
        activation=found.get("activation"),
    )
    own = {name: value for name, value in parameters.items() if name not in ("backbone", "checkpoint")}
    then, now = flattened(plain.method, own), flattened(plain.method, plain.parameters)
    return {name: value for name, value in then.items() if name in now and now[name] != value}


def check_fits(threshold: Threshold, predictor: Predictor, path: Path) -> None:
    """Refuse a threshold that was found with other scores.

    Raises:
        UsageError: naming everything that differs.
    """
    found = differences(threshold.identity, predictor.identity())
    if found:
        raise UsageError(
            f"{terminal(path)}: found with {'; '.join(found)}. Give the same options, or calibrate again"
        )


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in words what differs between two identities, nested ones by their full names."""
    old, new = _flat(then), _flat(now)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if "method" in names:  # another method has other parameters; its name says it all
        names = ["method"]
    return [f"{name} {_brief(old.get(name))}, now {_brief(new.get(name))}" for name in names]


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in table.items():
        inside = _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
        found |= inside
    return found


def _brief(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return f"{text[:40]}..." if len(text) > 43 else text or "empty"

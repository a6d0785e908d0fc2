"""From a stored observation to records: after a run, again under another protocol, or from foreign maps."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RecordError, UsageError, suggest
from ..files import contents_digest, digest_of, hash_file
from ..method import Resolved, override
from ..metrics import METRIC_VERSION
from ..records import (
    EDITED,
    OBSERVATION,
    RECORD,
    Contents,
    Record,
    Slice,
    check_run,
    read_observation,
    read_record,
    write_record,
)
from ..samples import Dataset
from .basis import Masks, basis_of, standing
from .category import NOTHING_FIXED, CategoryScores, Sharing, Unit, on_cores
from .code import NOBODY, UserMethods, changed_code, restore
from .command import evaluated
from .normals import Normals, needs_normals
from .protocol import EvaluationProtocol, protocol
from .stored import StoredMaps, observed_dataset, validation_of

if TYPE_CHECKING:
    import pandas as pd


def rules_for(resolved: Resolved, name: str, options: Mapping[str, Any]) -> EvaluationProtocol:
    """Return protocol ``name`` for a method; ``options`` are the overrides ``scoring.protocol`` takes."""
    return protocol(name, reference_size=resolved.size, reference_masks=resolved.mask_resize, **options)


@dataclass(frozen=True)
class Portion:
    """A category of a run, to be scored under a protocol: the unit that scoring is cut into."""

    stored: StoredMaps
    normals: Normals | None
    category: str

    def __str__(self) -> str:
        return f"'{self.category}' in {self.stored.store.folder.parent}"

    def __call__(self, workers: int) -> CategoryScores | None:
        """Score it, with so many threads that render ahead."""
        fixed = self.normals.fixed(self.category, workers) if self.normals else NOTHING_FIXED
        return self.stored.scored(self.category, workers, fixed)

    def alone(self) -> Portion:
        """Return it with its evidence in memory and nothing of other categories, as it goes elsewhere.

        Raises:
            RecordError: if evidence is missing.
        """
        normals = self.normals.alone(self.category) if self.normals else None
        return Portion(self.stored.alone(self.category), normals, self.category)


@dataclass(frozen=True)
class Scoring:
    """An observation to be scored: a unit for each category, and all that its record stands on.

    Where a record stands on just that already it is ``kept``, and there are no units.
    """

    run_dir: Path
    dataset: Dataset
    rules: EvaluationProtocol
    claims: Mapping[str, Any]
    units: Sequence[Unit]
    contents: Contents
    masks: Masks
    normals: Normals | None = None
    notes: tuple[str, ...] = ()
    kept: Record | None = None

    @classmethod
    def of(
        cls,
        run_dir: Path,
        observation: Mapping[str, Any],
        dataset: Dataset,
        rules: EvaluationProtocol,
        units: Sequence[Unit],
        contents: Contents | None = None,
        about: Mapping[str, Any] | None = None,
        normals: Normals | None = None,
    ) -> Scoring:
        """Return what is to be scored in ``run_dir``, whose record will hold ``about`` too.

        ``normals`` are the validation images whose warnings go into the record as well.  Where ``about``
        names the evidence, a record that stands on it and on all else is kept.  The digest of every mask is
        taken now; where one has changed since the protocol was scored last, a note says so.
        """
        if contents is None:
            contents = Contents(dataset)
            contents.recall(run_dir)
        masks = Masks(dataset, contents)
        claims = {
            "observation": dict(observation),
            "protocol": rules.describe() | {"mask_positive": str(dataset.mask_positive)},
            "metric_version": METRIC_VERSION,
            "masks": masks.digest,
            **({"saturations": _saturations(dataset)} if rules.spro_limits else {}),
            **(about or {}),
        }
        folder = run_dir / rules.folder
        if kept := standing(folder, claims):
            return cls(run_dir, dataset, rules, claims, (), contents, masks, kept=kept)
        notes = (*masks.changes(folder), *_left_out(folder, rules))
        return cls(run_dir, dataset, rules, claims, units, contents, masks, normals, notes)

    def record(self, found: Iterable[CategoryScores | None]) -> Record:
        """Write the record of what the units gave, in their order, and return it.

        Raises:
            RecordError: if no category has a map, evidence is of other images than the observation says, or
                the record cannot be written.
        """
        start = time.perf_counter()
        done = [scores for scores in found if scores]
        if self.kept:
            self.contents.keep(self.run_dir)
            return self.kept
        if not done:
            raise RecordError(f"{self.run_dir}: no image could be read, so there is nothing to score")
        hashes = {key: sha256 for scores in done for key, sha256 in scores.hashes.items()}
        if hashes and contents_digest(hashes) != self.claims["observation"]["dataset"]["contents"]:
            raise RecordError(
                f"{self.run_dir}: its evidence is of other images than {OBSERVATION} says; repeat the zsad "
                "run command, it sets that right"
            )
        evidence = {scores.row["category"]: scores.evidence for scores in done if scores.evidence}
        record = {
            **self.claims,
            **({"evidence": digest_of(evidence)} if evidence else {}),
            "categories": [scores.row for scores in done],
            "warnings": [
                *(self.normals.warnings([*hashes.values()]) if self.normals else ()),
                *(each for scores in done for each in scores.warnings),
                *_undefined(done, self.rules),
            ],
            "seconds": {"score": time.perf_counter() - start},
        }
        rows = (self.masks.beside(row) for scores in _let_go(done) for row in scores.images)
        written = write_record(self.run_dir, self.rules.folder, record, rows)
        self.contents.keep(self.run_dir)
        return dataclasses.replace(written, notes=self.notes)


def _let_go(done: list[CategoryScores]) -> Iterator[CategoryScores]:
    """Yield categories and hold them no longer: a million rows are not held twice."""
    while done:
        yield done.pop(0)


def scored(
    scorings: Sequence[Scoring], workers: int | None = None, sharing: Sharing = on_cores
) -> Iterator[Record]:
    """Score observations, the categories of all of them side by side, and yield their records in order.

    ``sharing`` decides where.

    Raises:
        RecordError: as :meth:`Scoring.record` says, or if evidence is missing, damaged or of other images.
        DatasetError: if a mask cannot be read.
    """
    units = [unit for scoring in scorings for unit in scoring.units]
    found = iter(sharing(units, workers)) if units else iter(())
    for scoring in scorings:
        yield scoring.record(islice(found, len(scoring.units)))


def scoring_of(
    run_dir: Path,
    observation: Mapping[str, Any],
    resolved: Resolved,
    dataset: Dataset,
    rules: EvaluationProtocol,
    *,
    contents: Contents | None = None,
    command: Sequence[str] = (),
    validation: Dataset | None = None,
    found: Mapping[int, Slice] | None = None,
) -> Scoring:
    """Return what is to be scored of the evidence in ``run_dir`` under ``rules``.

    ``contents`` is what is known of the dataset's files, and ``validation`` its validation images, where that
    was found out already; ``command`` are the words that ask for these rules.  ``found`` are the slices of
    evidence as they were found whole: a record that was taken from just these, and from the same of
    everything else, is kept as it is.

    Raises:
        RecordError: if validation images are not observed that a metric needs.
    """
    stored = StoredMaps(run_dir, resolved, dataset, rules)
    normals = _normals(run_dir, observation, resolved, dataset, rules, validation)
    units = [Portion(stored, normals, category) for category in stored.categories]
    about: dict[str, Any] = {"changed_code": True} if changed_code(observation, resolved) else {}
    if basis := basis_of(resolved, stored.method, dataset):
        about["basis"] = basis
    if observation.get("command"):
        about["command"] = [*observation["command"], *command]
    if normals:
        about |= normals.described()
    if found:
        about["evidence"] = digest_of(stored.digests(found))
    return Scoring.of(run_dir, observation, dataset, rules, units, contents, about, normals)


def _normals(
    run_dir: Path,
    observation: Mapping[str, Any],
    resolved: Resolved,
    dataset: Dataset,
    rules: EvaluationProtocol,
    validation: Dataset | None,
) -> Normals | None:
    """Return the normal validation images where a metric of the rules needs them."""
    if not needs_normals(rules.metrics):
        return None
    if validation is not None:
        return Normals(run_dir, resolved, validation, rules)
    said = observation["dataset"]
    listed = validation_of(said["spec"], dataset, (said.get("selection") or {}).get("limit"))
    return Normals(run_dir, resolved, listed, rules, strict=True)


def _left_out(folder: Path, rules: EvaluationProtocol) -> list[str]:
    """Return which metrics the record in ``folder`` was asked for that the rules do not ask for."""
    try:
        before = EvaluationProtocol.of(read_record(folder / RECORD).protocol).metrics
    except (RecordError, KeyError):
        return []
    gone = [metric for metric in before if metric not in rules.metrics]
    words = " ".join(f"--metric {metric}" for metric in gone)
    return [f"{folder}: no longer holds {', '.join(gone)}; {words} adds it again"] if gone else []


def _saturations(dataset: Dataset) -> str:
    """Return the digest over the files that say how much of each defect must be found."""
    files = {sample.saturation for sample in dataset.samples} - {None}
    return digest_of(sorted(hash_file(file) for file in files if file))


def _undefined(done: Sequence[CategoryScores], rules: EvaluationProtocol) -> list[str]:
    """Return why metrics that were asked for are undefined, each reason once."""
    why: dict[tuple[str, str], list[str]] = {}
    for row in (scores.row for scores in done):
        for metric in rules.metrics:
            if row[metric] is None:
                why.setdefault((metric, row["reasons"].get(metric, "")), []).append(row["category"])
    return [
        f"{metric} is undefined{'' if len(names) == len(done) else ' for ' + ', '.join(names)}: {reason}"
        for (metric, reason), names in why.items()
    ]


def score(
    run_dir: str | Path,
    *,
    protocol: str = "reference",
    data: str | Path | None = None,
    settings: Mapping[str, str] | None = None,
    size: int | None = None,
    mask_resize: str | None = None,
    aupro_limits: Sequence[float] = (),
    exact_maps: bool = False,
    metrics: Sequence[str] = (),
    workers: int | None = None,
    method: str | None = None,
    allow_changed: bool = False,
) -> pd.DataFrame:
    """Score a finished run again from its evidence, without CLIP; returns one row per category.

    ``metrics`` are ids of metrics beside those that every record holds (``pixel_segf1``, ``image_classf1``).
    ``settings`` may change the card's map parameters only.  The images are not read, only the masks.
    ``method`` names the file and class of a user's method, whose code must be what it was unless
    ``allow_changed``: the record does not decide which code runs.

    Raises:
        RecordError: if the run is unfinished, damaged, or its dataset has changed since.
        UsageError: for a setting that would change the evidence.
    """
    record = score_run(
        Path(run_dir),
        protocol,
        data=Path(data) if data else None,
        settings=settings or {},
        workers=workers,
        users=UserMethods((method,) if method else (), allow_changed),
        size=size,
        mask_resize=mask_resize,
        limits=tuple(aupro_limits),
        exact=exact_maps,
        metrics=tuple(metrics),
    )
    return frame([record])


def score_run(
    run_dir: Path, name: str, *, settings: Mapping[str, Any], workers: int | None = None, **options: Any
) -> Record:
    """Do what :func:`score` does and return the record; ``options`` as :func:`stored_scoring` takes them.

    Raises:
        RecordError: if the observation does not hold what scoring needs.
        UsageError: for settings or a protocol that do not fit it.
    """
    return next(scored([stored_scoring(run_dir, name, settings=settings, **options)], workers))


def stored_scoring(
    run_dir: Path,
    name: str,
    *,
    data: Path | None = None,
    settings: Mapping[str, Any],
    users: UserMethods = NOBODY,
    **options: Any,
) -> Scoring:
    """Return what is to be scored of a finished run under protocol ``name``; ``options`` override it.

    Raises:
        RecordError: if the observation does not hold what scoring needs.
        UsageError: for settings or a protocol that do not fit it.
    """
    observation = read_observation(run_dir)
    if observation["method"].get("foreign"):
        raise UsageError(f"{run_dir}: holds scores of foreign maps, not evidence; repeat zsad score --maps")
    if not observation.get("complete", False):
        raise RecordError(
            f"{run_dir}: this run did not finish; repeat the zsad run command, it goes on where it was"
        )
    check_run(run_dir / OBSERVATION, observation)
    resolved = restore(observation, users)
    changes = map_settings(resolved, settings)
    dataset = observed_dataset(observation, data)
    asked = {**options, "map_parameters": changes}
    rules, command = rules_for(resolved, name, asked), evaluated(name, asked)
    found = scoring_of(run_dir, observation, resolved, dataset, rules, command=command)
    if EDITED not in (observation.get("marks") or ()):
        return found
    note = f"{run_dir / OBSERVATION}: was changed after it was written; repeat the zsad run command"
    return dataclasses.replace(found, notes=(*found.notes, note))


def map_settings(resolved: Resolved, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``settings`` as values of their fields, all of them map parameters that really change.

    Raises:
        UsageError: for a field that decides the evidence, or no field at all.
    """
    allowed = resolved.card.map_parameters
    for name in settings:
        if name not in allowed:
            known = suggest(name, allowed) if allowed else " This method has no map parameters."
            raise UsageError(
                f"--set {name}: score can only change what maps are rendered with.{known} "
                f"Give {name} to zsad run instead, which observes again"
            )
    changed = override(resolved.method, settings)
    return {
        name: getattr(changed, name)
        for name in settings
        if getattr(changed, name) != getattr(resolved.method, name)
    }


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return the numbers of records, one row per record and category, values in [0, 1]."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "dataset": record.dataset,
                "method": record.method,
                "protocol": record.protocol_label,
                "seed": record.seed,
                **{key: value for key, value in row.items() if key != "reasons"},
            }
            for record in records
            for row in record.categories.values()
        ]
    )

"""What of a job lies on disk already, and whether it still holds.

An observation is known by its method, parameters, weights and samples.  When images of a finished one have
changed it stays as it is, and theirs is another: its digest covers the contents too.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..engine import Task
from ..errors import RecordError
from ..files import contents_digest, digest_of
from ..records import EDITED, OBSERVATION, RECORD, Contents, EvidenceStore, NewerSchema, read_observation
from ..samples import Dataset
from ..scoring import VALIDATION
from .jobs import Job

_KNOWN = (
    *("environment", "created", "seconds", "images_per_second", "batch_size", "peak_memory_mb"),
    *("devices", "cost"),
)


def find(job: Job, data: Dataset, contents: Contents) -> list[str]:
    """Set what a job has still to do, and return what the user should know of what was found.

    Raises:
        NewerSchema: if a newer zsadbench made the observation.
    """
    job.task.plan(data.samples)
    for folder in sorted(job.run_dir.parent.glob("*/")):
        contents.recall(folder)
    stored = _stored(job.run_dir)
    notes: list[str] = []
    if changed := _changed(job, contents):
        images = f"{len(changed)} of {len(data.samples)} images changed (first {min(changed)})"
        if _is_kept(job.run_dir, stored):
            old = job.run_dir
            _leave(job, data, contents)
            stored, changed = _stored(job.run_dir), _changed(job, contents)
            notes += [
                f"{images} since {old} was observed: observed again in {job.run_dir}; the old one stays"
            ]
        else:
            notes += [f"{images} since a run was interrupted in {job.run_dir}: observed again"]
    stale = {number for number, part in job.task.stored.items() if not changed.isdisjoint(part.keys)}
    job.task.missing |= stale
    if any(not part.checked for part in job.task.stored.values()):
        notes.append(
            f"{job.run_dir}: its evidence was written by zsadbench 0.1, without a digest of its own, so a "
            "wrong bit in it would go unseen; delete the folder 'evidence' and repeat the run to have one"
        )
    if stored and stored["observation"] == job.observation["observation"] and EDITED not in stored["marks"]:
        job.finished = _is_finished(job, stored)
        known = stored if job.finished else {key: stored[key] for key in _KNOWN if key in stored}
        job.observation |= known
    elif stored:
        notes.append(f"{job.run_dir / OBSERVATION}: was changed after it was written; it is written again")
    return notes


def find_validation(job: Job, validation: Dataset, contents: Contents) -> list[str]:
    """Set what a job has still to observe of validation images, and return what the user should know.

    Methods that relate images observe none: a validation image alone has no score.
    """
    if job.task.relates:
        return []
    folder = job.run_dir / VALIDATION
    task = Task(
        job.task.name, job.task.method, job.task.wordings, EvidenceStore(folder), job.task.order_dependent
    )
    task.plan(validation.samples)
    contents.recall(folder)
    changed = contents.changed(observed(task)[0])
    task.missing |= {number for number, part in task.stored.items() if not changed.isdisjoint(part.keys)}
    job.validation = task
    if not changed:
        return []
    images = f"{len(changed)} of {len(validation.samples)} validation images changed (first {min(changed)})"
    return [f"{folder}: {images}: observed again"]


def observed(task: Task) -> tuple[dict[str, str], dict[str, str]]:
    """Return the SHA-256 of every image whose evidence is stored, and the reason of every failed one."""
    hashes: dict[str, str] = {}
    failed: dict[str, str] = {}
    for part in task.stored.values():
        hashes |= dict(zip(part.keys, part.hashes, strict=True))
        failed |= part.failed
    return hashes, failed


def _stored(run_dir: Path) -> dict[str, Any] | None:
    """Return the observation on disk; None where there is none that can be read."""
    try:
        return {"marks": [], **read_observation(run_dir)}
    except NewerSchema:
        raise
    except RecordError:
        return None


def _changed(job: Job, contents: Contents) -> set[str]:
    return contents.changed(observed(job.task)[0])


def _is_kept(run_dir: Path, stored: Mapping[str, Any] | None) -> bool:
    """Tell whether an observation was finished once, or has a record: then it is not written over."""
    return bool(stored and stored.get("complete")) or any(run_dir.glob(f"*/{RECORD}"))


def _is_finished(job: Job, stored: Mapping[str, Any]) -> bool:
    hashes, _ = observed(job.task)
    whole = not job.task.missing and not job.copies and stored.get("complete") is True
    return whole and stored["dataset"]["contents"] == contents_digest(hashes)


def _leave(job: Job, data: Dataset, contents: Contents) -> None:
    """Give a job the folder of the images as they are now, and find the slices it can take over."""
    family, hashes = job.observation["observation"], contents.images()
    digest = digest_of({**job.identity, "contents": contents_digest(hashes)})
    donors = _family(job.run_dir, family)
    job.run_dir = job.run_dir.parent / digest[:12]
    job.observation |= {"observation": digest, "family": family}
    job.task.store = EvidenceStore(job.run_dir)
    job.task.plan(data.samples)
    for number in sorted(job.task.missing):
        keys = [data.samples[i].key for i in job.task.slices[number]]
        wanted = [hashes[key] for key in keys]
        for donor in donors:
            part = donor.find(number, keys)
            if part and part.hashes == wanted:
                job.copies[number] = donor
                job.task.missing.discard(number)
                break


def _family(run_dir: Path, family: str) -> list[EvidenceStore]:
    """Return the evidence of every observation that differs from ``run_dir``'s in its images at most."""
    found = [EvidenceStore(run_dir)]
    for file in sorted(run_dir.parent.glob(f"*/{OBSERVATION}")):
        with suppress(RecordError):
            if read_observation(file.parent).get("family") == family:
                found.append(EvidenceStore(file.parent))
    return found

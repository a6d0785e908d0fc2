"""A worker of a run on many devices: what it is told, must see and hands back; and the Ray it lives in.

It holds towers and anchors for the whole run, keeps what it observes in memory, and knows no results.
"""

from __future__ import annotations

import logging
import os
import pickle
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from ..clip import find_seconds, find_weights
from ..environment import Seat, code_digest, device_name, environment, whole_number
from ..errors import DatasetError, UsageError, WeightsError, ZsadError
from ..files import hash_file, sha256_of
from ..images import default_workers
from ..method import Parcel, opened, packed, refuse_other_code
from ..progress import Progress
from ..records import EvidenceStore, Slice, encoded
from ..samples import Dataset, Sample
from .engine import Encoder, Pass, Task, observe, peak_memory_mb, pick_dtype

HASHED = 32
"""Images whose content is compared, beside the size of all, before a worker is trusted to see the same."""
DATA = "ZSAD_WORKER_DATA"
"""Names the folder that holds one per dataset on a worker's machine, where data lie elsewhere there."""


@dataclass(frozen=True)
class Brief:
    """What a worker is told of a dataset before its first unit.

    ``tasks`` is a pickled list of tasks, opened after ``code``; ``digests`` are those of the files each
    needs; ``images`` are up to ``HASHED`` images with their SHA-256.
    """

    versions: Mapping[str, str]
    names: tuple[str, ...]
    code: tuple[Parcel | None, ...]
    tasks: bytes = field(repr=False)
    digests: tuple[Mapping[str, str], ...]
    dataset: str
    root: Path
    category: str
    orient: bool
    images: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, tasks: Sequence[Task], data: Dataset) -> Brief:
        """Return the brief of ``tasks`` on a dataset."""
        bare = [
            replace(task, store=Kept(), slices=[], stored={}, missing=set(), observer=None) for task in tasks
        ]
        chosen = data.samples[:: max(1, len(data.samples) // HASHED)][:HASHED]
        return cls(
            _versions(),
            tuple(task.name for task in tasks),
            tuple(packed(task.method) for task in tasks),
            pickle.dumps(bare),
            tuple(_digests(task.method) for task in tasks),
            data.id,
            data.root,
            data.categories[0],
            data.masks == "none",
            {below(data.root, sample.image): sha256_of(sample.image) for sample in chosen},
        )


def _versions() -> dict[str, str]:
    about = environment("cpu", "")
    found = {name: about[name].partition("+")[0] for name in ("zsadbench", "torch", "open_clip")}
    return found | {"code of zsadbench": code_digest()[:12]}


def _digests(method: Any) -> dict[str, str]:
    """Return the SHA-256 of the files a method needs beside images, by what they are."""
    found = {"weights": find_weights(method.backbone).digest}
    found |= {field: one.digest for field, one in find_seconds(method).items()}
    if checkpoint := getattr(method, "checkpoint", None):
        path = Path(checkpoint)
        found["checkpoint"] = sha256_of(path) if path.is_file() else "no such file"
    return found


def below(root: Path, path: Path) -> str:
    """Return the name of a file below the folder of its dataset."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


class Kept(EvidenceStore):
    """Stands in for the folder of evidence on a worker: what files would hold stays in memory."""

    def __init__(self) -> None:
        super().__init__(Path())
        self.contents: dict[int, bytes] = {}

    def write(self, number: int, part: Slice) -> None:
        """Keep a slice."""
        self.contents[number] = encoded(part)


@dataclass(frozen=True)
class Found:
    """What came of a unit: the content of each method's slice, by the task's number; what it cost."""

    slices: Mapping[int, bytes] = field(repr=False)
    report: Pass
    batch_size: int = 0
    memory_mb: float = 0.0


def _answered(call: Callable[..., Any]) -> Callable[..., Any]:
    """Let a worker's function answer with what is wrong, where the user is to be told."""

    @wraps(call)
    def answer(worker: Worker, *given: Any) -> Any:
        torch.set_num_threads(worker.seat.threads)  # holds for the thread that sets it
        try:
            return call(worker, *given)
        except ZsadError as error:
            return error

    return answer


class Worker:
    """A process of its own: towers and anchors of every method, and the units it is handed."""

    def __init__(self, seat: Seat, dtype: str, batch_size: int | None, decoders: int | None) -> None:
        self.seat, self.dtype, self.batch_size = seat, pick_dtype(dtype), batch_size
        self.decoders = decoders or min(seat.threads, default_workers())
        self.device = torch.device(seat.device)
        self.clips: dict[Any, Any] = {}
        self.halt = threading.Event()

    def about(self) -> tuple[str, str, str]:
        """Return the names of the machine and of the device, and Ray's id of the machine."""
        import ray

        return socket.gethostname(), device_name(self.device), ray.get_runtime_context().get_node_id()

    def stop(self) -> None:
        """Let the unit in work end as on one device, and those behind it not begin."""
        self.halt.set()

    @_answered
    def take(self, brief: Brief, sizes: tuple[str, Sequence[int]] | None) -> tuple[str, str, str]:
        """Make ready for a dataset: see that everything is here and the same, load towers, encode prompts."""
        own = _versions()
        for name, version in brief.versions.items():
            if own[name] != version:
                raise UsageError(
                    f"has {name} {own[name]}, and {version} is asked for; install the same everywhere"
                )
        for name, parcel in zip(brief.names, brief.code, strict=True):
            if parcel:
                opened(parcel, name)
        try:
            self.tasks: list[Task] = pickle.loads(brief.tasks)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"cannot import a method ({error}); install its package there") from error
        for task, parcel, digests in zip(self.tasks, brief.code, brief.digests, strict=True):
            if parcel:
                refuse_other_code(parcel, task.method, task.name)
            for what, digest in _digests(task.method).items():
                if digest != digests.get(what):
                    raise WeightsError(
                        f"has other {what} of {task.name} ({digest:.14}, not {digests.get(what, '')[:14]}); "
                        "have the same files at the same paths"
                    )
        self.brief, self.root = brief, self._root(brief)
        self._see(brief, sizes)
        self.encoder = Encoder(
            self.tasks, device=self.device, dtype=self.dtype, batch_size=self.batch_size, clips=self.clips
        )
        for task in self.tasks:
            self.encoder.prepare(task, brief.category)
        self.started = self.encoder.report
        return self.about()

    def _root(self, brief: Brief) -> Path:
        named = Path(os.environ.get(DATA) or "/") / brief.dataset
        return named if os.environ.get(DATA) and named.is_dir() else brief.root

    def _see(self, brief: Brief, sizes: tuple[str, Sequence[int]] | None) -> None:
        """Refuse a machine where files of the dataset are missing or others."""
        names = sizes[0].split("\n") if sizes else []
        with ThreadPoolExecutor(16) as pool:
            seen = list(pool.map(self._size, names, chunksize=256))
        wrong = [
            name
            for name, mine, size in zip(names, seen, sizes[1] if sizes else (), strict=True)
            if mine != size
        ]
        if not wrong and sizes:
            wrong = [name for name, digest in brief.images.items() if hash_file(self.root / name) != digest]
        if wrong:
            raise DatasetError(
                f"does not see the same images: {len(wrong)} of {len(names)} files of '{brief.dataset}' are "
                f"missing or others below {self.root} there (first {wrong[0]}); have them at the same path, "
                f"or have {DATA} name the folder that holds it there"
            )

    def _size(self, name: str) -> int:
        with suppress(OSError):
            return (self.root / name).stat().st_size
        return -1

    @_answered
    def observe(self, samples: Sequence[Sample], wanted: Sequence[int]) -> Found:
        """Return the evidence of the tasks ``wanted`` for the samples of one slice of theirs."""
        tasks = [self.tasks[number] for number in wanted] if not self.halt.is_set() else []
        for task in tasks:
            task.store, task.slices, task.missing = Kept(), [range(len(samples))], {0}
            task.observer = None if task.order_dependent else task.observer
        self.encoder.report = report = self.started
        self.started = Pass()
        start = time.perf_counter()
        with Progress([("", 0)], quiet=True) as progress, suppress(KeyboardInterrupt):
            observe(
                tasks,
                [self._placed(sample) for sample in samples],
                self.encoder,
                progress,
                workers=self.decoders,
                orient=self.brief.orient,
                stop=self.halt,
            )
        report.seconds["total"] = time.perf_counter() - start
        slices = {
            number: task.store.contents[0]
            for number, task in zip(wanted, tasks, strict=False)
            if isinstance(task.store, Kept) and task.store.contents
        }
        return Found(slices, report, self.encoder.batch_size, peak_memory_mb(self.device))

    def _placed(self, sample: Sample) -> Sample:
        if self.root == self.brief.root:
            return sample
        return replace(sample, image=self.root / below(self.brief.root, sample.image))


@contextmanager
def ray_at(address: str, workers: int, gpus: Sequence[int]) -> Iterator[Any]:
    """Yield the module ``ray``, connected to ``address``, or with a Ray of this machine for "local".

    Raises:
        UsageError: where Ray cannot be reached or started.
    """
    quiet = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    own = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # which binds to the loopback device, on Linux too
        "RAY_AUTH_MODE": "token",  # other users of this machine are kept out as well
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    folder = None
    if address == "local" and "ray" not in sys.modules:
        for name, value in own.items():
            os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():  # the caller's own
        yield ray
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        if address == "local":
            folder = tempfile.mkdtemp(prefix="zsad-ray-")
            with _visible(gpus):
                ray.init(
                    address="local",
                    num_cpus=workers,
                    num_gpus=len(gpus),
                    include_dashboard=False,
                    _temp_dir=folder,
                    **quiet,
                )
        else:
            require_answer(address)
            ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"Ray cannot be used ({' '.join(str(error).split())[:200]})") from error
    try:
        yield ray
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _visible(gpus: Sequence[int]) -> Iterator[None]:
    """Let Ray see these GPUs of those that this process sees, and no others."""
    name = "CUDA_VISIBLE_DEVICES"
    before = os.environ.get(name)
    seen = before.split(",") if before else None
    if gpus:
        os.environ[name] = ",".join(seen[number] if seen else str(number) for number in gpus)
    try:
        yield
    finally:
        if gpus and before is None:
            del os.environ[name]
        elif gpus and before is not None:
            os.environ[name] = before


def require_answer(address: str) -> None:
    """Refuse an address where nobody listens: Ray would wait for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not whole_number(port, 5):
        raise UsageError(f"--cluster {address}: give local, auto or HOST:PORT, as ray start says it")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UsageError(
            f"--cluster {address}: nothing answers there ({error.strerror or error}); see: ray start --head"
        ) from None

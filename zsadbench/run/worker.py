"""A worker of a run on many devices: what it is told, must see and hands back; and the Ray it lives in.

It holds towers and anchors for the whole run, keeps what it observes in memory, and knows no results.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch

from ..clip import find_seconds, find_weights
from ..engine import Clips, Encoder, Pass, Spent, Task, observe, pick_dtype
from ..environment import Seat, code_digest, device_name, installed, peak_memory_mb, whole_number
from ..errors import DatasetError, UsageError, WeightsError, ZsadError
from ..files import hash_file, sha256_of
from ..images import ahead, default_workers
from ..method import Parcel, opened, packed
from ..progress import Progress
from ..records import Contents, Kept
from ..samples import Dataset, Sample
from ..scoring import CategoryScores, Portion, on_cores

HASHED = 32
"""Images whose content is compared, beside the size of all, before a worker is trusted to see the same."""
COUNTING = ("torch", "open_clip_torch", "numpy", "scipy", "numba", "pillow")
"""Packages whose version is the same on all machines: what is computed by others may differ."""
CONNECT = 60.0
"""Seconds that Ray may take to let this process in."""
DATA = "ZSAD_WORKER_DATA"
"""Names the folder that holds one per dataset on a worker's machine, where data lie elsewhere there."""


@dataclass(frozen=True)
class Brief:
    """What a worker is told of a dataset before its first unit.

    ``tasks`` is a parcel of tasks; ``digests`` are those of the files each needs; ``images`` are up to
    ``HASHED`` images with their SHA-256.
    """

    versions: Mapping[str, str]
    tasks: Parcel
    digests: tuple[Mapping[str, str], ...]
    dataset: str
    root: Path
    category: str
    orient: bool
    images: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, tasks: Sequence[Task], data: Dataset) -> Brief:
        """Return the brief of ``tasks`` on a dataset; without any, what scoring on it needs."""
        bare = [
            replace(task, store=Kept(Path()), slices=[], stored={}, missing=set(), observer=None)
            for task in tasks
        ]
        chosen = data.samples[:: max(1, len(data.samples) // HASHED)][:HASHED]
        return cls(
            _versions(),
            packed(bare, {task.name: task.method for task in tasks}, data.root),
            tuple(_digests(task.method) for task in tasks),
            data.id,
            data.root.absolute(),
            data.categories[0],
            data.masks == "none",
            {below(data.root, sample.image): sha256_of(sample.image) for sample in chosen},
        )


def _versions() -> dict[str, str]:
    found = {package: installed(package).partition("+")[0] for package in COUNTING}
    return {"code of zsadbench": code_digest()[:12], **found}


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


def sizes_of(root: Path, contents: Contents) -> tuple[str, list[int]]:
    """Return the names of all files of a dataset below ``root``, a line each, and their sizes."""
    pairs = [(below(root, path), size) for path, size in contents.sizes()]
    return "\n".join(name for name, _ in pairs), [size for _, size in pairs]


@dataclass(frozen=True)
class Found:
    """What came of a unit: the content of each method's slice and its cost, by the task's number."""

    slices: Mapping[int, bytes] = field(repr=False)
    report: Pass
    spent: Mapping[int, Spent] = field(default_factory=dict)
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
        self.clips: Clips = {}
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
        self.brief, self.root = brief, _root(brief.dataset, brief.root)
        self.tasks: list[Task] = opened(brief.tasks, self.root)
        for task, digests in zip(self.tasks, brief.digests, strict=True):
            for what, digest in _digests(task.method).items():
                if digest != digests.get(what):
                    raise WeightsError(
                        f"has other {what} of {task.name} ({digest:.14}, not {digests.get(what, '')[:14]}); "
                        "have the same files at the same paths"
                    )
        self._see(brief, sizes)
        self.encoder = Encoder(
            self.tasks, device=self.device, dtype=self.dtype, batch_size=self.batch_size, clips=self.clips
        )
        for task in self.tasks:
            self.encoder.prepare(task, brief.category)
        self.started = self.encoder.report
        return self.about()

    def _see(self, brief: Brief, sizes: tuple[str, Sequence[int]] | None) -> None:
        """Refuse a machine where files of the dataset are missing or others."""
        names = sizes[0].split("\n") if sizes else []
        seen = ahead(self._size, names, 16)
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
    def observe(self, parcel: Parcel, wanted: Sequence[int]) -> Found:
        """Return the evidence of the tasks ``wanted`` for the samples of one slice of theirs."""
        samples: Sequence[Sample] = opened(parcel, self.root)
        tasks = [self.tasks[number] for number in wanted] if not self.halt.is_set() else []
        stores = [Kept(Path()) for _ in tasks]
        for task, store in zip(tasks, stores, strict=True):
            task.store, task.slices, task.missing, task.spent = store, [range(len(samples))], {0}, Spent()
            task.observer = None if task.order_dependent else task.observer
        self.encoder.report = report = self.started
        self.started = Pass()
        start = time.perf_counter()
        with Progress([("", 0)], quiet=True) as progress, suppress(KeyboardInterrupt):
            observe(
                tasks,
                samples,
                self.encoder,
                progress,
                workers=self.decoders,
                orient=self.brief.orient,
                stop=self.halt,
            )
        report.seconds["total"] = time.perf_counter() - start
        slices = {
            number: store.contents[0] for number, store in zip(wanted, stores, strict=False) if store.contents
        }
        spent = {number: task.spent for number, task in zip(wanted, tasks, strict=False)}
        return Found(slices, report, spent, self.encoder.batch_size, peak_memory_mb(self.device))

    @_answered
    def score(self, parcel: Parcel, dataset: str, root: Path) -> CategoryScores | None:
        """Return what scoring gives of a category of a run on a dataset that was taken before."""
        portion: Portion = opened(parcel, _root(dataset, root))
        return None if self.halt.is_set() else next(on_cores([portion], self.seat.threads))


def _root(dataset: str, root: Path) -> Path:
    """Return where a dataset lies on this machine: ``root``, unless ``DATA`` says another place."""
    named = Path(os.environ.get(DATA) or "/") / dataset
    return named if os.environ.get(DATA) and named.is_dir() else root


def cause_of(error: Exception) -> str:
    """Return in words why a worker is dead."""
    said = str(error)
    if getattr(error, "actor_init_failed", False):
        return said.strip().splitlines()[-1]
    if "node" in said and "died" in said.partition("node")[2][:40]:
        return "its machine was lost"
    if type(error).__name__ == "OutOfMemoryError":
        return "its machine ran out of memory; give fewer workers or a smaller --batch-size"
    return "its process ended; where memory ran out, give fewer workers or a smaller --batch-size"


@contextmanager
def ray_at(
    address: str, workers: int, gpus: Sequence[int], stop: threading.Event, say: Callable[[str], None]
) -> Iterator[Any]:
    """Yield the module ``ray``, connected to ``address``, or with a Ray of this machine for "local".

    Raises:
        UsageError: where Ray cannot be reached or started.
        KeyboardInterrupt: once ``stop`` is set while Ray is waited for.
    """
    quiet = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    own = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # which binds to the loopback device, on Linux too
        "RAY_AUTH_MODE": "token",  # other users of this machine are kept out as well
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    said = {"RAY_DEDUP_LOGS_SKIP_REGEX": ".*"}  # else what dies is told on standard output
    folder = None
    if "ray" not in sys.modules:
        for name, value in (said | own if address == "local" else said).items():
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
            say(f"connecting to Ray at {address}")
            _connect(partial(ray.init, address=address, **quiet), address, stop)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"Ray cannot be used ({' '.join(str(error).split())[:200]})") from error
    try:
        yield ray
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _connect(init: Callable[[], Any], address: str, stop: threading.Event) -> None:
    """Connect on a thread: where settings differ Ray waits without end, and no signal reaches it."""
    failed: list[BaseException] = []

    def connect() -> None:
        try:
            init()
        except BaseException as error:
            failed.append(error)

    thread, end = threading.Thread(target=connect, daemon=True), time.monotonic() + CONNECT
    thread.start()
    while thread.is_alive() and time.monotonic() < end and not stop.is_set():
        thread.join(0.2)
    if stop.is_set():
        raise KeyboardInterrupt
    if thread.is_alive():
        raise UsageError(
            f"--cluster {address}: Ray lets nobody in within {CONNECT:.0f} s; give the address that ray "
            "start says, with the RAY_... variables that are set there"
        )
    if failed:
        raise failed[0]


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

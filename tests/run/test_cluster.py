"""Workers on Ray: the same evidence and records as one process gives, whatever happens to a worker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from signal import SIGINT
from typing import Any

import pytest

from tests.kit import tiny, toy
from tests.kit.factory import make_folder
from tests.kit.rayless import Died, Rayless
from tests.kit.terminal import call
from tests.run.interrupted import differences, state
from zsadbench import environment
from zsadbench.engine import Encoder, Task, encoder
from zsadbench.environment import INSTALL, Devices, Seat, Spread, device_name, seats_here, seats_of, where
from zsadbench.errors import DatasetError, MethodError, UsageError, WeightsError
from zsadbench.images import Loaded
from zsadbench.method import load_method, opened, packed
from zsadbench.records import evidence
from zsadbench.run import cluster, worker
from zsadbench.run.jobs import Request
from zsadbench.run.plan import plan_run
from zsadbench.run.run import Outcome, execute

ZSAD = [sys.executable, "-c", "from zsadbench.cli import main; main()"]
TINY = ["--backbone", "tiny-l14", "--weights", "random", "--set", "size=28"]
FOUR = ("clip", "winclip", "musc", "anoclip+")


class Nodes:
    """Two machines of one CPU each, as far as Ray can tell; the second one may be lost."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        self.second = self.cluster.add_node(num_cpus=1)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def lose(self) -> None:
        """Lose the second machine."""
        self.cluster.remove_node(self.second, allow_graceful=False)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback only
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray = pytest.importorskip("ray", reason=f"workers need Ray: {INSTALL}")
    found = Nodes()
    ray.init(address=found.address, log_to_driver=False)
    yield found
    ray.shutdown()
    found.cluster.shutdown()


HERE = "127.0.0.1:1"
"""The address of workers in this process."""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers in this process, as if on two machines, in place of Ray's."""
    monkeypatch.setattr(cluster, "ray_at", Rayless(2).at)
    monkeypatch.setattr(environment, "find_spec", bool)
    monkeypatch.setattr(worker.Worker, "about", lambda w: ("host", device_name(w.device), str(id(w))))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(encoder, "load_clip", lambda backbone, *_: tiny.load(backbone))
    return make_folder(tmp_path / "parts", each=2)


def run(out: Path, address: str | None, data: Path | str, **options: Any) -> Outcome:
    methods, stop = options.pop("methods", ("clip",)), options.pop("stop", None)
    if methods == ("clip",):
        options = {"backbone": "tiny-l14", "weights": "random", "settings": {"size": "28"}} | options
    request = Request(out=out, cluster=address, quiet=True, workers=1, **options)
    return execute(methods, [str(data)], request, stop)


def after(patch: pytest.MonkeyPatch, slices: int, act: Callable[[], None]) -> None:
    """Act once, when so many slices that workers observed are written."""
    put, seen = evidence.EvidenceStore.put, []

    def counted(store: evidence.EvidenceStore, number: int, content: bytes) -> None:
        put(store, number, content)
        seen.append(number)
        if len(seen) == slices:
            act()

    patch.setattr(evidence.EvidenceStore, "put", counted)


@pytest.mark.usefixtures("here")
def test_a_machine_without_the_images_says_so_first(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mounted" / "parts").mkdir(parents=True)
    monkeypatch.setenv(worker.DATA, str(tmp_path / "mounted"))
    with pytest.raises(DatasetError, match="host does not see the same images: 12 of 12 files of 'parts'"):
        run(tmp_path / "out", HERE, data)
    assert not list((tmp_path / "out").rglob("*.safetensors"))


class Told:
    """A worker in this process, and what it would be told of a dataset."""

    def __init__(self, data: Path, out: Path) -> None:
        options: dict[str, Any] = {"backbone": "tiny-l14", "weights": "random", "settings": {"size": "28"}}
        (self.plan,) = plan_run(["clip"], [str(data)], Request(out=out, quiet=True, workers=1, **options))
        self.brief = worker.Brief.of([job.task for job in self.plan.jobs], self.plan.data)
        self.sizes = worker.sizes_of(self.plan.data.root, self.plan.contents)
        self.worker = worker.Worker(Seat("cpu"), "fp32", None, 1)

    def observe(self) -> Any:
        return self.worker.observe(packed(self.plan.data.samples[:4], {}, self.plan.data.root), [0])

    def take(self, **changes: Any) -> Any:
        return self.worker.take(replace(self.brief, **changes), self.sizes)


@pytest.mark.usefixtures("here")
def test_images_may_lie_elsewhere_on_a_worker_but_must_be_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "one", None, data)
    told = Told(data, tmp_path / "two")
    monkeypatch.setenv(worker.DATA, str(tmp_path / "mounted"))
    elsewhere = make_folder(tmp_path / "mounted" / "parts", each=2)
    data.rename(tmp_path / "away")
    assert told.take()[1] == told.worker.about()[1]
    found = told.observe()
    (first, _) = sorted((tmp_path / "one").rglob("*.safetensors"))
    assert found.slices == {0: first.read_bytes()}
    other = elsewhere / "bolt" / "test" / "good" / "0.png"
    content = other.read_bytes()
    other.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DatasetError, match=r"1 of 12 files .* \(first bolt/test/good/0.png\)"):
        raise told.take()


@pytest.mark.usefixtures("here")
def test_a_worker_refuses_other_code_and_other_weights(data: Path, tmp_path: Path) -> None:
    told = Told(data, tmp_path)
    error = told.take(versions={**told.brief.versions, "torch": "1.0"})
    assert isinstance(error, UsageError) and "and 1.0 is asked for" in str(error)
    error = told.take(digests=({"weights": "random/tiny-l14/1"},))
    assert isinstance(error, WeightsError)
    assert str(error).startswith("has other weights of clip (random/tiny-l1")


@pytest.mark.usefixtures("here")
def test_images_that_fail_are_recorded_and_workers_score(data: Path, tmp_path: Path) -> None:
    broken = data / "bolt" / "test" / "hole" / "1.png"
    broken.write_bytes(broken.read_bytes()[:-30])  # its header is sound
    options: dict[str, Any] = {"methods": (toy.write(tmp_path),), "settings": {"gain": "0.5"}}
    one = run(tmp_path / "one", None, data, **options)
    two = run(tmp_path / "two", HERE, data, **options)
    assert one.failed == two.failed and set(two.failed) == {"bolt/test/hole/1.png"}
    assert differences(state(tmp_path / "one"), state(tmp_path / "two")) == []


def test_files_beside_a_users_file_travel_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = toy.SOURCE.replace("from zsadbench.maps import render", "from .shapes import render")
    (tmp_path / "mine.py").write_text(beside)
    (tmp_path / "shapes.py").write_text("from zsadbench.maps import render\n")
    sent = load_method(f"{tmp_path / 'mine.py'}:Mine", gain=0.25)
    parcel = packed([sent, tmp_path / "a.png"], {"mine": sent}, tmp_path)
    for path in tmp_path.glob("*.py"):
        path.unlink()
    for name in [name for name in sys.modules if name.startswith(type(sent).__module__.partition(".")[0])]:
        monkeypatch.delitem(sys.modules, name)  # as in another process
    method, path = opened(parcel, Path("/there"))
    assert type(method) is not type(sent) and repr(method) == repr(sent) and method.gain == 0.25
    assert [name for name, *_ in parcel.code[0].files] == ["mine", "shapes"]
    assert path == Path("/there/a.png")
    clip = load_method("clip")
    assert packed(clip, {"clip": clip}, tmp_path).code == ()


def test_a_worker_that_cannot_import_a_file_names_it(tmp_path: Path) -> None:
    method = load_method(toy.write(tmp_path))
    parcel = packed(method, {"mine": method}, tmp_path)
    code = replace(parcel.code[0], module="zsad_user_0.mine", files=(("mine", "mine.py", b"import nothing"),))
    with pytest.raises(MethodError, match=r"mine: cannot be imported by a worker.*'nothing'"):
        opened(replace(parcel, code=(code,)), tmp_path)


def deadly(patch: pytest.MonkeyPatch, times: int) -> None:
    """Let workers die over the first image of the cloths, so many times."""
    observe, deaths = Encoder.observe, list[int]()

    def die(encoder: Encoder, loaded: Sequence[Loaded], tasks: Sequence[Task]) -> Any:
        if len(deaths) < times and any(item.sample.key == "cloth/test/good/0.png" for item in loaded):
            deaths.append(1)
            raise Died("its process ended")
        return observe(encoder, loaded, tasks)

    patch.setattr(Encoder, "observe", die)


@pytest.mark.usefixtures("here")
def test_a_worker_that_always_dies_stops_the_run_and_says_where(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly(monkeypatch, cluster.TRIES)
    with pytest.raises(MethodError, match=r"3 workers died at cloth/test/good/0.png.*its process ended"):
        run(tmp_path / "out", HERE, data)
    assert len(list((tmp_path / "out").rglob("*.safetensors"))) <= 1


@pytest.mark.usefixtures("here")
def test_work_of_a_worker_that_dies_is_done_by_another(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "one", None, data)
    monkeypatch.setattr(evidence, "SLICE", 64)
    deadly(monkeypatch, cluster.TRIES - 1)
    words = ["run", "-m", "clip", "-d", data, *TINY, "--workers", "1", "--cluster", HERE]
    assert call(*words, "--out", tmp_path / "two") == 0
    said = capfd.readouterr().err
    assert "worker 1 (host) is replaced: its process ended" in said
    assert re.search(r"worker \d \(cpu \(.*\), host\): \d images, [\d.]+ images/s", said)
    assert differences(state(tmp_path / "one"), state(tmp_path / "two")) == []


@pytest.mark.usefixtures("here")
def test_a_worker_answers_with_what_fails_for_every_image(data: Path, tmp_path: Path) -> None:
    told = Told(data, tmp_path)
    told.take()
    told.worker.tasks[0].method = load_method(
        toy.write(tmp_path, "images = batch.images", "images = batch.no")
    )
    told.worker.tasks[0].observer = None
    error = told.observe()
    assert isinstance(error, MethodError) and f"({tmp_path}/mine.py:" in str(error)


@pytest.mark.usefixtures("here")
def test_an_interruption_keeps_what_is_in_work_and_the_next_run_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "SLICE", 1)
    stop, out = threading.Event(), tmp_path / "two"
    with monkeypatch.context() as patch:
        after(patch, 1, stop.set)
        with pytest.raises(KeyboardInterrupt):
            run(out, HERE, data, stop=stop)
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert 1 <= len(kept) < 8
    run(out, None, data)
    run(tmp_path / "one", None, data)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert differences(state(tmp_path / "one"), state(out)) == []


@pytest.mark.usefixtures("here")
def test_runs_are_scored_again_by_workers_and_no_record_is_of_a_part(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results"
    run(out, None, data)
    run(out, None, data, settings={"size": "42"})
    folders = sorted(path.parent for path in out.rglob("observation.json"))
    words = ["score", *folders, "--protocol", "common-1", "--size", "64", "--workers", "1"]
    assert call(*words) == 0
    one = state(out)
    for path in out.rglob("common-1*/*"):
        path.unlink()
    assert call(*words, "--cluster", HERE) == 0
    assert differences(one, state(out)) == []

    stop, score = threading.Event(), worker.Worker.score

    def last(*given: Any) -> Any:
        stop.set()
        return score(*given)

    monkeypatch.setattr(worker.Worker, "score", last)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "other", HERE, data, stop=stop)
    assert not list((tmp_path / "other").rglob("record.json"))


def test_a_machine_is_lost_and_nothing_differs(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "SLICE", 2)
    options: dict[str, Any] = {"methods": FOUR, "categories": ("pill", "wood"), "limit": 10}
    run(tmp_path / "one", None, "demo", batch_size=2, **options)  # batches end with slices, as workers' do
    with monkeypatch.context() as patch:
        after(patch, 2, nodes.lose)
        outcome = run(tmp_path / "two", nodes.address, "demo", batch_size=2, **options)
    one, two = state(tmp_path / "one"), state(tmp_path / "two")
    assert len([name for name in one if name.endswith(".safetensors")]) == 2 * 6 + 2 * 2
    assert differences(one, two) == []
    for record in outcome.records:
        first, second = record.observation["devices"]
        assert first["device"] == second["device"] == record.observation["environment"]["device"]
        assert first["images"] + second["images"] == 20  # every category twice: by slices, and as a whole
        assert record.observation["seconds"].keys() >= {"load", "text", "encode", "store", "total"}


def test_the_command_on_two_workers_of_this_machine(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason=f"workers need Ray: {INSTALL}")
    words = ["run", "-m", "clip", "-d", str(data), *TINY, "--workers", "1", "--out"]
    process = subprocess.Popen(
        [*ZSAD, *words, str(tmp_path / "two"), "--devices", "cpu:2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        start_new_session=True,
    )
    while process.poll() is None and not any((tmp_path / "two").rglob("observation.json")):
        time.sleep(0.05)
    os.killpg(process.pid, SIGINT)  # as a terminal does
    out, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    *others, last = said.splitlines()
    assert last.startswith("interrupted; what is observed is kept")
    known = re.compile(r"parts: .*|finishing the slice in work.*|worker \d \(cpu.*images/s")
    assert out == "" and not [line for line in others if not known.fullmatch(line)]
    assert call(*words, tmp_path / "two", "-q") == 0


@pytest.mark.parametrize("text", ["", "gpu0", "0,0", "-1", "cpu:0", "cpu:x", "1,", "cpu:2,0", "٣", "auto:2"])
def test_devices_that_there_are_not_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--devices"):
        Devices.of(text)


def test_seats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    assert seats_here(Devices.of("cpu:3")) == ([Seat("cpu", 2)] * 3, ())
    assert seats_here(Devices.of("auto")) == ([Seat("cpu", 7)], ())
    with pytest.raises(UsageError, match="GPU 1 is not on this machine, which has 0"):
        seats_here(Devices.of("1"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert seats_here(Devices.of("auto")) == ([Seat("cuda", 4)] * 4, (0, 1, 2, 3))
    assert seats_here(Devices.of("3,1")) == ([Seat("cuda", 8)] * 2, (3, 1))
    machines = [{"CPU": 16.0, "GPU": 8.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 6.0}]
    assert seats_of(Devices.of("auto"), machines) == [Seat("cuda", 2)] * 9
    assert seats_of(Devices.of("gpu:2"), machines) == [Seat("cuda", 2)] * 2
    assert seats_of(Devices.of("cpu:13"), machines) == [Seat("cpu", 2, 2)] * 13
    assert seats_of(Devices.of("auto"), machines[2:]) == [Seat("cpu", 6, 6)]
    for text in ("0,1", "cpu:27", "gpu:10"):
        with pytest.raises(UsageError, match="--devices"):
            seats_of(Devices.of(text), machines)


def test_what_a_run_computes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(environment, "find_spec", bool)
    assert where("cpu", None, None) == "cpu"
    assert where("auto", "auto", None) == where("auto", "cpu:1", None) == "cpu"
    assert where("auto", "auto", "local") == Spread("local", Devices())
    with pytest.raises(UsageError, match="--device cpu is that of one process"):
        where("cpu", "cpu:2", None)


def test_without_ray_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    assert call("run", "-m", "clip", "-d", data, "--devices", "cpu:2") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "error: workers need Ray: pip install 'zsadbench[cluster]'"


@pytest.mark.parametrize("address", ["nowhere", "host:", "localhost:99999", "127.0.0.1:1"])
def test_a_cluster_that_does_not_answer_is_named(address: str) -> None:
    with pytest.raises(UsageError, match=f"--cluster {address}: "):
        worker.require_answer(address)


def test_a_ray_that_lets_nobody_in_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "CONNECT", 0.3)
    never, stop = threading.Event(), threading.Event()
    with pytest.raises(UsageError, match="--cluster host:1: Ray lets nobody in within 0 s; give the"):
        worker._connect(never.wait, "host:1", stop)
    with pytest.raises(ValueError, match="no such thing"):
        worker._connect(lambda: int("no such thing"), "host:1", stop)
    worker._connect(lambda: None, "host:1", stop)
    stop.set()
    with pytest.raises(KeyboardInterrupt):
        worker._connect(never.wait, "host:1", stop)
    never.set()


def test_other_code_on_a_worker_has_another_digest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = environment.code_digest.__wrapped__()
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    (tmp_path / "environment.py").write_text("changed = True\n")
    assert environment.code_digest.__wrapped__() != whole

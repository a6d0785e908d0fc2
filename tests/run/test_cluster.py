"""Workers on Ray: the same evidence and records as one process gives, whatever happens to a worker."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from signal import SIGINT
from typing import Any

import pytest

from tests.kit import toy
from tests.kit.factory import make_folder
from tests.kit.terminal import call
from tests.run.interrupted import differences, state
from zsadbench import environment
from zsadbench.environment import Devices, Seat, seats_here, seats_of
from zsadbench.errors import DatasetError, MethodError, UsageError, WeightsError
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
    """Two machines of one CPU each, as far as Ray can tell; the second one may be lost, at last."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.mounted = folder
        """Where the second machine looks for data first."""
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        self.second = self.cluster.add_node(num_cpus=1, env_vars={worker.DATA: str(folder)})

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def lose(self) -> None:
        """Lose the second machine."""
        self.cluster.remove_node(self.second, allow_graceful=False)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback only
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray = pytest.importorskip("ray", reason=f"workers need Ray: {cluster.INSTALL}")
        found = Nodes(tmp_path_factory.mktemp("mounted"))
        ray.init(address=found.address, log_to_driver=False)
        yield found
        ray.shutdown()
        found.cluster.shutdown()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "parts", each=2)


def run(
    out: Path,
    address: str | None = None,
    methods: tuple[str, ...] = FOUR,
    where: str = "demo",
    **options: Any,
) -> Outcome:
    stop = options.pop("stop", None)
    if where == "demo":
        options = {"categories": ("pill", "dial", "wood"), "limit": 15} | options
    elif methods == ("clip",):
        options = {"backbone": "tiny-l14", "weights": "random", "settings": {"size": "28"}} | options
    request = Request(out=out, cluster=address, quiet=True, workers=1, **options)
    return execute(methods, [where], request, stop)


def after(patch: pytest.MonkeyPatch, slices: int, act: Callable[[], None]) -> None:
    """Act once, when so many slices that workers observed are written."""
    put, seen = evidence.EvidenceStore.put, []

    def counted(store: evidence.EvidenceStore, number: int, content: bytes) -> None:
        put(store, number, content)
        seen.append(number)
        if len(seen) == slices:
            act()

    patch.setattr(evidence.EvidenceStore, "put", counted)


def test_a_machine_without_the_images_says_so_first(nodes: Nodes, data: Path, tmp_path: Path) -> None:
    (nodes.mounted / "parts").mkdir()
    with pytest.raises(DatasetError, match="does not see the same images: 12 of 12 files of 'parts'"):
        run(tmp_path / "out", nodes.address, ("clip",), str(data))
    (nodes.mounted / "parts").rmdir()
    assert not list((tmp_path / "out").rglob("*.safetensors"))


class Told:
    """A worker in this process, and what it would be told of a dataset."""

    def __init__(self, data: Path, out: Path) -> None:
        options: dict[str, Any] = {"backbone": "tiny-l14", "weights": "random", "settings": {"size": "28"}}
        (self.plan,) = plan_run(["clip"], [str(data)], Request(out=out, quiet=True, workers=1, **options))
        self.brief = worker.Brief.of([job.task for job in self.plan.jobs], self.plan.data)
        self.sizes = cluster._sizes(self.plan.data.root, self.plan.contents)
        self.worker = worker.Worker(Seat("cpu"), "fp32", None, 1)

    def take(self, **changes: Any) -> Any:
        return self.worker.take(replace(self.brief, **changes), self.sizes)


def test_images_may_lie_elsewhere_on_a_worker_but_must_be_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "one", None, ("clip",), str(data))
    told = Told(data, tmp_path / "two")
    monkeypatch.setenv(worker.DATA, str(tmp_path / "mounted"))
    elsewhere = make_folder(tmp_path / "mounted" / "parts", each=2)
    data.rename(tmp_path / "away")
    assert told.take()[1] == told.worker.about()[1]
    found = told.worker.observe(told.plan.data.samples[:4], [0])
    (first, _) = sorted((tmp_path / "one").rglob("*.safetensors"))
    assert found.slices == {0: first.read_bytes()}
    other = elsewhere / "bolt" / "test" / "good" / "0.png"
    content = other.read_bytes()
    other.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DatasetError, match=r"1 of 12 files .* \(first bolt/test/good/0.png\)"):
        raise told.take()


def test_a_worker_refuses_other_code_and_other_weights(data: Path, tmp_path: Path) -> None:
    told = Told(data, tmp_path)
    error = told.take(versions={**told.brief.versions, "torch": "1.0"})
    assert isinstance(error, UsageError) and "and 1.0 is asked for" in str(error)
    error = told.take(digests=({"weights": "random/tiny-l14/1"},))
    assert isinstance(error, WeightsError)
    assert str(error).startswith("has other weights of clip (random/tiny-l1")


def test_a_users_file_travels_by_content_and_images_that_fail_are_recorded(
    nodes: Nodes, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = data / "bolt" / "test" / "hole" / "1.png"
    broken.write_bytes(broken.read_bytes()[:-30])  # its header is sound
    spec = toy.write(tmp_path)
    one = run(tmp_path / "one", None, (spec,), str(data), settings={"gain": "0.5"})
    mine, away = tmp_path / "mine.py", tmp_path / "away.py"
    after(monkeypatch, 1, lambda: (away.rename(mine), None)[1])
    of = worker.Brief.of
    monkeypatch.setattr(worker.Brief, "of", lambda *given: (of(*given), mine.rename(away))[0])
    options = {"settings": {"gain": "0.5"}, "devices": "cpu:1"}
    two = run(tmp_path / "two", nodes.address, (spec,), str(data), **options)
    assert one.failed == two.failed and set(two.failed) == {"bolt/test/hole/1.png"}
    assert differences(state(tmp_path / "one"), state(tmp_path / "two")) == []


def test_files_beside_a_users_file_travel_too(tmp_path: Path) -> None:
    beside = toy.SOURCE.replace("from zsadbench.maps import render", "from .shapes import render")
    (tmp_path / "mine.py").write_text(beside)
    (tmp_path / "shapes.py").write_text("from zsadbench.maps import render\n")
    method = load_method(f"{tmp_path / 'mine.py'}:Mine", gain=0.25)
    content = pickle.dumps((packed(method), pickle.dumps(method)))
    for path in tmp_path.glob("*.py"):
        path.unlink()
    code = (
        "import pickle, sys; from zsadbench.method import opened\n"
        "parcel, method = pickle.load(sys.stdin.buffer); opened(parcel, 'mine')\n"
        "method = pickle.loads(method)\n"
        "print(method.gain, [name for name, path, source in parcel.files])"
    )
    done = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, check=True)
    assert done.stdout.decode() == "0.25 ['mine', 'shapes']\n"
    assert packed(load_method("clip")) is None


def test_a_worker_that_cannot_import_a_file_names_it(tmp_path: Path) -> None:
    method = load_method(toy.write(tmp_path))
    parcel = packed(method)
    assert parcel
    other = parcel.__class__(
        "zsad_user_0.mine", ((*parcel.files[0][:2], b"import nothing_of_that_name"),), ""
    )
    with pytest.raises(MethodError, match=r"mine: cannot be imported by a worker.*nothing_of_that_name"):
        opened(other, "mine")


def test_a_worker_that_always_dies_stops_the_run_and_says_where(
    nodes: Nodes, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "TRIES", 2)
    deadly = "        import os\n        if 'cloth/test/good/0.png' in batch.keys:\n            os._exit(1)\n"
    source = toy.SOURCE.replace("        images = batch.images\n", f"{deadly}        images = batch.images\n")
    assert source != toy.SOURCE
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(MethodError, match=r"2 workers died at cloth/test/good/0.png.*its process ended"):
        run(tmp_path / "out", nodes.address, (f"{tmp_path / 'mine.py'}:Mine",), str(data), devices="cpu:1")
    assert len(list((tmp_path / "out").rglob("*.safetensors"))) <= 1


def test_a_worker_answers_with_what_fails_for_every_image(data: Path, tmp_path: Path) -> None:
    told = Told(data, tmp_path)
    told.take()
    told.worker.tasks[0].method = load_method(
        toy.write(tmp_path, "images = batch.images", "images = batch.no")
    )
    told.worker.tasks[0].observer = None
    error = told.worker.observe(told.plan.data.samples[:4], [0])
    assert isinstance(error, MethodError) and f"({tmp_path}/mine.py:" in str(error)


def test_an_interruption_keeps_what_is_in_work_and_the_next_run_goes_on(
    nodes: Nodes, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "SLICE", 1)
    stop, out = threading.Event(), tmp_path / "two"
    with monkeypatch.context() as patch:
        after(patch, 1, stop.set)
        with pytest.raises(KeyboardInterrupt):
            run(out, nodes.address, ("clip",), str(data), stop=stop, devices="cpu:1")
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert 1 <= len(kept) < 8
    run(out, None, ("clip",), str(data))
    run(tmp_path / "one", None, ("clip",), str(data))
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert differences(state(tmp_path / "one"), state(out)) == []


def test_a_machine_is_lost_and_nothing_differs(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "SLICE", 3)
    run(tmp_path / "one", batch_size=3)  # batches end with slices, which workers do not cut
    with monkeypatch.context() as patch:
        after(patch, 2, nodes.lose)
        outcome = run(tmp_path / "two", nodes.address, batch_size=3)
    one, two = state(tmp_path / "one"), state(tmp_path / "two")
    assert len([name for name in one if name.endswith(".safetensors")]) == 2 * 6 + 2 * 3
    assert differences(one, two) == []
    for record in outcome.records:
        first, second = record.observation["devices"]
        assert first["device"] == second["device"] == record.observation["environment"]["device"]
        assert first["images"] + second["images"] == 30  # every category twice: by slices, and as a whole
        assert record.observation["seconds"].keys() >= {"load", "text", "encode", "store", "total"}


def test_the_command_on_two_workers_of_this_machine(nodes: Nodes, data: Path, tmp_path: Path) -> None:
    words = ["run", "-m", "clip", "-d", str(data), *TINY, "--workers", "1", "--out"]
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "OMP_NUM_THREADS": "2"
    }
    process = subprocess.Popen(
        [*ZSAD, *words, str(tmp_path / "two"), "--devices", "cpu:2"],
        stderr=subprocess.PIPE,
        text=True,
        env=surroundings,
    )
    while process.poll() is None and not any((tmp_path / "two").rglob("observation.json")):
        time.sleep(0.05)
    process.send_signal(SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "interrupted; what is observed is kept" in said
    assert "Traceback" not in said
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
    assert cluster.where("cpu", None, None) == "cpu"
    assert cluster.where("auto", "auto", None) == cluster.where("auto", "cpu:1", None) == "cpu"
    assert cluster.where("auto", "auto", "local") == cluster.Spread("local", Devices())
    with pytest.raises(UsageError, match="--device cpu is that of one process"):
        cluster.where("cpu", "cpu:2", None)


def test_without_ray_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    assert call("run", "-m", "clip", "-d", data, "--devices", "cpu:2") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "error: workers need Ray: pip install 'zsadbench[cluster]'"


@pytest.mark.parametrize("address", ["nowhere", "host:", "localhost:99999", "127.0.0.1:1"])
def test_a_cluster_that_does_not_answer_is_named(address: str) -> None:
    with pytest.raises(UsageError, match=f"--cluster {address}: "):
        worker.require_answer(address)


def test_other_code_on_a_worker_has_another_digest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = environment.code_digest.__wrapped__()
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    (tmp_path / "environment.py").write_text("changed = True\n")
    assert environment.code_digest.__wrapped__() != whole

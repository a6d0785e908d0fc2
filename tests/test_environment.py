"""What this machine is and can do."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from zsadbench import environment


@pytest.mark.parametrize(
    ("says", "slow"),
    [
        ("flags\t\t: fpu sse avx2 avx512f\n", {"bf16", "fp16"}),
        ("flags\t\t: fpu avx512_bf16\nflags\t\t: fpu avx512_bf16\n", {"fp16"}),
        ("flags\t\t: fpu amx_bf16 avx512_fp16\n", set()),
        ("Features\t: fp asimd fphp asimdhp bf16\n", set()),
        ("Features\t: fp asimd\n", {"bf16", "fp16"}),
        ("vendor_id\t: a machine whose model name holds bf16\n", set()),
        (None, set()),
    ],
)
def test_half_precision_is_emulated_where_the_processor_says_so(
    monkeypatch: pytest.MonkeyPatch, says: str | None, slow: set[str]
) -> None:
    def read(path: Path) -> str:
        assert path == Path("/proc/cpuinfo")
        if says is None:
            raise FileNotFoundError
        return says

    monkeypatch.setattr(Path, "read_text", read)
    emulates = environment.emulates.__wrapped__
    assert {dtype for dtype in ("fp32", "bf16", "fp16") if emulates(dtype)} == slow


def test_the_digest_of_the_code_follows_every_source_and_card(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The methods lie beside the package in a checkout, and inside it in a wheel."""
    digest, methods = environment.code_digest.__wrapped__, import_module("zsadbench.methods")
    files = {
        "zsadbench/a.py": b"a",
        "zsadbench/room/b.py": b"b",
        "methods/clip.py": b"c",
        "methods/clip.toml": b"d",
    }

    def lay(place: Path, changed: dict[str, bytes], wheel: bool = False) -> str:
        home = place / "zsadbench" if wheel else place
        for name, content in (files | changed).items():
            path = (home if name.startswith("methods") else place) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        monkeypatch.setattr(environment, "__file__", str(place / "zsadbench/environment.py"))
        monkeypatch.setattr(methods, "__path__", [str(home / "methods")])
        found: str = digest()
        return found

    found = [lay(tmp_path / str(number), {name: b"other"}) for number, name in enumerate(files)]
    whole = lay(tmp_path / "whole", {})
    assert len({whole, *found}) == 5
    assert lay(tmp_path / "wheel", {}, wheel=True) == whole
    assert lay(tmp_path / "whole", {"zsadbench/notes.txt": b"other"}) == whole

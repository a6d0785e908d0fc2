"""What this machine is and can do."""

from __future__ import annotations

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

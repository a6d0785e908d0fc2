"""What several tests of runs watch."""

from __future__ import annotations

from typing import Any

import pytest

from zsadbench.engine import Encoder


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that reach the encoder, as they come."""
    keys: list[str] = []
    observe = Encoder.observe

    def watch(self: Encoder, loaded: Any, tasks: Any) -> Any:
        keys.extend(item.sample.key for item in loaded)
        return observe(self, loaded, tasks)

    monkeypatch.setattr(Encoder, "observe", watch)
    return keys

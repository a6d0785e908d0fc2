"""The command line, called in this process."""

from __future__ import annotations

import signal
import sys

import pytest

from zsadbench import cli


def call(*words: object) -> int:
    """Run ``zsad`` with ``words`` and return its exit code; what it printed is for the caller to capture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["zsad", *map(str, words)])
        handler = signal.getsignal(signal.SIGINT)
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            signal.signal(signal.SIGINT, handler)
    assert isinstance(ended.value.code, int), ended.value.code
    return ended.value.code

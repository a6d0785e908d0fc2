"""The command line, called in this process."""

from __future__ import annotations

import signal
import sys
from functools import cache

import pytest
import typer.main

from zsadbench import cli

_command = cache(typer.main.get_command)
"""The verbs are built from their signatures once, not for every call."""


def call(*words: object) -> int:
    """Run ``zsad`` with ``words`` and return its exit code; what it printed is for the caller to capture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["zsad", *map(str, words)])
        patch.setattr(typer.main, "get_command", _command)
        handler = signal.getsignal(signal.SIGINT)
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            signal.signal(signal.SIGINT, handler)
    assert isinstance(ended.value.code, int), ended.value.code
    return ended.value.code

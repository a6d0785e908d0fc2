"""What of Ray a team of workers uses, in this process: workers take turns, and die when they are told to."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from types import SimpleNamespace
from typing import Any


class Died(Exception):
    """A worker's end: raised in it, it is dead from then on."""


class Failed(Exception):
    """Stands for an error in a worker that is none of ours."""


class Call:
    """A call of a worker, made when it is waited for."""

    def __init__(self, actor: Actor, name: str, given: Sequence[Any]) -> None:
        self.actor, self.name = actor, name
        self.given = pickle.dumps(given)
        self.done = False
        self.answer: Any = None
        self.error: Exception | None = None

    def make(self) -> None:
        """Make it, once."""
        if self.done:
            return
        self.done = True
        try:
            if self.actor.dead:
                raise Died("its process ended")
            answer = getattr(self.actor.worker, self.name)(*pickle.loads(self.given))
            self.answer = pickle.loads(pickle.dumps(answer))
        except Died as error:
            self.actor.dead, self.error = True, error


class Actor:
    """A worker, and what calls it."""

    def __init__(self, cls: type, given: Sequence[Any]) -> None:
        self.worker, self.dead = cls(*given), False

    def __getattr__(self, name: str) -> Any:
        def remote(*given: Any) -> Call:
            return Call(self, name, given)

        def at_once(*given: Any) -> None:
            remote(*given).make()

        return SimpleNamespace(remote=remote, options=lambda **_: SimpleNamespace(remote=at_once))


class Rayless:
    """The functions of the module ``ray``; ``workers`` are machines of one CPU each."""

    exceptions = SimpleNamespace(RayError=Died, RayTaskError=Failed)

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def nodes(self) -> list[dict[str, Any]]:
        """Return the machines."""
        return [{"Alive": True, "Resources": {"CPU": 1.0}}] * self.workers

    def remote(self, **_: Any) -> Callable[[type], Any]:
        """Return what makes workers of a class."""
        return lambda cls: SimpleNamespace(
            options=lambda **_: SimpleNamespace(remote=lambda *given: Actor(cls, given))
        )

    def put(self, value: Any) -> Any:
        """Return a value that workers are given."""
        return value

    def kill(self, actor: Actor) -> None:
        """End a worker."""
        actor.dead = True

    def wait(self, calls: list[Call], num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        """Make the first of the calls."""
        calls[0].make()
        return calls[:1], calls[1:]

    def get(self, call: Call) -> Any:
        """Return what a call gave."""
        if call.error:
            raise call.error
        return call.answer

    @contextmanager
    def at(
        self, address: str, workers: int, gpus: Sequence[int], stop: Event, say: Callable[[str], None]
    ) -> Iterator[Rayless]:
        """Stand in for a Ray that is started, or reached."""
        yield self

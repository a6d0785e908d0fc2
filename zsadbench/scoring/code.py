"""Whose code renders the maps of a record: the toolkit's own, or a user's file that the user names again.

Nothing that lies in a folder of results may say which code runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import RecordError, UsageError
from ..method import Resolved, flattened, is_users, override, resolve, source_digest
from ..text import terminal


@dataclass(frozen=True)
class UserMethods:
    """Users' methods whose code may run: ``FILE.py:CLASS`` or ``package.module:CLASS``.

    Their code must be what it was when the evidence was made, unless ``allow_changed``.

    Raises:
        UsageError: for the name of a method of the toolkit, which needs no leave.
    """

    specs: tuple[str, ...] = ()
    allow_changed: bool = False

    def __post_init__(self) -> None:
        for spec in self.specs:
            if not is_users(spec):
                raise UsageError(f"--method {spec}: name a user's method here, as FILE.py:CLASS")

    def resolve(self, said: Mapping[str, Any], dataset: str, domain: str) -> Resolved:
        """Return the method that a record's ``said`` block describes, as it runs on ``dataset``.

        Raises:
            RecordError: if it is a user's and not among these, or its code has changed.
        """
        spec = _spec(said)
        if not is_users(spec):
            return resolve(spec, dataset=dataset, domain=domain)
        for spec in self.specs:
            resolved = resolve(spec, dataset=dataset, domain=domain)
            if resolved.card.id == said["id"]:
                self._check(said, resolved, spec)
                return resolved
        name = terminal(said["id"])
        raise RecordError(
            f"{name}: is a user's method, and code is not taken from a folder of results; name its file with "
            f"--method FILE.py:{name.rpartition('.')[2]}"
        )

    def _check(self, said: Mapping[str, Any], resolved: Resolved, spec: str) -> None:
        if self.allow_changed or said.get("source_sha256") == source_digest(resolved.card):
            return
        if said.get("source_sha256"):
            reason = f"is not the code it was observed with (SHA-256 {said['source_sha256']:.12}...)"
        else:
            reason = "may be other code than it was observed with: zsadbench 0.1 kept no digest of it"
        raise RecordError(f"{spec}: {reason}; run it again, or take it as it is with --allow-changed")


NOBODY = UserMethods()
"""No user's code may run."""


def restore(observation: Mapping[str, Any], users: UserMethods) -> Resolved:
    """Return the method of an observation with every recorded parameter.

    Raises:
        RecordError: if the method's card has another version now, or it is a user's that ``users`` lacks.
    """
    said, dataset = observation["method"], observation["dataset"]
    resolved = users.resolve(said, dataset["id"], dataset["domain"])
    if not is_users(_spec(said)) and resolved.card.version != said["version"]:
        raise RecordError(
            f"evidence was made by version {said['version']} of {said['id']}, this is version "
            f"{resolved.card.version}; run the method again"
        )
    method = override(resolved.method, flattened(resolved.method, said["parameters"]))
    return dataclasses.replace(
        resolved,
        method=method,
        inductive=override(method, resolved.card.inductive),
        parameters=said["parameters"],
    )


def _spec(said: Mapping[str, Any]) -> str:
    return str(said.get("spec") or said["id"])


def changed_code(observation: Mapping[str, Any], resolved: Resolved) -> bool:
    """Tell whether a user's method has other code than the evidence was made with."""
    said, now = observation["method"], source_digest(resolved.card)
    return bool(resolved.card.version != said["version"] or said.get("source_sha256", now) != now)

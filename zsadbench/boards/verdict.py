"""What the gate found: for people, for machines, and as annotations of a GitHub job."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Change:
    """One value, or one whole row (``metric`` empty), that is not what the baseline says.

    Values are rates in [0, 1], average ranks places from 1.
    """

    kind: Literal["fell", "improved"]
    text: str
    dataset: str
    protocol: str
    method: str
    variant: str
    backbone: str
    category: str
    label: str
    metric: str = ""
    before: float | None = None
    now: float | None = None


@dataclass
class Verdict:
    """What the gate found; it is passed when nothing ``fell``.

    ``notes`` say which of several records was judged, and what could not be compared because one side does
    not know it.
    """

    baseline: Path
    tolerance: float
    """Percent points a rate may fall, places an average rank."""
    changes: list[Change] = field(default_factory=list)
    compared: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def fell(self) -> list[str]:
        """Everything that fell, in words."""
        return [change.text for change in self.changes if change.kind == "fell"]

    @property
    def improved(self) -> list[str]:
        """Everything that improved, in words."""
        return [change.text for change in self.changes if change.kind == "improved"]

    @property
    def summary(self) -> str:
        """The verdict in one line."""
        state = f"failed: {len(self.fell)} fell," if self.fell else "passed:"
        return (
            f"Gate {state} {self.compared} values compared with {self.baseline}, "
            f"tolerance {self.tolerance:g} points."
        )

    def to_json(self) -> str:
        """Return the verdict as a JSON object."""
        content: dict[str, Any] = {
            "passed": not self.fell,
            "baseline": str(self.baseline),
            "tolerance": self.tolerance,
            "compared": self.compared,
            "notes": self.notes,
        }
        for kind in ("fell", "improved"):
            chosen = [asdict(change) for change in self.changes if change.kind == kind]
            content[kind] = [{key: value for key, value in each.items() if key != "kind"} for each in chosen]
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def annotations(self) -> list[str]:
        """Return the workflow commands by which a GitHub job shows the verdict beside a change."""
        lines = [("error", text) for text in self.fell] + [("notice", text) for text in self.notes]
        lines += [] if self.fell else [("notice", self.summary)]
        return [f"::{level} title=zsad gate::{_command(text)}" for level, text in lines]


def _command(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

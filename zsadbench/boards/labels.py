"""Names of rows: what sets a run apart from others of its method, in words; the digest as a last resort."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..files import digest_of
from ..records import Record

Entry = tuple[Record, ...]
"""Records that differ in the seed only."""
Facts = dict[str, str]
"""What there is to say of a record: a name for it -> the words; empty where there is nothing to say."""

_UNSAID = ("name", "weights", "checkpoint", "seed")  # said in other words, or by the spread over seeds
_LONGEST = 24


def labels_of(entries: Sequence[Entry]) -> list[str]:
    """Return a label per entry, no two alike.

    Map parameters and the number of seeds are always said, the backbone where a board has several;
    checkpoints, parameters and prompt files where they differ among entries of one name; of single prompts
    and words, and of files, as few as tell these entries apart.
    """
    several = len({entry[0].backbone for entry in entries}) > 1
    said = [_always(entry, several) for entry in entries]
    for tell, choose in ((_facts, _differing), (_details, _telling), (_digest, _differing)):
        names = [_label(entry, parts) for entry, parts in zip(entries, said, strict=True)]
        for same in _alike(names):
            for place, more in zip(same, choose([tell(entries[i]) for i in same]), strict=True):
                said[place] = more + said[place]
    return [_label(entry, parts) for entry, parts in zip(entries, said, strict=True)]


def short_digest(records: Sequence[Record]) -> str:
    """Return the short digest of what was observed, over all seeds."""
    digests = sorted(record.observation_digest for record in records)
    return (digests[0] if len(digests) == 1 else digest_of(digests))[:12]


def map_parameters(record: Record) -> Mapping[str, Any]:
    """Return what was set when the maps were rendered."""
    return record.protocol.get("map_parameters") or {}


def _alike(names: Sequence[str]) -> list[list[int]]:
    counts = Counter(names)
    return [[i for i, own in enumerate(names) if own == name] for name in counts if counts[name] > 1]


def _label(entry: Entry, parts: Sequence[str]) -> str:
    return f"{entry[0].method} ({', '.join(parts)})" if parts else entry[0].method


def _always(entry: Entry, several: bool) -> list[str]:
    record = entry[0]
    parts = [f"{name}={_text(value)}" for name, value in sorted(map_parameters(record).items())]
    parts += [record.backbone] if several and record.backbone else []
    return parts + ([f"{len(entry)} seeds"] if len(entry) > 1 else [])


def _differing(facts: Sequence[Facts]) -> list[list[str]]:
    """Return for each entry of one name every fact in which it differs from another one."""
    keys = dict.fromkeys(key for each in facts for key in each)
    differing = [key for key in keys if len({each.get(key, "") for each in facts}) > 1]
    return [[each[key] for key in differing if each.get(key)] for each in facts]


def _telling(facts: Sequence[Facts]) -> list[list[str]]:
    """Return for each entry of one name as few facts as tell it from the others."""
    said: list[tuple[str, ...]] = [()] * len(facts)
    for key in dict.fromkeys(key for each in facts for key in each):
        more = [(*parts, each.get(key, "")) for parts, each in zip(said, facts, strict=True)]
        said = more if len(set(more)) > len(set(said)) else said
    return [list(filter(None, parts)) for parts in said]


def _facts(entry: Entry) -> Facts:
    """Return what usually sets runs of one method apart, in the order to be said."""
    record = entry[0]
    observation, method = record.observation, record.observation["method"]
    checkpoint = observation.get("checkpoint") or {}
    prompts = observation.get("prompts")
    facts = {
        "checkpoint": _training(checkpoint),
        "training seed": _named("training seed", checkpoint.get("seed")),
        "prompts": f"prompts: {prompts}" if prompts else "",
    }
    flat = _flat(method.get("parameters") or {})
    facts |= {name: f"{name}={_text(value)}" for name, value in flat if not _is_texts(value)}
    facts["dtype"] = str((observation.get("environment") or {}).get("dtype") or "")
    facts["weights"] = str((observation.get("backbone") or {}).get("weights") or "")
    facts["version"] = _named("version", method.get("version"))
    return facts


def _details(entry: Entry) -> Facts:
    """Return what is long to say: each prompt, the words of each category, the file of a checkpoint."""
    observation = entry[0].observation
    flat = _flat(observation["method"].get("parameters") or {})
    lists = [(name, text) for name, value in flat if _is_texts(value) for text in value]
    facts = {f"{name} {text}": f"{name}: '{_text(text)}'" for name, text in lists}
    words = observation.get("wordings") or {}
    facts |= {f"words {name}": f"{name}: '{_text(text)}'" for name, text in words.items()}
    facts["file"] = str((observation.get("checkpoint") or {}).get("file") or "")
    return facts


def _digest(entry: Entry) -> Facts:
    return {"digest": short_digest(entry)}


def _training(checkpoint: Mapping[str, Any]) -> str:
    if not checkpoint:
        return ""
    by = "authors' file" if checkpoint.get("source") else "trained"
    place = f" on {checkpoint['dataset']}" if checkpoint.get("dataset") else ""
    epoch = _named("epoch", checkpoint.get("epoch"))
    return ", ".join(filter(None, [by + place, epoch]))


def _named(name: str, value: object) -> str:
    return "" if value is None else f"{name} {value}"


def _flat(parameters: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        elif name not in _UNSAID:
            yield name, value


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = ",".join(map(_text, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."

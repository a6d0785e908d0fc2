"""Captions in the words of zero-shot prompts: templates x states x names, varied.

A caption says a state of a thing.  The thing is a category's name, a general noun or words that the
tokenizer does not know, as the names of categories never seen will be.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from .noise import Rng

GOOD = "good"
"""The state of a sound specimen."""

ANY = "any"
"""The state that a caption names when it says that there is a fault, not which."""

_UNKNOWN = "zzz"
_GENERAL = ("object", "item", "product", "part", "thing", "surface", "texture", "sample")
_NOUNS = (
    *("photo",) * 8, "image", "picture", "picture", "industrial photo", "industrial image",
    "manufacturing image", "textural photo", "surface picture", "snapshot", "view",
)  # fmt: skip
_LOOKS = (
    "", "", "", "", "", "cropped", "close-up", "bright", "dark", "jpeg corrupted", "blurry", "bad", "good",
    "low resolution", "black and white", "clear",
)  # fmt: skip
_ARTICLES = ("a", "a", "the", "the", "my", "one", "this", "an")
_ADJECTIVES = (
    "small", "large", "red", "green", "blue", "yellow", "white", "black", "grey", "shiny", "dull", "round",
    "old", "new", "heavy", "light", "long", "short", "wooden", "metal", "plastic", "wet", "dry", "warm",
    "cold", "simple", "cheap", "big", "flat", "thick", "thin", "modern",
)  # fmt: skip
_PURPOSES = (
    "", "", "", "", "", "", " for visual inspection", " for anomaly detection", " in the scene",
    " on a table", " in a factory",
)  # fmt: skip
_FAULT_NOUNS = {
    "scratch": ("scratch", "scratches"),
    "crack": ("crack", "cracks"),
    "hole": ("hole", "holes"),
    "stain": ("stain", "stains"),
    "contamination": ("contamination", "dirt"),
    "cut": ("cut", "cuts"),
    "broken": ("breakage", "broken piece"),
    "missing_part": ("missing part", "missing piece"),
    "misplaced_part": ("misplaced part", "misplaced piece"),
    "discoloration": ("discoloration", "color fault"),
}
_FAULT_STATES = {
    "scratch": ("scratched {}",),
    "crack": ("cracked {}",),
    "hole": ("punctured {}",),
    "stain": ("stained {}",),
    "contamination": ("contaminated {}", "dirty {}"),
    "cut": ("cut {}", "sliced {}"),
    "broken": ("broken {}", "chipped {}"),
    "missing_part": ("incomplete {}",),
    "misplaced_part": ("misaligned {}", "wrongly assembled {}"),
    "discoloration": ("discolored {}",),
}
_EVILS = (
    "flaw",
    "defect",
    "damage",
    "flaws",
    "defects",
    "a flaw",
    "a defect",
    "any damage",
    "anomaly",
    "fault",
)
_SOUND = (
    "{}", "{}", "normal {}", "normal {}", "flawless {}", "perfect {}", "unblemished {}", "intact {}",
    "undamaged {}", "good {}", "{} in good condition", "faultless {}", "sound {}", "healthy {}", "clean {}",
    *(f"{{}} without {evil}" for evil in _EVILS),
    *(f"{{}} without {nouns[0]}" for nouns in _FAULT_NOUNS.values()),
)  # fmt: skip
_FAULTY = (
    "damaged {}", "damaged {}", "anomalous {}", "anomalous {}", "abnormal {}", "imperfect {}", "blemished {}",
    "defective {}", "faulty {}", "flawed {}", "{} in bad condition", "unhealthy {}", "broken {}",
    *(f"{{}} with {evil}" for evil in _EVILS),
)  # fmt: skip


@dataclass(frozen=True)
class Caption:
    """A text and what it says: ``category`` ("" if it fits all), ``state`` (good, any, or a fault)."""

    text: str
    category: str
    state: str

    def fits(self, category: str, fault: str) -> bool:
        """Return whether the caption is true of a picture of ``category`` with ``fault`` (or good)."""
        states = (GOOD,) if self.state == GOOD else (fault,) if self.state == ANY else (self.state,)
        return self.category in ("", category) and fault in states and (fault == GOOD) == (self.state == GOOD)


def phrases(state: str) -> tuple[str, ...]:
    """Return the state phrases, with ``{}`` for the thing, that say ``state``."""
    if state == GOOD:
        return _SOUND
    if state == ANY:
        return _FAULTY
    nouns = _FAULT_NOUNS[state]
    return (*_FAULT_STATES[state], *(f"{{}} with {a}{noun}" for noun in nouns for a in ("", "a ")))


def withheld(category: str, phrase: str) -> bool:
    """Return whether training never joins ``phrase`` with the name ``category`` (one pair in eight)."""
    return phrase != "{}" and zlib.crc32(f"{category}/{phrase}".encode()) % 8 == 0


def thing(rng: Rng, category: str) -> tuple[str, bool]:
    """Return words for a specimen, and whether they name its category."""
    kind = rng.random()
    if kind < 0.4:
        return category.replace("_", " "), True
    if kind < 0.6:
        return str(rng.choice(_GENERAL)), False
    return " ".join([_UNKNOWN] * int(rng.integers(1, 4))), False


def frame(rng: Rng) -> str:
    """Return a template with one ``{}``."""
    article = str(rng.choice(_ARTICLES))
    kind = rng.random()
    if kind < 0.08:
        text = "{}"
    elif kind < 0.16:
        text = f"there is {article} {{}}{rng.choice(_PURPOSES)}"
    else:
        look, noun = str(rng.choice(_LOOKS)), str(rng.choice(_NOUNS))
        head = " ".join(word for word in (str(rng.choice(("a", "a", "an", "the"))), look, noun) if word)
        text = f"{head} of {article} {{}}{rng.choice(_PURPOSES)}"
    return text + str(rng.choice((".", "")))


def caption(rng: Rng, category: str, state: str) -> Caption:
    """Return a caption that says ``state`` of a specimen of ``category``."""
    words, named = thing(rng, category)
    allowed = [p for p in phrases(state) if not (named and withheld(category, p))]
    phrase = str(allowed[int(rng.integers(len(allowed)))])
    if rng.random() < 0.25:
        adjective = str(rng.choice(_ADJECTIVES))
        words, phrase = (
            (words, f"{adjective} {phrase}") if rng.random() < 0.5 else (f"{adjective} {words}", phrase)
        )
    return Caption(frame(rng).format(phrase.format(words)), category if named else "", state)


def vocabulary(categories: tuple[str, ...]) -> tuple[str, ...]:
    """Return every text from which a caption is put together, the unknown word left out."""
    states = [phrase for state in (GOOD, ANY, *_FAULT_NOUNS) for phrase in phrases(state)]
    frames = ["there is", "of", ".", *_NOUNS, *_LOOKS, *_ARTICLES, *_ADJECTIVES, *_PURPOSES, *_GENERAL]
    names = [name.replace("_", " ") for name in categories]
    return tuple(sorted({text.replace("{}", "").strip() for text in (*states, *frames, *names)} - {""}))

"""Captions in the words of zero-shot prompts: templates x states x names, varied.

A caption says a state of a thing.  The thing is a category's name, a general noun or words that the
tokenizer does not know, as the names of categories never seen will be.  Other words in it are true of the
picture where anything is known about them (``traits.py``), and anything at all where not.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from .noise import Rng
from .traits import COLOURS, GROUPS, group

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
    "low resolution", "black and white", "clear", "smooth", "grainy",
)  # fmt: skip
_ARTICLES = ("a", "a", "the", "the", "my", "one", "this", "an")
ADJECTIVES = (
    *COLOURS, "small", "large", "shiny", "dull", "round", "old", "new", "heavy", "light", "long", "short",
    "wooden", "metal", "plastic", "wet", "dry", "warm", "cold", "simple", "cheap", "big", "flat", "thick",
    "thin", "modern",
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
    """A text and what it says.

    ``category`` is "" if it fits all, ``state`` good, any, or a fault; ``traits`` are its words that are
    not true of every picture.
    """

    text: str
    category: str
    state: str
    traits: frozenset[str] = frozenset()

    def fits(self, category: str, fault: str, traits: frozenset[str] = frozenset()) -> bool:
        """Return whether it is true of a picture of ``category`` with ``fault`` (or good) and ``traits``."""
        states = (GOOD,) if self.state == GOOD else (fault,) if self.state == ANY else (self.state,)
        about = self.category in ("", category) and self.traits <= traits
        return about and fault in states and (fault == GOOD) == (self.state == GOOD)


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
    if rng.random() < 0.4:
        return category.replace("_", " "), True
    return something(rng), False


def something(rng: Rng) -> str:
    """Return words for a specimen that do not name a category."""
    if rng.random() < 1 / 3:
        return str(rng.choice(_GENERAL))
    return " ".join([_UNKNOWN] * int(rng.integers(1, 4)))


def frame(rng: Rng, look: str) -> str:
    """Return a template with one ``{}``, of a picture that looks ``look``."""
    article = str(rng.choice(_ARTICLES))
    kind = 1.0 if look else rng.random()
    if kind < 0.1:
        text = "{}"
    elif kind < 0.2:
        text = f"there is {article} {{}}{rng.choice(_PURPOSES)}"
    else:
        noun = str(rng.choice(_NOUNS))
        head = " ".join(word for word in (str(rng.choice(("a", "a", "an", "the"))), look, noun) if word)
        text = f"{head} of {article} {{}}{rng.choice(_PURPOSES)}"
    return text + str(rng.choice((".", "")))


def true_word(rng: Rng, words: Sequence[str], traits: frozenset[str]) -> str:
    """Return one of ``words``: one of ``traits`` half of the time, else one that may be true of anything."""
    known = [word for word in words if word in traits]
    free = [word for word in words if not group(word)]
    return str(rng.choice(known if known and rng.random() < 0.5 else free))


def caption(rng: Rng, category: str, state: str, traits: frozenset[str] = frozenset()) -> Caption:
    """Return a caption that says ``state`` of a specimen of ``category``, of a picture with ``traits``."""
    words, named = thing(rng, category)
    allowed = [p for p in phrases(state) if not (named and withheld(category, p))]
    phrase = str(allowed[int(rng.integers(len(allowed)))])
    adjective, look = "", true_word(rng, _LOOKS, traits)
    if rng.random() < 0.35:
        adjective = true_word(rng, ADJECTIVES, traits)
        words, phrase = (
            (words, f"{adjective} {phrase}") if rng.random() < 0.5 else (f"{adjective} {words}", phrase)
        )
    text = frame(rng, look).format(phrase.format(words))
    return Caption(text, category if named else "", state, frozenset({adjective, look} & traits))


def rivals(rng: Rng, traits: frozenset[str]) -> tuple[str, str]:
    """Return one of ``traits`` and another word of its group."""
    word = str(rng.choice(sorted(traits)))
    return word, str(rng.choice([other for other in group(word) if other != word]))


def idle(rng: Rng, names: Sequence[str]) -> tuple[str, str]:
    """Return two words that may be true of anything; ``names`` are those of categories."""
    looks = [word for word in _LOOKS if word and not group(word)]
    others = [word for word in ADJECTIVES if not group(word)]
    things = [_UNKNOWN, *_GENERAL, *(name.replace("_", " ") for name in names)]
    pool = (looks, others, others, [*others, *things])[int(rng.integers(4))]
    first, second = rng.choice(pool, 2, replace=False)
    return str(first), str(second)


def connoted(rng: Rng) -> tuple[str, str]:
    """Return two words that are true of something, or suggest it."""
    looks = [word for word in _LOOKS if word]
    first, second = rng.choice(looks if rng.random() < 0.25 else ADJECTIVES, 2, replace=False)
    return str(first), str(second)


def twins(rng: Rng, words: tuple[str, str]) -> tuple[str, str]:
    """Return two texts that name no category and no fault, and differ in the two ``words`` alone."""
    if words[0] in _LOOKS:
        text = frame(rng, "@").format(something(rng))
    else:
        text = frame(rng, true_word(rng, _LOOKS, frozenset())).format(f"@ {something(rng)}")
    return text.replace("@", words[0]), text.replace("@", words[1])


def vocabulary(categories: tuple[str, ...]) -> tuple[str, ...]:
    """Return every text from which a caption is put together, the unknown word left out."""
    states = [phrase for state in (GOOD, ANY, *_FAULT_NOUNS) for phrase in phrases(state)]
    others = [*_LOOKS, *ADJECTIVES, *(word for words in GROUPS for word in words)]
    frames = ["there is", "of", ".", *_NOUNS, *others, *_ARTICLES, *_PURPOSES, *_GENERAL]
    names = [name.replace("_", " ") for name in categories]
    return tuple(sorted({text.replace("{}", "").strip() for text in (*states, *frames, *names)} - {""}))

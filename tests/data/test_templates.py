"""Templates match as the regular expressions they stand for, in bounded time whatever they are."""

from __future__ import annotations

import random
import re
import time

import pytest

from zsadbench.data.templates import LONGEST, Template, TemplateError, Token


def expression(text: str) -> re.Pattern[str]:
    """Return the regular expression that a file name's template stands for."""
    pieces = [piece for piece in re.split(r"(\{[^{}]*\})", text) if piece]
    seen: set[str] = set()
    pattern = ""
    for number, piece in enumerate(pieces, 1):
        if piece[0] != "{":
            cut = piece.rfind(".") + 1 if "." in piece and number == len(pieces) else len(piece)
            pattern += re.escape(piece[:cut]) + f"(?i:{re.escape(piece[cut:])})"
            continue
        token = Token.parse(piece[1:-1])
        if token.name == "ext":
            pattern += f"(?i:{'|'.join(token.suffixes)})"
        elif token.name in seen:
            pattern += f"(?P={token.name})"
        else:
            choices = "|".join(map(re.escape, token.choices)) or "[^/]+"
            pattern += f"(?P<{token.name}>{choices})"
            seen.add(token.name)
    return re.compile(pattern, re.DOTALL)


PIECES = (
    "a",
    "ab",
    "_",
    ".",
    ".a",
    ".AB",
    "{n}",
    "{m}",
    "{k}",
    "{n}",
    "{c:a|ab|b}",
    "{d:b|ba}",
    "{ext:a|ab}",
)


def test_templates_match_as_their_regular_expressions() -> None:
    draw = random.Random(7)
    matched = 0
    for _ in range(1500):
        text = "".join(draw.choices(PIECES, k=draw.randint(1, 5)))
        try:
            segment = Template.parse(text).segments[-1]
        except TemplateError:
            assert text in (".", "..", "...", "....", ".....") or "repeats more than one" in refusal(text), (
                text
            )
            continue
        for _ in range(12):
            name = "".join(draw.choices("aAbB_.", k=draw.randint(1, 9)))
            found = expression(text).fullmatch(name)
            assert segment.match(name) == (found and found.groupdict()), (text, name)
            matched += found is not None
    assert matched > 1000


def refusal(text: str) -> str:
    with pytest.raises(TemplateError) as caught:
        Template.parse(text)
    return str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{a}a{b}a{c}a{d}a{e}a{f}a{g}a{h}.png",
        "{a}{b}{c}{d}{e}{f}{g}{h}{i}{j}{k}{l}!",
        "{a:a|aa}{b:a|aa}{c:a|aa}{d:a|aa}{e:a|aa}{f:a|aa}{g}x{h}x{i}.{ext}",
        "{a}a{b}a{a}a{c}a{d}a{e}.png",
    ],
)
@pytest.mark.parametrize("name", ["a" * 255 + ".jpg!x", "a" * 250 + "x.pnga"])
def test_no_template_takes_long(template: str, name: str) -> None:
    segment = Template.parse(template).segments[-1]
    start = time.perf_counter()
    assert segment.match(name) is None
    assert time.perf_counter() - start < 10  # the regular expressions would take years


def test_what_takes_the_cube_of_its_length_comes_once() -> None:
    assert Template.parse("{a}-{a}.png").segments[-1].match("x-x.png") == {"a": "x"}
    assert "repeats more than one capture" in refusal("{a}-{b}-{a}-{b}.png")
    assert "repeats more than one capture" in refusal("{a}_" * 51 + ".png")
    assert Template.parse("{a}/{b}/{a}-{b}.png").segments[-1].match("x-y.png") == {"a": "x", "b": "y"}


def test_no_name_is_longer_than_a_file_system_knows() -> None:
    segment = Template.parse("{stem}.png").segments[-1]
    assert segment.match("a" * 1000 + ".png") == {"stem": "a" * 1000}
    assert segment.match("a" * LONGEST + ".png") is None
    assert segment.match("a/b.png") is None


def test_names_in_other_scripts_match() -> None:
    segment = Template.parse("{c:ｶ|ß}{n}.PnG").segments[-1]
    assert segment.match("ß\udcff ñ.png") == {"c": "ß", "n": "\udcff ñ"}
    assert segment.match("ss.png") is None

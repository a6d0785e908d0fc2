"""Prompt ensembles, their anchors and the cache of text features."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.kit import tiny
from zsadbench.clip.prompts import anchor, encode, ensemble, read_prompts
from zsadbench.clip.towers import Clip
from zsadbench.errors import MethodError

PROMPTS = ["a photo of a cable.", "a dark photo of the damaged cable, from above.", "cable"]


@pytest.fixture
def clip() -> Clip:
    return tiny.clip("tiny-b16p")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZSAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def counted(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of prompts whenever the text tower runs."""
    calls: list[int] = []
    plain = clip.text.encode

    def count(tokens: Tensor) -> Tensor:
        calls.append(len(tokens))
        return plain(tokens)

    monkeypatch.setattr(clip.text, "encode", count)
    return calls


def test_ensembles_go_state_by_state_or_template_by_template() -> None:
    states, templates = ["{}", "bad {}"], ["a {}.", "the {}."]
    assert ensemble(states, templates, "nut") == ["a nut.", "the nut.", "a bad nut.", "the bad nut."]
    assert ensemble(states, templates, "nut", template_major=True) == [
        "a nut.",
        "a bad nut.",
        "the nut.",
        "the bad nut.",
    ]


def test_words_with_braces_are_text(clip: Clip) -> None:
    for words in ("{0}", "{}", "{", "{x!r:>99}"):
        assert ensemble(["bad {}"], ["a {}."], words) == [f"a bad {words}."]


NO_PLACES = (
    *(
        "bad",
        "{}{}",
        "{0}",
        "{x}",
        "{:>9999999999}",
        "{0.__class__}",
        "{!r}",
        "{{}}",
        "{} {",
        "} {}",
        "{{}} {}",
    ),
)


@pytest.mark.parametrize("text", NO_PLACES)
def test_states_and_templates_have_one_place_for_words(text: str, tmp_path: Path) -> None:
    message = re.escape(f"'{text}' needs {{}} once, where the words go, and no other brace")
    for states, templates in (([text], ["a {}."]), (["bad {}"], [text])):
        with pytest.raises(MethodError, match=message):
            ensemble(states, templates, "nut")
    path = tmp_path / "mine.toml"
    path.write_text(f'normal = ["good {{}}"]\nanomalous = ["{text}"]')
    with pytest.raises(MethodError, match="'anomalous' must be a list of texts"):
        read_prompts(path)


@torch.inference_mode()
def test_features_come_back_in_the_order_of_the_prompts(clip: Clip, cache: Path) -> None:
    alone = torch.cat([clip.text.encode(clip.tokenize([prompt])) for prompt in PROMPTS])
    found = encode(clip, [*PROMPTS, PROMPTS[0]])
    assert torch.allclose(found[:3], alone, atol=1e-5)
    assert torch.equal(found[3], found[0])
    assert found.dtype == torch.float32


def test_no_prompt_at_all_is_refused(clip: Clip) -> None:
    with pytest.raises(MethodError, match="give at least one state and one template"):
        anchor(clip, ensemble([], ["a {}"], "nut"))


@torch.inference_mode()
def test_a_doubled_prompt_weighs_twice(clip: Clip, cache: Path) -> None:
    features = encode(clip, PROMPTS[:2])
    wanted = F.normalize((2 * features[0] + features[1]) / 3, dim=0)
    assert torch.allclose(anchor(clip, [PROMPTS[0], *PROMPTS[:2]]), wanted, atol=1e-6)


@torch.inference_mode()
def test_prompts_may_be_normalised_before_the_mean(clip: Clip, cache: Path) -> None:
    features = encode(clip, PROMPTS)
    wanted = F.normalize(F.normalize(features, dim=1).mean(dim=0), dim=0)
    assert torch.allclose(anchor(clip, PROMPTS, normalise_prompts=True), wanted, atol=1e-6)
    assert not torch.allclose(anchor(clip, PROMPTS), wanted, atol=1e-4)


def test_the_text_tower_runs_once_per_weights_and_prompts(
    clip: Clip, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(clip, monkeypatch)
    first = encode(clip, PROMPTS)
    assert torch.equal(encode(clip, PROMPTS), first)
    assert torch.equal(encode(clip, PROMPTS[::-1]), first.flip(0))
    assert calls == [3]
    encode(tiny.clip("tiny-b16p", "quick_gelu"), PROMPTS)
    assert len(list(cache.glob("anchors/*"))) == 2


def other_values(values: Tensor) -> dict[str, Tensor]:
    """Return what may stand in a cache file instead of ``values``."""
    hole = values.clone()
    hole[1, 2] = torch.nan
    return {
        "too wide": values.repeat(1, 2),
        "too few": values[:-1],
        "flat": values[:, 0],
        "double": values.double(),
        "a hole": hole,
    }


@pytest.mark.parametrize("damage", [b"", b"garbage", None, "too wide", "too few", "flat", "double", "a hole"])
def test_a_damaged_cache_is_written_anew(
    clip: Clip, cache: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | str | None
) -> None:
    wanted = encode(clip, PROMPTS)
    (file,) = cache.glob("anchors/*")
    if isinstance(damage, str):
        save_file({"features": other_values(load_file(file)["features"])[damage].contiguous()}, file)
    else:
        file.write_bytes(file.read_bytes()[:-9] if damage is None else damage)
    calls = counted(clip, monkeypatch)
    assert torch.equal(encode(clip, PROMPTS), wanted)
    assert torch.equal(encode(clip, PROMPTS), wanted)
    assert calls == [3]


def test_an_unwritable_cache_only_costs_time(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ZSAD_CACHE", str(tmp_path / "file"))
    calls = counted(clip, monkeypatch)
    assert torch.equal(encode(clip, PROMPTS), encode(clip, PROMPTS))
    assert calls == [3, 3]


def test_no_more_prompts_than_a_chunk_run_at_once(
    clip: Clip, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(clip, monkeypatch)
    encode(clip, [f"part {number}" for number in range(300)])
    assert sum(calls) == 300
    assert len(calls) > 1
    assert max(calls) <= 256


GOOD = 'normal = ["good {}"]\nanomalous = ["bad {}", "broken {}"]\n'


def test_a_prompt_file_gives_states_and_perhaps_templates(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert read_prompts(path) == {"normal": ("good {}",), "anomalous": ("bad {}", "broken {}")}
    path.write_text(GOOD + 'templates = ["a photo of {}"]')
    assert read_prompts(path)["templates"] == ("a photo of {}",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("normal = [", "cannot be read as TOML"),
        ('normal = ["good {}"]', "the list 'anomalous' is missing"),
        (GOOD + "states = []", "unknown key 'states'"),
        (GOOD.replace("good {}", "good"), "'normal' must be a list of texts, each with {} once"),
        (GOOD.replace('["good {}"]', '"good {}"'), "'normal' must be a list of texts"),
        (GOOD + "templates = []", "'templates' must be a list of texts"),
        (GOOD.replace("good {}", "{} or {}"), "'normal' must be a list of texts, each with {} once"),
        (GOOD.replace("good {}", "{} {name}"), "'normal' must be a list of texts, each with {} once"),
    ],
)
def test_a_wrong_prompt_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(MethodError) as caught:
        read_prompts(path)
    assert message in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_prompt_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="no such prompt file"):
        read_prompts(tmp_path / "none.toml")
    with pytest.raises(MethodError, match="cannot be read"):
        read_prompts(tmp_path)

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.kit import toy
from zsadbench.errors import MethodError, UsageError, WeightsError
from zsadbench.inputs import Backbone, Preprocess
from zsadbench.method import registry
from zsadbench.method.card import MethodCard, method_cards, read_method_card
from zsadbench.method.registry import (
    Resolved,
    load_method,
    method_class,
    parse_spec,
    recipe_of,
    resolve,
    wordings,
)
from zsadbench.method.settings import flattened, override, parameters

BACKBONE, PREPROCESS = Backbone("tiny-l14", "random"), Preprocess(84)

CARD = """
format = 1
id = "toy"
title = "Toy"
version = 2
entry = "toy:Mine"
code = "someone/toy@abc1234"
wording = "key"
map_parameters = ["sigma"]

[words]
macaroni1 = "macaroni"

[protocol]
size = 256

[inductive]
rule = "mean"

[reference]
sigma = 4
[reference.domain.medical]
sigma = 6.0
words = { headct = "head ct" }
[reference.dataset.visa]
tiles = "ends"
sigma = 8.0
[reference.dataset.visa.protocol]
mask_resize = "nearest"
[reference.backbone.tiny-b16p]
size = 160
weights = "random:7"

[scaling]
layers = ["layers", "depth"]
lengths = ["sigma"]

[variants.wide]
summary = "more gain"
gain = 3
order_dependent = true
[variants.wide.dataset.visa]
gain = 5.0
"""


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MethodCard:
    """A shipped-looking card whose class is the toy."""
    path = tmp_path / "toy.toml"
    path.write_text(CARD)
    module = types.ModuleType("zsadbench.methods.toy")
    monkeypatch.setitem(sys.modules, "zsadbench.methods.toy", module)
    exec(compile(toy.SOURCE, "toy.py", "exec"), module.__dict__)
    found = read_method_card(path)
    monkeypatch.setattr(registry, "method_cards", lambda: {"toy": found})
    return found


def refused(text: str, tmp_path: Path) -> str:
    path = tmp_path / "toy.toml"
    path.write_text(text)
    with pytest.raises(MethodError) as caught:
        read_method_card(path)
    return str(caught.value)


class TestShippedCards:
    def test_the_three_of_the_spine(self) -> None:
        assert {"anoclip", "clip", "winclip"} <= set(method_cards())
        assert list(method_cards()["winclip"].variants)[:2] == ["code21", "paper22_t001"]

    @pytest.mark.parametrize("name", method_cards())
    def test_a_card_agrees_with_its_class(self, name: str) -> None:
        card = method_cards()[name]
        method = resolve(name).method
        assert card.backbone == f"{method.backbone.name}/{method.backbone.weights}"
        assert card.size == method.preprocess.size
        assert set(card.map_parameters) <= set(parameters(method))
        assert card.paper and card.bibtex.startswith("@") and card.deviations

    @pytest.mark.parametrize("name", method_cards())
    def test_every_table_of_a_card_can_be_laid_over(self, name: str) -> None:
        card = method_cards()[name]
        for variant in ("reference", *card.variants):
            plain = resolve(f"{name}@{variant}")
            assert json.loads(json.dumps(plain.parameters)) == plain.parameters
            for layer in card.layers(variant):
                for (kind, value), occasion in layer.occasions.items():
                    if kind == "backbone":
                        override(plain.method, occasion.fields)
                    else:
                        domain, dataset = (value, "") if kind == "domain" else ("", value)
                        resolve(f"{name}@{variant}", domain=domain, dataset=dataset)

    @pytest.mark.parametrize("name", method_cards())
    def test_parameters_restore_the_method(self, name: str) -> None:
        for variant in ("reference", *method_cards()[name].variants):
            found = resolve(f"{name}@{variant}", backbone="tiny-l14", weights="random:2")
            plain = resolve(name).method
            flat = flattened(plain, json.loads(json.dumps(found.parameters)))
            assert override(plain, flat) == found.method

    @pytest.mark.parametrize("name", method_cards())
    def test_every_method_runs_on_another_depth(self, name: str) -> None:
        small = resolve(name, backbone="tiny-b16p", weights="random").method
        assert (small.backbone.name, small.backbone.activation) == ("tiny-b16p", "auto")
        assert small.preprocess.size == 240

    def test_variants_of_winclip(self) -> None:
        reference, code21, mala = (resolve(f"winclip{v}") for v in ("", "@code21", "@paper22_t001"))
        assert len(reference.parameters["templates"]) == len(set(reference.parameters["templates"])) == 22
        assert len(code21.parameters["templates"]) == 21
        assert len(set(code21.parameters["templates"])) == 20
        missing = set(reference.parameters["templates"]) - set(code21.parameters["templates"])
        assert missing == {"a cropped photo of a {}.", "a jpeg corrupted photo of a {}."}
        assert (mala.parameters["temperature"], mala.parameters["normalise_prompts"]) == (0.01, True)
        assert (reference.card.wording, code21.card.wording) == ("spaced", "key")
        assert (reference.id, code21.id) == ("winclip", "winclip@code21")

    def test_the_tiles_of_anoclip(self) -> None:
        for spec, dataset in (("anoclip", "visa"), ("anoclip", "visa_pytorch"), ("anoclip@tiled", "mtd")):
            image = resolve(spec, dataset=dataset).method.preprocess
            assert (image.tiles, image.resize) == ("ends", "shortest")
        assert resolve("anoclip", dataset="mvtec").method.preprocess.tiles == "none"

    def test_clip_with_the_compositional_ensemble(self) -> None:
        found = resolve("clip@ac").parameters
        assert [len(found[name]) for name in ("normal", "anomalous", "templates")] == [7, 4, 22]


class TestReadingCards:
    def test_what_it_says(self, card: MethodCard) -> None:
        assert (card.id, card.version, card.protocol.size, card.protocol.mask_resize) == (
            "toy", 2, 256, "bilinear50",
        )  # fmt: skip
        assert card.variants["wide"].summary == "more gain"
        assert card.variants["wide"].fields == {"gain": 3}
        assert card.of("wide").order_dependent and not card.order_dependent

    @pytest.mark.parametrize(
        ("old", "new", "place", "advice"),
        [
            ('title = "Toy"', 'titel = "Toy"', "toy.toml:4", "Did you mean 'title'"),
            ("format = 1", "format = 2", "toy.toml:2", "format = 1"),
            ('id = "toy"', 'id = "other"', "toy.toml:3", "must be the file's name, 'toy'"),
            ("version = 2", 'version = "2"', "toy.toml:5", "must be a whole number"),
            ("version = 2", "", "toy.toml", "'version' is missing"),
            ('"toy:Mine"', '"toy.Mine"', "toy.toml:6", "module:Class"),
            ("@abc1234", "", "toy.toml:7", "owner/repository@commit"),
            ('wording = "key"', 'wording = "keys"', "toy.toml:8", "key, spaced, words"),
            ('["sigma"]\n\n[words]', "[1]\n\n[words]", "toy.toml:9", "list of texts"),
            ('macaroni1 = "macaroni"', "macaroni1 = 1", "toy.toml:12", "must be a string"),
            ("size = 256", 'size = "full"', "toy.toml:15", '"frame"'),
            ("size = 256", "sise = 256", "toy.toml:15", "Did you mean 'size'"),
            ('"nearest"', '"bilinear"', "toy.toml:29", "bilinear50, all, any, nearest, native"),
            ("layers = [", "blocks = [", "toy.toml:35", "Allowed: layers, lengths"),
            ('summary = "more gain"', "", "toy.toml", "'summary' is missing"),
            ("order_dependent = true", 'order_dependent = "yes"', "toy.toml:41", "true or false"),
            ("gain = 3", 'title = "Wide"', "toy.toml:40", "belongs to the top of the card"),
            ("[variants.wide]", "[variants.reference]", "toy.toml", "cannot name a variant"),
            ("[scaling]", "[scaling", "toy.toml", "not valid TOML"),
        ],
    )
    def test_mistakes(self, old: str, new: str, place: str, advice: str, tmp_path: Path) -> None:
        assert old in CARD
        message = refused(CARD.replace(old, new, 1), tmp_path)
        assert place in message
        assert advice in message

    def test_a_field_that_the_class_does_not_have(self, card: MethodCard, tmp_path: Path) -> None:
        (tmp_path / "toy.toml").write_text(CARD.replace("gain = 3", "gian = 3"))
        changed = read_method_card(tmp_path / "toy.toml")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry, "method_cards", lambda: {"toy": changed})
            with pytest.raises(MethodError, match=r"toy.toml \[variants.wide\]: 'gian' .* mean 'gain'"):
                resolve("toy@wide")

    def test_an_entry_that_is_not_there(self, card: MethodCard) -> None:
        import dataclasses

        with pytest.raises(MethodError, match="cannot be loaded"):
            method_class(dataclasses.replace(card, entry="toy:Other"))


class TestSpecs:
    def test_methods_and_variants(self) -> None:
        assert [(card.id, variant) for card, variant in map(parse_spec, ("winclip", "winclip@code21"))] == [
            ("winclip", "reference"),
            ("winclip", "code21"),
        ]
        assert parse_spec("winclip@reference")[1] == "reference"

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("winclp", "unknown method 'winclp'. Did you mean 'winclip'?"),
            ("winclip@code2", "no variant 'code2'. Did you mean 'code21'?"),
            ("clip@zzz", "Known: ac, reference"),
            ("none.py:Mine", "none.py: no such file"),
            ("mine.py", "name the class too, as in mine.py:Mine"),
            ("zsadbench.clip:Clop", "no class 'Clop'"),
            ("no_such_package.x:Mine", "cannot be imported"),
        ],
    )
    def test_what_is_unknown(self, spec: str, message: str) -> None:
        with pytest.raises(UsageError) as caught:
            parse_spec(spec)
        assert message in str(caught.value)

    def test_a_file(self, tmp_path: Path) -> None:
        spec = toy.write(tmp_path)
        card, variant = parse_spec(spec)
        assert (card.id, card.title, variant) == ("mine.Mine", "Brightness as anomaly", "reference")
        assert card.map_parameters == ("sigma",)
        assert resolve(spec, settings={"gain": "2"}).method.gain == 2.0  # type: ignore[attr-defined]

    def test_an_edited_file_is_another_version(self, tmp_path: Path) -> None:
        first = resolve(toy.write(tmp_path))
        other = resolve(toy.write(tmp_path, "gain: float = 1.0", "gain: float = 7.0"))
        assert first.id == other.id
        assert first.card.version != other.card.version
        assert (first.parameters["gain"], other.parameters["gain"]) == (1.0, 7.0)

    @pytest.mark.parametrize("edited", ["mine.py", "aid.py"])
    def test_an_edit_that_keeps_size_and_second_is_seen(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edited: str
    ) -> None:
        monkeypatch.setattr(sys, "dont_write_bytecode", False)

        def write(gain: float) -> str:
            aid = gain if edited == "aid.py" else 1.0
            (tmp_path / "aid.py").write_text(f"GAIN = {aid}\n")
            mine = f"gain: float = GAIN * {1.0 if edited == 'aid.py' else gain}"
            spec = toy.write(tmp_path, "gain: float = 1.0", mine)
            path = tmp_path / "mine.py"
            path.write_text(f"from .aid import GAIN\n{path.read_text()}")
            for file in tmp_path.glob("*.py"):
                os.utime(file, (1e9, 1e9))
            return spec

        assert [resolve(write(gain)).parameters["gain"] for gain in (1.0, 7.0)] == [1.0, 7.0]

    def test_a_class_of_a_package(self) -> None:
        card, _ = parse_spec("zsadbench.methods.winclip:WinClip")
        assert card.id == "winclip.WinClip"
        assert method_class(card).__name__ == "WinClip"

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("@dataclass(frozen=True)", "", "it is no dataclass"),
            ("frozen=True", "order=False", "it is not frozen"),
            ("def maps(", "def map(", "it has no maps()"),
            ("sigma: float = 2.0", "sigma: float", "non-default argument 'sigma'"),
            (
                "preprocess: Preprocess = Preprocess(84)",
                "preprocess: int = 84",
                "no zsadbench.method.Preprocess",
            ),
            ("import torch.nn", "import torhc.nn", ":5: cannot be imported (ModuleNotFoundError"),
            ("class Eyes:", "class Eyes", "cannot be imported (SyntaxError"),
            (": ClassVar[tuple[str, ...]] = (", ": ClassVar[str] = str(", "must be of type tuple"),
        ],
    )
    def test_a_class_that_is_no_method(self, old: str, new: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(MethodError) as caught:
            parse_spec(toy.write(tmp_path, old, new))
        assert message in str(caught.value)


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "text", "value"),
        [
            ("sigma", "0.5", 0.5),
            ("sigma", "1e-2", 0.01),
            ("sigma", 3, 3.0),
            ("depth", "7", 7),
            ("layers", "2,4", (2, 4)),
            ("layers", "5", (5,)),
            ("layers", "", ()),
            ("layers", [1, 2], (1, 2)),
            ("window", "4, 5", (4, 5)),
            ("limit", "none", None),
            ("limit", "9", 9),
            ("rule", "mean", "mean"),
            ("fast", "false", False),
            ("fast", "on", True),
            ("note", "a=b", "a=b"),
            ("normal", "good {},fine {}", ("good {}", "fine {}")),
        ],
    )
    def test_values_take_the_type_of_their_field(
        self, card: MethodCard, name: str, text: Any, value: Any
    ) -> None:
        found = getattr(resolve("toy", settings={name: text}).method, name)
        assert found == value
        assert type(found) is type(value)

    def test_nested_names(self, card: MethodCard) -> None:
        settings = {"size": "140", "resize": "shortest", "activation": "gelu", "weights": "random:3"}
        method = resolve("toy", settings=settings).method
        assert (method.preprocess.size, method.preprocess.resize) == (140, "shortest")
        assert method.backbone == Backbone("tiny-l14", "random:3", "gelu")

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("sigma", "two", "toy: sigma=two: must be a number"),
            ("sigma", "nan", "must be a number"),
            ("depth", "1.5", "must be a whole number"),
            ("fast", "maybe", "must be true or false"),
            ("rule", "meen", "must be one of mean, max. Did you mean 'mean'?"),
            ("layers", "1,b", "each a whole number"),
            ("window", "1,2,3", "2 values with commas"),
            ("limit", "x", "a whole number or 'none'"),
            ("sgima", "1", "Did you mean 'sigma'? Known: activation, anomalous, backbone"),
            ("size", "85", "nearest: 84 or 98"),
            ("size", "5", "nearest: 14 or 28"),
            ("backbone", "ViT-B-16", "--backbone NAME --weights TAG"),
            ("checkpoint", "x.pt", "no parameter of this method"),
        ],
    )
    def test_values_that_do_not_fit(self, card: MethodCard, name: str, text: str, message: str) -> None:
        with pytest.raises(UsageError) as caught:
            resolve("toy", settings={name: text})
        assert message in str(caught.value)

    def test_a_method_that_refuses_a_value(self) -> None:
        @dataclass(frozen=True)
        class Strict:
            backbone: Backbone = BACKBONE
            preprocess: Preprocess = PREPROCESS
            share: float = 0.5

            def __post_init__(self) -> None:
                if not 0 <= self.share <= 1:
                    raise ValueError("share must lie between 0 and 1")

        with pytest.raises(UsageError, match="share must lie between 0 and 1"):
            override(Strict(), {"share": "2"})

    def test_parameters_hold_every_field(self, card: MethodCard) -> None:
        found = resolve("toy").parameters
        assert found["backbone"] == {
            "name": "tiny-l14", "weights": "random", "activation": "auto", "position": "bicubic-antialias",
        }  # fmt: skip
        assert found["preprocess"]["size"] == 84
        assert found["preprocess"]["mean"] == [0.48145466, 0.4578275, 0.40821073]
        assert (found["layers"], found["limit"], found["sigma"]) == ([6, 12, 18, 24], None, 4.0)
        assert json.dumps(found) == json.dumps(resolve("toy").parameters)


class TestLayers:
    def sigma(self, found: Resolved) -> float:
        value: float = found.method.sigma  # type: ignore[attr-defined]
        return value

    def test_the_stronger_wins(self, card: MethodCard) -> None:
        assert self.sigma(resolve("toy")) == 4.0
        assert self.sigma(resolve("toy", domain="medical")) == 6.0
        assert self.sigma(resolve("toy", domain="medical", dataset="visa")) == 8.0
        assert self.sigma(resolve("toy", dataset="visa", settings={"sigma": "9"})) == 9.0
        assert [resolve("toy@wide", dataset=d).method.gain for d in ("", "visa")] == [3.0, 5.0]  # type: ignore[attr-defined]

    def test_keys_of_the_card_change_too(self, card: MethodCard) -> None:
        found = resolve("toy@wide", domain="medical", dataset="visa")
        assert (found.size, found.mask_resize) == (256, "nearest")
        assert found.card.words == {"macaroni1": "macaroni", "headct": "head ct"}
        assert found.card.order_dependent
        assert not resolve("toy").card.order_dependent

    def test_the_inductive_method(self, card: MethodCard) -> None:
        found = resolve("toy")
        assert (found.method.rule, found.inductive.rule) == ("max", "mean")  # type: ignore[attr-defined]
        assert self.sigma(found) == found.inductive.sigma  # type: ignore[attr-defined]

    def test_load_method(self, card: MethodCard) -> None:
        method = load_method("toy@wide", dataset="visa", layers=(1, 2))
        assert (method.gain, method.layers) == (5.0, (1, 2))  # type: ignore[attr-defined]


class TestBackbones:
    def test_the_cards_table_wins_over_native_size(self, card: MethodCard) -> None:
        method: Any = resolve("toy", backbone="tiny-b16p").method
        assert method.backbone == Backbone("tiny-b16p", "random:7", "auto")
        assert method.preprocess.size == 160
        assert method.layers == (3, 6, 9, 12)
        assert method.depth == 10
        assert method.sigma == pytest.approx(4 * 160 / 84)

    def test_settings_win_over_the_table(self, card: MethodCard) -> None:
        settings = {"size": "240", "layers": "2"}
        method: Any = resolve("toy", backbone="tiny-b16p", weights="random", settings=settings).method
        assert (method.preprocess.size, method.layers, method.backbone.weights) == (240, (2,), "random")
        assert method.sigma == pytest.approx(4 * 240 / 84)

    def test_blocks_that_fall_together_become_one(self, card: MethodCard) -> None:
        pair = resolve("toy", backbone="tiny-b16p", settings={"depth": 1})
        assert pair.method.depth == 1  # type: ignore[attr-defined]
        scaled = registry._scale(
            resolve("toy", settings={"layers": "1,2,3,24"}).method, "layers", 0.5, blocks=True
        )
        assert scaled == (1, 2, 12)
        thrice = resolve("toy", settings={"layers": "24,24,24"}).method
        assert registry._scale(thrice, "layers", 0.5, blocks=True) == (12, 12, 12)
        assert registry._scale(resolve("toy", settings={"depth": "0"}).method, "depth", 0.5, blocks=True) == 0

    def test_other_weights_keep_the_activation(self) -> None:
        method = resolve("clip", weights="/somewhere/clip.safetensors").method
        assert method.backbone == Backbone("ViT-L-14-336", "/somewhere/clip.safetensors", "quick_gelu")
        same = resolve("clip", backbone="ViT-L-14-336", weights="random").method
        assert (same.backbone.activation, same.preprocess.size) == ("quick_gelu", 518)
        assert resolve("clip", activation="gelu").method.backbone.activation == "gelu"
        assert resolve("clip", backbone="tiny-b16p", weights="random").method.backbone.activation == "auto"

    def test_another_backbone_needs_weights(self) -> None:
        with pytest.raises(UsageError, match=r"--backbone tiny-b16p also needs --weights .* 'random'"):
            resolve("clip", backbone="tiny-b16p")
        with pytest.raises(UsageError, match="one of openai, laion400m_e31"):
            resolve("clip", backbone="ViT-B-16")

    def test_unknown_names(self) -> None:
        with pytest.raises(WeightsError, match="unknown backbone 'tiny-l15'"):
            resolve("clip", backbone="tiny-l15", weights="random")
        with pytest.raises(UsageError, match="activation=gelo: must be one of auto, gelu, quick_gelu"):
            resolve("clip", activation="gelo")


TRAINED = (
    CARD.replace("code =", 'recipe = "toy_training:Plan"\ncode =', 1)
    + """
[training]
epochs = 4
betas = [0.5, 0.9]
[training.dataset.visa]
epochs = 9
"""
)

PLAN = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Plan:
    epochs: int = 1
    betas: tuple[float, float] = (0.9, 0.999)
    gain: float = 0.0

    @classmethod
    def of(cls, method):
        return cls(gain=method.gain)
"""


class TestRecipes:
    def resolved(
        self, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str = "toy"
    ) -> Resolved:
        (tmp_path / "toy.toml").write_text(text)
        module = types.ModuleType("zsadbench.methods.toy_training")
        monkeypatch.setitem(sys.modules, "zsadbench.methods.toy_training", module)
        exec(PLAN, module.__dict__)
        found = read_method_card(tmp_path / "toy.toml")
        monkeypatch.setattr(registry, "method_cards", lambda: {"toy": found})
        return resolve(spec)

    def test_values_of_the_card_and_of_the_method(
        self, card: MethodCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = self.resolved(TRAINED, tmp_path, monkeypatch)
        plans = [recipe_of(found, dataset) for dataset in ("", "mvtec", "visa")]
        assert [plan.epochs for plan in plans] == [4, 4, 9]
        assert {(plan.betas, plan.gain) for plan in plans} == {((0.5, 0.9), 1.0)}
        wide = recipe_of(self.resolved(TRAINED, tmp_path, monkeypatch, "toy@wide"), "visa")
        assert (wide.epochs, wide.gain) == (9, 3.0)

    def test_a_card_without_one(self, card: MethodCard) -> None:
        assert card.training is None
        assert recipe_of(resolve("toy"), "visa") is None

    def test_what_the_class_says_comes_first(
        self, card: MethodCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own = type(resolve("toy").method)
        monkeypatch.setattr(own, "recipe", lambda self, dataset: f"own of {dataset}", raising=False)
        assert recipe_of(self.resolved(TRAINED, tmp_path, monkeypatch), "visa") == "own of visa"

    @pytest.mark.parametrize(
        ("old", "new", "place", "advice"),
        [
            (
                '"toy_training:Plan"',
                '"toy_training.Plan"',
                "toy.toml:7",
                'as in "_training_aa_clip:AdapterRecipe"',
            ),
            ('"toy_training:Plan"', '"../toy:Plan"', "toy.toml:7", "must read module:Class"),
            ('"toy_training:Plan"', "3", "toy.toml:7", "'recipe' must be a string"),
            ('recipe = "toy_training:Plan"', "", "toy.toml:46", "name it at the top"),
            ("gain = 3", 'recipe = "toy:Plan"', "toy.toml:41", "belongs to the top of the card"),
            (
                "betas = [0.5, 0.9]\n[training.dataset.visa]\nepochs = 9",
                "dataset = 3",
                "toy.toml:48",
                "'dataset' must be a table",
            ),
            (
                "[training.dataset.visa]\nepochs = 9",
                "[training.dataset]\nvisa = 9",
                "toy.toml:50",
                "must be a table",
            ),
        ],
    )
    def test_mistakes(self, old: str, new: str, place: str, advice: str, tmp_path: Path) -> None:
        assert old in TRAINED
        message = refused(TRAINED.replace(old, new, 1), tmp_path)
        assert f"{place}: " in message
        assert advice in message

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (":Plan", ":Plam", r'toy\.toml:7: recipe = "toy_training:Plam" cannot be loaded'),
            ("toy_training", "toy_trainin", r'toy\.toml:7: recipe = "toy_trainin:Plan" cannot be loaded'),
            (
                "epochs = 9",
                "epoch = 9",
                r"\[training.dataset.visa\]: .* no field 'epoch'. Did you mean 'epochs'",
            ),
            ("epochs = 4", "epochs = 4.5", r"\[training\]: epochs=4.5: must be a whole number"),
        ],
    )
    def test_mistakes_that_show_when_it_is_loaded(
        self,
        old: str,
        new: str,
        message: str,
        card: MethodCard,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        found = self.resolved(TRAINED.replace(old, new, 1), tmp_path, monkeypatch)
        with pytest.raises(MethodError, match=message):
            recipe_of(found, "visa")

    @pytest.mark.parametrize("name", [name for name, card in method_cards().items() if card.training])
    def test_every_table_of_a_card_can_be_laid_over(self, name: str) -> None:
        training = method_cards()[name].training
        assert training is not None
        for dataset in training.layers:
            assert recipe_of(resolve(name), dataset).seed

    @pytest.mark.parametrize("name", method_cards())
    def test_no_method_knows_its_training(self, name: str) -> None:
        cls = method_class(method_cards()[name])
        assert not hasattr(cls, "recipe")
        assert "_training_" not in Path(inspect.getfile(cls)).read_text()

    def test_every_trained_method_has_one(self) -> None:
        trained = {name for name, card in method_cards().items() if card.trained}
        assert {name for name, card in method_cards().items() if card.training} == trained

    def test_a_users_class_inherits_it(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.py"
        path.write_text(
            "from dataclasses import dataclass\nfrom zsadbench.methods.april_gan import AprilGan\n\n\n"
            "@dataclass(frozen=True)\nclass Mine(AprilGan):\n    mine: int = 1\n"
        )
        assert recipe_of(resolve(f"{path}:Mine"), "mvtec") == recipe_of(resolve("april-gan"), "mvtec")
        assert recipe_of(resolve("zsadbench.methods.clip_ad:ClipAd"), "mvtec") is None

    def test_it_is_loaded_only_when_asked_for(self) -> None:
        code = (
            "import importlib, sys\n"
            "from zsadbench.method import method_cards, recipe_of, resolve\n"
            "def loaded(): return [name for name in sys.modules if '_training_' in name]\n"
            "for card in method_cards().values():\n"
            "    importlib.import_module('zsadbench.methods.' + card.entry.partition(':')[0])\n"
            "found = [resolve(name) for name in method_cards()]\n"
            "print(len(found), loaded())\n"
            "recipe_of(resolve('anomalyclip'), 'visa')\n"
            "print(loaded())\n"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        before, after = run.stdout.splitlines()
        assert before == f"{len(method_cards())} []"
        assert after == "['zsadbench.methods._training_anomalyclip']"


class TestPrompts:
    def write(self, folder: Path, text: str) -> Path:
        path = folder / "prompts.toml"
        path.write_text(text)
        return path

    def test_they_replace_every_template_list(self, tmp_path: Path) -> None:
        text = 'normal = ["fine {}"]\nanomalous = ["bad {}", "{} with a hole"]\ntemplates = ["a photo of {}"]'
        method: Any = resolve("anoclip", prompts=self.write(tmp_path, text)).method
        assert (method.normal, method.anomalous) == (("fine {}",), ("bad {}", "{} with a hole"))
        assert method.templates == method.texture_templates == ("a photo of {}",)

    def test_without_templates_the_methods_own_stay(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, 'normal = ["fine {}"]\nanomalous = ["bad {}"]')
        method: Any = resolve("winclip", prompts=path).method
        assert (method.normal, len(method.templates)) == (("fine {}",), 22)

    def test_a_method_without_such_prompts(self, card: MethodCard, tmp_path: Path) -> None:
        path = self.write(tmp_path, 'normal = ["a {}"]\nanomalous = ["b {}"]\ntemplates = ["{}"]')
        with pytest.raises(
            UsageError, match="method 'toy' has no list 'templates': its prompts are learned or fixed"
        ):
            resolve("toy", prompts=path)


class TestWordings:
    CATEGORIES: Mapping[str, str] = {
        "metal_nut": "metal nut", "macaroni1": "macaroni", "pcb1": "printed circuit board",
    }  # fmt: skip

    @pytest.mark.parametrize(
        ("spec", "mode", "expected"),
        [
            ("anoclip", "method", ["metal_nut", "macaroni", "pcb1"]),
            ("anoclip", "key", ["metal_nut", "macaroni1", "pcb1"]),
            ("anoclip", "spaced", ["metal nut", "macaroni1", "pcb1"]),
            ("anoclip", "words", ["metal nut", "macaroni", "printed circuit board"]),
            ("winclip", "method", ["metal nut", "macaroni1", "pcb1"]),
            ("winclip@code21", "method", ["metal_nut", "macaroni1", "pcb1"]),
        ],
    )
    def test_modes(self, spec: str, mode: str, expected: list[str]) -> None:
        assert list(wordings(resolve(spec), self.CATEGORIES, mode).values()) == expected

    def test_the_users_words_win(self) -> None:
        found = wordings(resolve("anoclip"), self.CATEGORIES, words={"macaroni1": "pasta"})
        assert found == {"metal_nut": "metal_nut", "macaroni1": "pasta", "pcb1": "pcb1"}

    @pytest.mark.parametrize(
        ("mode", "words", "message"),
        [
            ("methods", {}, "--wording methods is not known. Did you mean 'method'?"),
            ("key", {"metalnut": "x"}, "no such category. Did you mean 'metal_nut'?"),
            ("key", {"pcb1": " "}, "the words are missing"),
        ],
    )
    def test_mistakes(self, mode: str, words: dict[str, str], message: str) -> None:
        with pytest.raises(UsageError) as caught:
            wordings(resolve("anoclip"), self.CATEGORIES, mode, words)
        assert message in str(caught.value)


def test_cards_are_read_without_heavy_packages() -> None:
    heavy = ("torch", "numpy", "pandas", "cv2")
    code = (
        "import sys; from zsadbench.method import parse_spec, method_cards; "
        f"parse_spec('winclip@code21'); method_cards(); print([m for m in {heavy} if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_tiles_are_refused_where_whole_images_are_wanted() -> None:
    assert (
        resolve("anoclip", settings={"tiles": "ends", "resize": "shortest"}).method.preprocess.tiles == "ends"
    )
    with pytest.raises(UsageError, match="clip: tiles=ends: this method looks at whole images only"):
        resolve("clip", settings={"tiles": "ends"})

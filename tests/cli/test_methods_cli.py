from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.kit import toy
from tests.kit.terminal import call
from zsadbench.errors import UsageError
from zsadbench.method.card import method_cards, read_method_card
from zsadbench.method.draft import draft_method
from zsadbench.method.registry import parse_spec, resolve
from zsadbench.method.user import user_class


def zsad(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run the command line; return exit code, output and errors."""
    code = call(*words)
    return code, *capsys.readouterr()


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = zsad(capsys, "methods")
    rows = {line.split()[0]: line for line in out.splitlines() if line and line.split()[0] in method_cards()}
    assert code == 0
    assert rows.keys() == method_cards().keys()
    for words in (
        "WinCLIP",
        "training-free",
        "ViT-B-16-plus-240/laion400m_e31",
        "240",
        "code21, paper22_t001",
    ):
        assert words in rows["winclip"]


def test_the_list_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "pandas", "cv2", "sklearn", "scipy")
    code = (
        "import sys; sys.argv = ['zsad', 'methods']\n"
        "from zsadbench.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("columns", [40, 64, 100])
def test_a_narrow_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    _, out, _ = zsad(capsys, "methods")
    assert max(map(len, out.splitlines())) <= columns
    assert "  WinCLIP; training-free" in out.splitlines()
    assert "variants code21" in out


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = zsad(capsys, "methods", "show", "anoclip")
    text = " ".join(out.split())
    assert code == 0
    for words in (
        "AnoCLIP (anoclip, version 1)",
        "arXiv 2308.15939",
        "github.com/hq-deng/AnoVL at 3a70bfdaea6baf1eeb140c5de8155b535bd94833",
        "ViT-B-16-plus-240, weights laion400m_e32, activation auto",
        "240 pixels, squash, bilinear, RGB before resizing",
        "macaroni1: macaroni",
        "dual_blocks 12",
        "augment true",
        "(66 in all, --full prints them)",
        "@tiled",
        "dataset visa tiles=ends, resize=shortest",
        "image score one image alone",
        "@article{deng2023anovl,",
    ):
        assert words in text


def test_show_a_variant(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = zsad(capsys, "methods", "show", "winclip@paper22_t001", "--full")
    assert "winclip@paper22_t001" in out
    assert "0.01" in out
    assert "none published by the authors" in out
    assert "--full prints" not in out
    assert "for anomaly detection." in out


@pytest.mark.parametrize("name", method_cards())
def test_every_method_can_be_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = zsad(capsys, "methods", "show", name)
    card = method_cards()[name]
    assert code == 0
    assert all(f"@{variant}" in out for variant in card.variants)
    assert ("transductive: all test images" in " ".join(out.split())) == card.transductive
    assert ("trained, needs a checkpoint" in out) == card.trained


def test_show_a_users_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = zsad(capsys, "methods", "show", toy.write(tmp_path))
    assert code == 0
    assert out.startswith("Brightness as anomaly (mine.Mine, version ")
    assert "layers     6,12,18,24" in out
    assert "limit      none" in out
    assert str(tmp_path) in "".join(out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "winclp"), "unknown method 'winclp'. Did you mean 'winclip'?"),
        (("show", "winclip@code22"), "Did you mean 'code21'?"),
        (("check", "nothing.py:Mine"), "nothing.py: no such file"),
        (("check", "clip", "--checkpoint", "x.safetensors"), "'checkpoint' is no parameter of this method"),
        (("check", "clip", "--set", "sigma"), "'sigma' is not of the form --set NAME=VALUE"),
        (("check", "clip", "--set", "blur=1"), "'blur' is no parameter of this method"),
    ],
)
def test_mistakes(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = zsad(capsys, "methods", *words)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert out == ""


def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = zsad(capsys, "methods", "check", toy.write(tmp_path))
    assert code == 0
    assert out.splitlines()[0] == "mine.Mine on tiny-l14 (random) at 84"
    assert "13 of 13 points hold: a method in good order" in out
    assert out.count("ok     ") == 13


def test_check_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = toy.write(
        tmp_path, 'return evidence["score"]', 'return evidence["score"] / evidence["score"].max()'
    )
    code, out, _ = zsad(capsys, "methods", "check", spec)
    assert code == 1
    assert "FAILED transductive or not" in out
    assert "12 of 13 points hold" in out


def test_check_with_variants(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = zsad(capsys, "methods", "check", "clip", "--variants", "--set", "size=56")
    assert code == 0
    assert "clip on tiny-l14 (random) at 56" in out
    assert "clip@ac on tiny-l14 (random) at 56" in out


# --- methods of one's own ---


def test_a_new_method_keeps_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = zsad(capsys, "methods", "new", "mine-too")
    assert code == 0 and "zsad methods check mine_too.py:MineToo" in out
    code, out, _ = zsad(capsys, "methods", "check", "mine_too.py:MineToo")
    assert code == 0 and "13 of 13 points hold" in out
    code, _, err = zsad(capsys, "methods", "new", "mine-too")
    assert code == 2 and "exists already" in err
    assert zsad(capsys, "methods", "new", "mine-too", "--force")[0] == 0


def test_the_card_of_a_new_method_makes_it_one_of_the_toolkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, card, cls = draft_method("mine-too", tmp_path)
    found = read_method_card(card)
    assert (found.id, found.entry, cls) == ("mine-too", "mine_too:MineToo", "MineToo")
    made = user_class(f"{source}:{cls}")()
    assert found.backbone == f"{made.backbone.name}/{made.backbone.weights}"
    assert found.size == made.preprocess.size
    assert found.map_parameters == made.map_parameters


@pytest.mark.parametrize("name", ["Mine", "2x", "a b", "clip", "class", "../x"])
def test_a_name_that_no_method_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        draft_method(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spec", ["anoclip:AnoClip", "clip:PlainClip"])
def test_a_copy_of_a_shipped_method_runs(
    spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, _, cls = spec.partition(":")
    copy = tmp_path / "mine.py"
    copy.write_text(method_cards()["clip"].path.with_name(f"{module}.py").read_text())
    words = ("--set", "templates=a photo of a {}", "--set", "size=64" if module == "anoclip" else "size=56")
    code, out, _ = zsad(capsys, "methods", "check", f"{copy}:{cls}", *words)
    assert code == 0 and "13 of 13 points hold" in out


def test_a_file_beside_goes_before_the_shipped_one(tmp_path: Path) -> None:
    """Else the edited copy of a copied method's helper would be left aside without a word."""
    (tmp_path / "_shared.py").write_text("LEVEL = 7\nfrom .anoclip import VIEWS_PER_FORWARD\n")
    spec = toy.write(
        tmp_path, "@dataclass(frozen=True)", "from ._shared import LEVEL\n\n@dataclass(frozen=True)"
    )
    first = parse_spec(spec)[0]
    module = sys.modules[user_class(spec).__module__]
    assert module.LEVEL == 7
    assert sys.modules[f"{module.__package__}._shared"].VIEWS_PER_FORWARD == 21
    assert sys.modules[f"{module.__package__}.anoclip"] is import_module("zsadbench.methods.anoclip")
    (tmp_path / "_shared.py").write_text("LEVEL = 8\n")
    assert sys.modules[user_class(spec).__module__].LEVEL == 8
    assert parse_spec(spec)[0].version != first.version


def test_check_names_the_users_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = 'return {"map": grid, "score": grid.flatten(1).amax(1)}'
    spec = toy.write(tmp_path, line, f"{line[:-1]}, **F.pad(grid, 3)}}")
    lines = (tmp_path / "mine.py").read_text().splitlines()
    place = next(n for n, text in enumerate(lines, 1) if "F.pad(grid, 3)" in text)
    code, out, _ = zsad(capsys, "methods", "check", spec)
    assert code == 1 and f"(mine.py:{place})" in out
    spec = toy.write(tmp_path, 'return evidence["score"]', 'return evidence["score"][:1]')
    lines = (tmp_path / "mine.py").read_text().splitlines()
    place = next(n for n, text in enumerate(lines, 1) if "def image_scores" in text)
    code, out, _ = zsad(capsys, "methods", "check", spec)
    assert code == 1 and f"it must be one number per image (mine.py:{place})" in " ".join(out.split())


# --- prompts ---


def test_the_prompts_of_a_category_as_they_are_sent(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = zsad(capsys, "methods", "show", "clip", "--prompts", "--words", "metal nut")
    assert code == 0
    assert out.splitlines() == [
        "# set 1 of 2: 1 prompts for 'object', worded 'metal nut'",
        "a photo of a normal metal nut",
        "# set 2 of 2: 1 prompts for 'object', worded 'metal nut'",
        "a photo of an anomalous metal nut",
    ]
    code, out, _ = zsad(capsys, "methods", "show", "anoclip", "--prompts", "--category", "macaroni1")
    assert "462 prompts for 'macaroni1', worded 'macaroni'" in out  # the method's own words
    code, out, _ = zsad(capsys, "methods", "show", "anomalyclip", "--prompts")
    assert out.splitlines()[1:] == [
        "X X X X X X X X X X X X object.",
        "X X X X X X X X X X X X damaged object.",
    ]


def test_a_prompt_file_to_start_from_gives_the_same_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.toml"
    code, out, _ = zsad(capsys, "methods", "show", "winclip", "--prompts-to", str(file))
    assert code == 0 and f"--prompts {file}" in out
    assert resolve("winclip", prompts=file).parameters == resolve("winclip").parameters
    code, _, err = zsad(capsys, "methods", "show", "winclip", "--prompts-to", str(file))
    assert code == 2 and "exists already" in err
    code, _, err = zsad(capsys, "methods", "show", "anomalyclip", "--prompts-to", str(tmp_path / "x.toml"))
    assert code == 2 and "takes no prompt file" in err and not (tmp_path / "x.toml").exists()

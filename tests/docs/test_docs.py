"""The documentation: pages in order, commands that exist, nothing public left out.

What only the built site can show (links, anchors, addresses of other hosts) is checked by `make docs`.
"""

from __future__ import annotations

import ast
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import commonmark
import examples
import outputs
import pages
import pytest
import typer
import yaml
from pages import api, methods

from zsadbench.boards.words import MARKS
from zsadbench.cli.app import app
from zsadbench.method import method_cards
from zsadbench.metrics import METRICS, worth

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WRITTEN = sorted(DOCS.rglob("*.md"))
TAKEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "datasets" / "README.md"]
NAMES = [str(path.relative_to(ROOT)) for path in (*WRITTEN, *TAKEN)]
FENCED = re.compile(r"^( *)(```|~~~).*?^ *\2 *$", re.M | re.S)
RUN_BY_SCRIPT = ("docs/walkthrough.md", "docs/prompts.md")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(DOCS)))
def test_a_page_has_a_description_and_one_title(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    described = yaml.safe_load(front)["description"]
    assert 20 <= len(described) <= 160, described
    titles = re.findall(r"^# .+", FENCED.sub("", body), re.M)
    assert len(titles) == 1
    assert all(alt.strip() for alt in re.findall(r"!\[([^\]]*)\]\(", body))


def test_every_written_page_stands_in_the_navigation() -> None:
    listed: set[str] = set()

    def walk(entry: Any) -> None:
        for part in entry.values() if isinstance(entry, dict) else entry:
            walk(part) if isinstance(part, dict | list) else listed.add(part)

    walk(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    filled = {place for entry in listed if entry[0] == "<" for place in pages.navigation(entry[1:-1])}
    assert {path.relative_to(DOCS).as_posix() for path in WRITTEN} <= listed | filled


def commands_of(name: str) -> list[str]:
    blocks = examples.blocks(text_of(name))
    inline = re.findall(r"`(zsad [a-z][^`]*)`", FENCED.sub("", text_of(name)))
    lines = [line for block in blocks for line in block.commands if line.startswith("zsad ")]
    return [*lines, *inline]


@pytest.mark.parametrize("name", NAMES)
def test_commands_name_verbs_and_options_that_exist(name: str) -> None:
    for line in commands_of(name):
        words = shlex.split(re.split(r"\s[|>&]|\s#|\.\.\.", line)[0])[1:]
        verb: Any = typer.main.get_command(app)
        while words and words[0] in getattr(verb, "commands", {}):
            verb = verb.commands[words.pop(0)]
        assert verb.callback or not words, f"{line}: no such verb"
        assert not getattr(verb, "commands", {}) or not words or words[0].startswith("-"), line
        known = {option for one in verb.params for option in (*one.opts, *one.secondary_opts)}
        known |= {"--help", "-h", "--debug", "--version", "--install-completion", "VERB"}
        asked = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert asked <= known, f"{line}: {asked - known}"


@pytest.mark.parametrize("name", NAMES)
def test_what_a_block_of_commands_needs_is_known(name: str) -> None:
    for block in examples.blocks(text_of(name)):
        assert set(block.needs) <= set(examples.NEEDS), f"{name}:{block.line}"


def test_blocks_without_a_mark_run_in_ci() -> None:
    """A page of commands shows their outputs or is carried out by `.ci/run`; all else carries a mark."""
    script = text_of(".ci/run")
    for path in WRITTEN:
        name = str(path.relative_to(ROOT))
        text = text_of(name)
        if any(block.runs for block in examples.blocks(text)) and "\noutputs: true\n" not in text:
            assert name in RUN_BY_SCRIPT, (
                f"{name}: mark its commands with <!-- needs ... -->, or let them run"
            )
            assert name in script


@pytest.mark.parametrize("room", api.MODULES)
def test_the_api_has_every_public_name(room: str) -> None:
    module = import_module(api.name_of(room))
    page = api.page_of(room)
    named = [name for name in getattr(module, "__all__", api.public_names(room)) if name[0] != "_"]
    assert named
    for name in named:
        assert re.search(rf"^::: zsadbench\S*\b{name}$|^\| `{name}` \|", page, re.M), name


@pytest.mark.parametrize("room", api.MODULES)
def test_the_api_names_things_where_they_are_defined(room: str) -> None:
    module = import_module(api.name_of(room))
    for home in re.findall(r"^::: (\S+)$", api.page_of(room), re.M):
        place, _, name = home.rpartition(".")
        assert getattr(import_module(place), name) is getattr(
            module, name, getattr(import_module(place), name)
        )


def test_every_method_has_its_row_in_the_table() -> None:
    rows = re.findall(
        r"^\| \[`([^`]+)`\]\((\S+)\) \| ([^|]+) \| ([^|]+) \|", text_of("docs/which-method.md"), re.M
    )
    table = {name: (place, trained.strip(), scores) for name, place, trained, scores in rows}
    for card in method_cards().values():
        place, trained, scores = table[card.id]
        assert place == methods.place(card.id)
        assert (trained == "yes") == card.trained, card.id
        assert ("all images" in scores) == card.transductive, card.id
        assert ("order" in scores) == card.order_dependent, card.id


def test_specifications_belong_to_methods() -> None:
    families = set(methods.specified().values())
    assert families == {path.stem for path in methods.SPECIFICATIONS.glob("*.md")}
    for path in methods.SPECIFICATIONS.glob("*.md"):
        text = path.read_text()
        assert not re.search(r"held-out|/work|shared/|\bthe toolkit\b|TODO", text), path.name


def test_a_method_page_holds_what_its_card_says() -> None:
    page = pages.completed("reference/methods/crane.md", "# Crane\n\n## Sources\n")
    assert page.startswith("# Crane\n")
    for said in (
        "`crane`, version 1",
        "`crane@no-pooling`",
        "[AlirezaSalehy/Crane](https://github.com/",
        "## Sources",
    ):
        assert said in page
    assert "its family](crane.md)" in pages.made()["reference/methods/crane-plus.md"]
    alone = pages.completed("reference/methods/winclip.md", "# WinCLIP\n")
    assert "`winclip@code21`" in alone


def test_variables_of_the_environment_are_listed() -> None:
    page = text_of("docs/reference/environment.md")
    read = {
        found
        for path in (ROOT / "zsadbench").rglob("*.py")
        for found in re.findall(r"\b(?:ZSAD_[A-Z]+|XDG_CACHE_HOME|GITHUB_ACTIONS)\b", path.read_text())
    }
    assert read == set(re.findall(r"`(ZSAD_[A-Z]+|XDG_CACHE_HOME|GITHUB_ACTIONS)`", page)) | {
        "XDG_CACHE_HOME"
    }


def test_exit_codes_are_listed() -> None:
    used = set()
    for path in (ROOT / "zsadbench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "Exit":
                used |= {one.value for one in node.args if isinstance(one, ast.Constant)}
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("exit_code", "FAULT"):
                used.add(ast.literal_eval(node.value))
    assert used <= set(pages.EXIT_CODES) and {1, 2, 3, 70, 130} <= used


def test_every_metric_has_definition_range_what_it_hides_and_when_to_use_it() -> None:
    text = text_of("docs/reference/metrics.md")
    table = text.partition("## What each says, and what it hides\n")[2].partition("\n## ")[0]
    head, _, *rows = [
        [cell.strip() for cell in line[2:-2].split(" | ")] for line in table.splitlines() if "|" in line
    ]
    assert head == ["metric", "definition", "range", "what it hides", "when to use it"]
    about: dict[str, list[str]] = {}
    for first, *others in rows:
        assert len(others) == 4 and all(len(cell) > 5 for cell in others), first
        about |= dict.fromkeys(re.findall(r"`([^`]+)`", first), others)
    assert set(METRICS) <= set(about)
    for metric, (_, span, *_) in about.items():
        best = 0 if metric in METRICS and worth(metric, 1.0) < 0 else 1
        assert span.startswith(f"0 to 1, {best} is best"), metric


def test_marks_of_boards_are_filled_in() -> None:
    page = pages.completed("concepts.md", text_of("docs/concepts.md"))
    assert all(f"\n| {name}" in page and meaning in page for name, meaning in MARKS.items())


LISTS = """text
- one
  more of it
  - inner
    - innermost
- two

  a paragraph of two

1. first

   ```
   - no list
   ```
2. second
after
"""


def test_lists_get_the_form_that_python_markdown_reads() -> None:
    assert commonmark.lists(LISTS).splitlines() == [
        "text",
        "",
        "- one",
        "    more of it",
        "    - inner",
        "        - innermost",
        "- two",
        "",
        "    a paragraph of two",
        "",
        "1. first",
        "",
        "    ```",
        "    - no list",
        "    ```",
        "2. second",
        "    after",
    ]


def test_lists_leave_code_and_plain_text_alone() -> None:
    text = "a - b\n\n    - code by indentation\n\n```\n- fenced\n```\n"
    assert commonmark.lists(text) == text


def test_a_block_runs_unless_it_needs_something() -> None:
    page = (
        "```\nzsad demo data\n```\n"
        "<!-- needs data network -->\n```bash\nzsad run \\\n  --quiet\n```\n"
        "```toml\na = 1\n```\n"
    )
    first, second, third = examples.blocks(page)
    assert first.runs and first.commands == ["zsad demo data"]
    assert second.needs == ("data", "network") and not second.runs
    assert second.commands == ["zsad run    --quiet"]
    assert not third.commands and not third.runs
    assert examples.script(page) == "zsad demo data"
    assert examples.NEEDS["network"] in examples.marked(page) and "<!--" not in examples.marked(page)


SHOWN = """---
outputs: true
---
```
mkdir one && echo made > one/word
cat one/word
```
<!-- needs data -->
```
cat nothing
```
```
cp one/word picture.png
```
![a picture](made/picture.png)
"""


def test_what_commands_print_stands_below_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "ROOT", tmp_path)
    assert outputs.asked(SHOWN) and not outputs.asked(SHOWN.replace("outputs: true", "title: x"))
    assert outputs.shown(SHOWN).count("```text") == 1
    assert "cat one/word\n```\n\n```text\nmade\n```\n" in outputs.shown(SHOWN)
    assert outputs.pictures(SHOWN) == {"picture.png": b"made\n"}
    assert len(list((tmp_path / ".cache" / "docs").iterdir())) == 1


def test_a_failing_command_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match="a command of the docs failed"):
        outputs.shown(SHOWN.replace("cat one/word", "cat two"))
    assert not (tmp_path / ".cache").exists()

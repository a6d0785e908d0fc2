"""Text from outside: what terminals, Markdown and spreadsheets are given is only text, and readable."""

from __future__ import annotations

import csv
import html
import io
import random

import pytest
from markdown_it import MarkdownIt

from zsadbench.text import block, console, csv_cell, csv_text, markdown, say, terminal

HOSTILE = {
    "escape sequence": "a\x1b[31mred\x1b]0;title\x07b",
    "C1 control": "a\x9b31mb",
    "turns the direction": "abc\u202egnp.exe",
    "isolates": "\u2066a\u2069",
    "no width": "a\u200bb\u200dc\ufeff",
    "line separators": "a\u2028b\u2029c",
    "line ends": "a\r\nb\vc\fd\x85e",
    "half a pair": "a\ud800b\udcffc",
    "tag characters": "a\U000e0041b",
    "backspaces": "abc\b\b\bx",
}
SIGNS = [
    *"ab \\`*_[]()<>|~&$#!+-=:/.@'\"\n\t\r",
    "\x1b",
    "\u202e",
    "\ud800",
    "é",
    "鉄",
    "www.",
    "http://",
    "1. ",
]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_terminal_gets_nothing_it_would_obey(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert terminal(text).isprintable()
    assert terminal(text) == "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    say(text)
    console(width=200).print(text)
    lines = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() for line in lines)
    assert lines == 2 * block(text).split("\n")


def test_plain_names_stay_as_they_are() -> None:
    for name in ("metal nut", "anoclip+@clean-taps", "Schraube-ä", "螺丝", "✓ naïve", "a\\b"):
        assert terminal(name) == name


def test_a_console_reads_no_markup_and_measures_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table(box=None)
    table.add_column("[bold]name[/bold]")
    table.add_column("n")
    table.add_row("[red]x[/red] :smile: \x1b[1m", "1")
    console(width=80).print(table)
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["[bold]name[/bold]", "n"]
    assert row.split("  ") == [" [red]x[/red] :smile: \\x1b[1m", "1 "]


def test_what_an_encoding_lacks_becomes_an_escape() -> None:
    stream = io.TextIOWrapper(raw := io.BytesIO(), encoding="ascii")
    say("naïve 鉄", stream)
    assert raw.getvalue() == b"na\\xefve \\u9244\n"


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "[click](http://evil)",
        "![x](http://evil/x.png)",
        "a|b",
        "`code`",
        "**bold** _it_ ~~gone~~",
        "<http://evil>",
        "&lt;b&gt; &copy;",
        "# title",
        "- item",
        "1. item",
        "2) item",
        "> quoted",
        "---",
        "===",
        "a\nb",
        "$x$",
        "back\\slash",
    ],
)
def test_markdown_shows_names_letter_by_letter(text: str) -> None:
    shown = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown(text))
    assert shown == f"<p>{html.escape(text.replace(chr(10), ' '), quote=False)}</p>\n"
    row = MarkdownIt("commonmark").enable("table").render(f"| a | b |\n| - | - |\n| {markdown(text)} | 1 |\n")
    assert f"<td>{html.escape(text.replace(chr(10), ' '), quote=False)}</td>\n<td>1</td>" in row


def test_bare_addresses_are_no_links() -> None:
    assert markdown("see http://evil or www.evil.org") == r"see http\://evil or www\.evil.org"


def test_markdown_leaves_ordinary_names_readable() -> None:
    for name in ("anoclip+@clean-taps", "image_auroc", "52.5 ± 1.0", "mvtec (15 categories)", "-0.5", "+1.2"):
        assert markdown(name) == name


def test_any_text_is_text_in_markdown() -> None:
    draw = random.Random(7)
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for _ in range(2000):
        text = "".join(draw.choices(SIGNS, k=draw.randint(1, 12))).strip() or "x"
        wanted = html.escape(terminal(text.replace("\n", " ")).strip(), quote=False).replace('"', "&quot;")
        assert reader.render(markdown(text)) == f"<p>{wanted}</p>\n", text


@pytest.mark.parametrize("start", [*"=+-@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_no_cell_is_a_formula(start: str) -> None:
    name = f"{start}cmd|'/c calc'!A1"
    assert csv_cell(name) == f"'{name}"
    assert csv_text(csv_cell(name)) == name


def test_cells_read_back_exactly() -> None:
    draw = random.Random(3)
    names = ["".join(draw.choices("'=+-@a,\n\"", k=draw.randint(0, 5))) for _ in range(2000)]
    file = io.StringIO(newline="")
    csv.writer(file).writerows([csv_cell(name), "x"] for name in names)
    file.seek(0)
    assert [csv_text(cell) for cell, _ in csv.reader(file)] == names
    assert csv_cell("'quoted'") == "'quoted'" and csv_cell("metal nut") == "metal nut"

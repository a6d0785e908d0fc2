"""What the commands of a page print, and the pictures they write: made in the build.

A page asks for it with ``outputs: true`` in its front matter; its pictures stand in ``made/`` beside it. What
was made is kept in ``.cache/docs`` until the commands or the package change.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import examples

ROOT = Path(__file__).parents[2]
LINES = 40
"""Longer outputs are cut."""
_ASKED = re.compile(r"\A---\n(?:.*\n)*?outputs: true\n(?:.*\n)*?---\n")
_PICTURE = re.compile(r"\]\(made/([\w-]+\.png)\)")
_MARK = "@@ end of a block @@"


def asked(text: str) -> bool:
    """Tell whether a page wants the outputs of its commands."""
    return bool(_ASKED.match(text))


def pictures(text: str) -> dict[str, bytes]:
    """Return the pictures that a page shows, by name."""
    folder = _made(text)
    return {name: (folder / name).read_bytes() for name in dict.fromkeys(_PICTURE.findall(text))}


def shown(text: str) -> str:
    """Return a page with the output of each block that runs below it."""
    printed = iter(json.loads((_made(text) / "outputs.json").read_text()))
    done, end = [], 0
    for block in examples.blocks(text):
        if block.runs:
            done.append(text[end : block.end])
            end = block.end
            if said := next(printed):
                done.append(f"\n\n```text\n{said}\n```\n")
    return "".join([*done, text[end:]])


def _made(text: str) -> Path:
    """Return the folder that holds what the commands of a page made; they run if it is not there yet."""
    wanted = [*_PICTURE.findall(text), *(line for block in _running(text) for line in block.lines)]
    key = hashlib.sha256("\n".join([*wanted, _package()]).encode()).hexdigest()[:16]
    folder = ROOT / ".cache" / "docs" / key
    if not (folder / "outputs.json").exists():
        with tempfile.TemporaryDirectory() as place:
            printed = _run(_running(text), Path(place) / "work")
            folder.mkdir(parents=True, exist_ok=True)
            for name in _PICTURE.findall(text):
                shutil.copy(Path(place) / "work" / name, folder / name)
        (folder / "outputs.json").write_text(json.dumps(printed))
    return folder


def _running(text: str) -> list[examples.Block]:
    return [block for block in examples.blocks(text) if block.runs]


def _run(blocks: list[examples.Block], place: Path) -> list[str]:
    """Carry out blocks in one shell and return what each printed on standard output."""
    place.mkdir()
    command = place.parent / "bin" / "zsad"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom zsadbench.cli import main\n\nmain()\n")
    command.chmod(0o755)
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {
        **os.environ,
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": paths,
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }
    script = "set -e\n" + "".join("\n".join(block.lines) + f"\necho '{_MARK}'\n" for block in blocks)
    done = subprocess.run(["bash", "-c", script], cwd=place, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"a command of the docs failed ({done.returncode}):\n{done.stdout}\n{done.stderr}")
    return [_cut(part) for part in done.stdout.split(_MARK + "\n")[:-1]]


def _cut(printed: str) -> str:
    lines = [line.rstrip() for line in printed.strip("\n").splitlines()]
    return "\n".join(lines if len(lines) <= LINES else [*lines[:LINES], "..."])


def _package() -> str:
    """Return a digest of all that can change an output."""
    digest = hashlib.sha256()
    for room in ("zsadbench", "methods", "datasets"):
        for path in sorted((ROOT / room).rglob("*")):
            if path.is_file() and path.suffix in (".py", ".toml", ".json", ".safetensors"):
                digest.update(path.read_bytes())
    return digest.hexdigest()

"""What must agree before a release: ``python .ci/release.py dist`` exits with 1 where something does not.

Version of the package, CITATION.cff, the changelog's newest heading, and the files in ``dist``.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def disagreements(root: Path, dist: Path) -> Iterator[str]:
    """Yield what does not agree with the version in pyproject.toml."""
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    told = re.search(r'^VERSION = "(.+)"$', (root / "zsadbench" / "environment.py").read_text(), re.M)
    if not told or told[1] != version:
        yield f"zsadbench/environment.py does not say {version}"
    cited = re.search(r"^version: (.+)$", (root / "CITATION.cff").read_text(), re.M)
    if not cited or cited[1] != version:
        yield f"CITATION.cff does not say {version}"
    newest = re.search(r"^## (\S+)", (root / "CHANGELOG.md").read_text(), re.M)
    if not newest or newest[1] != version:
        yield f"CHANGELOG.md begins with '{newest[1] if newest else ''}', not with {version}"
    wanted = {f"zsadbench-{version}.tar.gz", f"zsadbench-{version}-py3-none-any.whl"}
    if (found := {path.name for path in dist.iterdir()}) != wanted:
        yield f"{dist} holds {', '.join(sorted(found)) or 'nothing'}, not {', '.join(sorted(wanted))}"


if __name__ == "__main__":
    wrong = list(disagreements(ROOT, Path(sys.argv[1])))
    print("\n".join(wrong) or "version, citation, changelog and files agree")
    sys.exit(bool(wrong))

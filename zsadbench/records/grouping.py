"""Which images belong together: a column of ``images.csv``, a pattern of keys, or a list in a file."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import RecordError, UsageError, suggest
from .files import read_text
from .tables import IMAGES_CSV, ImageRow

_NAME = re.compile(r"[A-Za-z][\w-]*")


@dataclass(frozen=True)
class Grouping:
    """A way to tell which images belong together, as a user writes it: NAME, REGEX or FILE.csv.

    * NAME: a group of the dataset's description, which is a column of ``images.csv``.
    * REGEX: what it finds in the key; where it has captures, these.
    * FILE.csv: two columns with headings, ``key`` and another one.
    """

    text: str

    @property
    def is_name(self) -> bool:
        """Whether it is a group of the description."""
        return _NAME.fullmatch(self.text) is not None

    @property
    def name(self) -> str:
        """What a group is called in headings and names of files."""
        if self.is_name:
            return self.text
        return Path(self.text).stem if self.is_file else "group"

    @property
    def is_file(self) -> bool:
        """Whether it is a list in a file."""
        return self.text.lower().endswith(".csv")

    def of(self, rows: Sequence[ImageRow], where: Path) -> dict[str, str]:
        """Return the group of every image by its key; images in none are left out.

        ``where`` is the folder of the record whose ``images.csv`` has the rows.

        Raises:
            RecordError: for a group or a file that there is not, and where no image is in a group.
            UsageError: for a pattern that is none.
        """
        if self.is_name:
            found = self._named(rows, where)
        elif self.is_file:
            found = {row.key: self._listed[row.key] for row in rows if row.key in self._listed}
        else:
            matches = ((row.key, self._pattern.search(row.key)) for row in rows)
            found = {key: "|".join(m.groups(default="")) or m[0] for key, m in matches if m}
        if not any(found.values()):
            first = rows[0].key if rows else "none"
            raise RecordError(
                f"'{self.text}' puts no image of {where} into a group (its first key is {first})"
            )
        return {key: value for key, value in found.items() if value}

    def _named(self, rows: Sequence[ImageRow], where: Path) -> dict[str, str]:
        known = dict.fromkeys(name for row in rows for name in row.groups)
        if self.text in known:
            return {row.key: row.groups.get(self.text, "") for row in rows}
        has = suggest(self.text, known) if known else " It has none."
        raise RecordError(
            f"{where / IMAGES_CSV}: no group '{self.text}'.{has} `zsad score RUN_DIR` writes those of the "
            "dataset's description; a REGEX of keys or a FILE.csv does without"
        )

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        try:
            return re.compile(self.text)
        except re.error as error:
            raise UsageError(f"'{self.text}' is no group, FILE.csv or regular expression ({error})") from None

    @cached_property
    def _listed(self) -> Mapping[str, str]:
        path = Path(self.text)
        text = read_text(path, "save it as UTF-8 text")
        reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
        try:
            header, *lines = [[cell.strip() for cell in cells] for cells in reader if any(cells)]
        except (ValueError, csv.Error):
            raise RecordError(f"{path}: no csv with headings; write key and group.") from None
        if len(header) != 2 or header[0] != "key":
            raise RecordError(f"{path}: its columns are {', '.join(header)}; write two, key and group.")
        for cells in lines:
            if len(cells) != 2:
                raise RecordError(f"{path}: a line has {len(cells)} cells, not 2: {','.join(cells):.60}")
        return {cells[0]: cells[1] for cells in lines}

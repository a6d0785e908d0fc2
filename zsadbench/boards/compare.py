"""``compare``: records become boards, one for each group that may stand in one column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack, cast, get_args

from ..errors import RecordError, UsageError, suggest
from ..metrics import AVERAGE_RANK, DERIVED, MAD, METRICS, NEEDS_NORMALS, SEVEN, spro_limit, takes_percent
from ..records import Group, Grouping, Record, is_metric, load_records, metric_order, near_runs
from ..scoring import NOBODY, UserMethods
from .beside import Choice
from .board import DEFAULT_METRICS, FEWEST_REPLICATES, Board, frame_of, paired_frame
from .pairs import in_order
from .rows import COSTS, By, Row, contests, rows_of, with_average_ranks
from .statistics import with_statistics

if TYPE_CHECKING:
    import pandas as pd

_SHORT = {"rank": AVERAGE_RANK}
"""What a metric may be called too."""


class BoardOptions(TypedDict, total=False):
    """What boards shall show: the options of :func:`boards`, which says what holds where one is left out."""

    metrics: Sequence[str] | None
    by: str | None
    sort: str | None
    published: bool | Choice
    merge: bool
    intervals: bool
    paired: bool
    replicates: int
    users: UserMethods
    inductive_only: bool
    per: str | None
    group_by: str | None


def boards(
    records: Sequence[Record],
    *,
    metrics: Sequence[str] | None = None,
    by: str | None = None,
    sort: str | None = None,
    published: bool | Choice = "fitting",
    merge: bool = False,
    intervals: bool = False,
    paired: bool = False,
    replicates: int = 1000,
    users: UserMethods = NOBODY,
    inductive_only: bool = False,
    per: str | None = None,
    group_by: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Board]:
    """Return one board per group of records, sorted by dataset and protocol.

    ``metrics`` are ids, by default :data:`DEFAULT_METRICS` and those that records were asked for; among them
    may be ``mad``, the mean of seven, ``rank``, the average rank over the others, and what runs took
    (``encode_ms``, ``latency_ms`` ...: :data:`zsadbench.boards.rows.COSTS`).  ``by`` is
    ``"category"`` for one row per method and category, or a group of images as
    :class:`zsadbench.records.Grouping` writes it for one row per method and value; ``per`` is such a
    group whose highest image score stands for all its images, and
    ``group_by`` one whose images are drawn together.  ``sort`` is a metric, by default the first one that has
    a value; ``merge`` demands a single board.  ``published`` are the published figures beside ours: those
    that were made under the same conditions (``"fitting"``, or True), ``"all"``, marked with what differs, or
    ``"none"`` (False); none stand beside groups.  ``intervals`` adds 95 % intervals and ranks from
    ``replicates`` draws of the test images, ``paired`` also every pair of methods, in the order of
    ``records``; ``users`` are the users' methods whose code may render maps for them; ``say`` is told what
    takes long.  ``inductive_only`` leaves out rows whose numbers need other test images.

    Raises:
        UsageError: for an unknown metric, ``by`` or ``published``, or too few ``replicates``.
        RecordError: for a metric no record has, when ``merge`` meets records of several groups, for image
            scores that cannot be read, or where ``inductive_only`` leaves nothing.
    """
    costs = tuple(name for name in dict.fromkeys(metrics or ()) if name in COSTS)
    metrics = [name for name in metrics or () if name not in COSTS] or None
    if costs and by not in (None, "method"):
        raise UsageError(f"--metric {costs[0]}: only a whole run has that; leave --by {by} out")
    _require_sense(by, per, group_by, intervals or paired)
    left_out = [record for record in records if inductive_only and not record.inductive]
    records = inductive_records(records) if inductive_only else records
    chosen = _known_metrics(records, metrics or _default(records), optional=metrics is None)
    if per and metrics and (lost := [name for name in chosen if name.startswith("pixel_") or name == MAD]):
        raise UsageError(
            f"--per {per} leaves one image score per group, and no maps: leave {', '.join(lost)} out"
        )
    choice = _choice(published)
    facets = None if by is None or by in get_args(By) else Grouping(by)
    records = _views(records, facets, Grouping(per) if per else None, chosen, users, say)
    (sort,) = _known_metrics(records, [sort], optional=False) if sort else (None,)
    grouping: By = "category" if by == "category" or facets else "method"
    choice = "none" if facets or per else choice
    groups: dict[Group, list[Record]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record)
    if merge and len(groups) > 1:
        raise RecordError(_odd_one(groups))
    tables = [_board(group, groups[group], chosen, grouping, sort, choice) for group in sorted(groups)]
    axis, unit = facets.name if facets else "category", Grouping(per).name if per else ""
    tables = [replace(board, axis=axis, unit=unit, costs=costs) for board in tables]
    tables = [
        replace(board, notes=(*_kept_apart(board, tables), *_left_out(board.group, left_out)))
        for board in tables
    ]
    if not intervals and not paired:
        return tables
    if replicates < FEWEST_REPLICATES:
        raise UsageError(f"{replicates} replicates say little; give {FEWEST_REPLICATES} or more")
    if paired and all(len({row.label for row in board.rows}) < 2 for board in tables):
        raise RecordError(_no_pair(groups))
    return [
        with_statistics(
            board,
            board.judged_by(sort),
            records,
            paired=paired,
            replicates=replicates,
            users=users,
            grouping=Grouping(group_by) if group_by else None,
            say=say,
        )
        for board in tables
    ]


def compare(paths: str | Path | Sequence[str | Path], **options: Unpack[BoardOptions]) -> pd.DataFrame:
    """Return the boards of the records at or below ``paths`` as one frame, full precision in [0, 1].

    The columns ``dataset`` to ``metric_version`` name the group a row belongs to: only rows that
    agree in them may be compared.  ``options``, all of them optional:

    * ``metrics``: ids of metrics; those of every board where none are named.
    * ``by``: ``"category"`` for one row per method and category, or a group of images.
    * ``sort``: a metric; otherwise the first one that has a value.
    * ``published="fitting"``: published numbers beside ours: ``"fitting"``, ``"all"`` or ``"none"``.
    * ``merge=False``: demand a single board.
    * ``intervals=False``: add 95 % intervals and ranks, from draws of the test images.
    * ``paired=False``: one row per pair of methods and metric instead, as
      :func:`zsadbench.boards.board.paired_frame` has it.
    * ``replicates=1000``: how many draws.
    * ``users``: the users' methods whose code may run for intervals of pixel metrics
      (:class:`zsadbench.scoring.UserMethods`).
    * ``inductive_only=False``: leave out rows whose numbers need other test images.
    * ``per``: one score per group of images, the highest of them.
    * ``group_by``: a group whose images are drawn together.

    Raises:
        RecordError: if there is no record, or as :func:`boards` says.
    """
    several = [paths] if isinstance(paths, str | Path) else paths
    folders = [Path(path) for path in several]
    records = in_order(load_records(folders), folders)
    if not records:
        raise RecordError(nothing_there(folders))
    tables = boards(records, **options)
    return paired_frame(tables) if options.get("paired") else frame_of(tables)


def inductive_records(records: Sequence[Record]) -> list[Record]:
    """Return the records whose numbers need no other test image.

    Raises:
        RecordError: if there is none.
    """
    kept = [record for record in records if record.inductive]
    if records and not kept:
        raise RecordError("every row here needs other test images; leave --inductive-only out.")
    return kept


def _left_out(group: Group, records: Sequence[Record]) -> tuple[str, ...]:
    """Return a line that names the ``records`` of a group, whose numbers need other test images."""
    names = dict.fromkeys(record.method for record in records if record.group == group)
    return (f"Left out, as their numbers need other test images: {', '.join(names)}.",) if names else ()


def _require_sense(by: str | None, per: str | None, group_by: str | None, drawn: bool) -> None:
    """Refuse options that do not go together."""
    if by and by not in get_args(By) and (drawn or per):
        raise UsageError(f"--by {by} has neither intervals nor pairs, and each image has its own score there")
    if group_by and not drawn:
        raise UsageError("--group-by says what is drawn together: give --intervals or --paired too")
    if group_by and per:
        raise UsageError(
            f"--per {per} leaves one score per group, each drawn as a whole: leave --group-by out"
        )


def _views(
    records: Sequence[Record],
    facets: Grouping | None,
    per: Grouping | None,
    metrics: Sequence[str],
    users: UserMethods,
    say: Callable[[str], None],
) -> Sequence[Record]:
    """Return the records by a group or with one score per group, where that is asked for."""
    if not facets and not per:
        return records
    from ..scoring import by_group, merged  # loads torch

    if per:
        return [merged(record, per) for record in records]
    assert facets
    pixels = any(metric.startswith("pixel_") or metric == MAD for metric in metrics)
    views = []
    for record in records:
        rows = record.images()
        known = dict.fromkeys(name for row in rows for name in row.groups)
        if facets.is_name and facets.text not in known:
            near = suggest(facets.text, [*get_args(By), *known])
            raise UsageError(
                f"cannot make a board by '{facets.text}'.{near} It is no group of {record.path.parent}; "
                "`zsad score RUN_DIR` writes those of the dataset's description"
            )
        views.append(by_group(record, facets, rows, pixels=pixels, users=users, say=say))
        for note in views[-1].notes[len(record.notes) :]:
            say(note)
    return views


def nothing_there(paths: Sequence[Path]) -> str:
    """Return in words why there is nothing to compare and what to do."""
    names = ", ".join(map(str, paths))
    runs = near_runs(paths)
    below = any(True for path in paths if path.is_dir() for _ in path.rglob("observation.json"))
    if below:
        return (
            f"{names}: evidence but no readable record; run `zsad score RUN_DIR`, it needs no CLIP; {runs}."
        )
    return f"{names}: no readable record here; {runs}."


def _choice(published: bool | str) -> Choice:
    names = get_args(Choice)
    if isinstance(published, bool):
        published = "fitting" if published else "none"
    if published not in names:
        raise UsageError(f"cannot show '{published}' published figures.{suggest(published, names)}")
    return cast(Choice, published)


def _default(records: Sequence[Record]) -> tuple[str, ...]:
    """Return the usual metrics, and those that some record was asked for."""
    asked = {metric for record in records for metric in record.protocol.get("metrics", ())}
    return (*DEFAULT_METRICS, *sorted(filter(is_metric, asked), key=metric_order))


def _known_metrics(records: Sequence[Record], wanted: Sequence[str], optional: bool) -> tuple[str, ...]:
    present = {metric for record in records for metric in record.metrics}
    wanted = [_SHORT.get(metric, metric) for metric in wanted]
    for metric in wanted:
        if not is_metric(metric) and metric not in DERIVED:
            raise UsageError(f"unknown metric '{metric}'.{_nearest(metric)}")
        if metric == MAD and (lacking := [name for name in SEVEN if name not in present]):
            raise RecordError(f"'{MAD}' is a mean of seven metrics, and no record has {', '.join(lacking)}.")
        if metric not in (*present, *DERIVED) and not optional:
            limit = metric.partition("@")[2]
            remedy = (
                f"`zsad score RUN_DIR --aupro-limit {limit}` adds it" if limit else "score the runs again"
            )
            if metric in NEEDS_NORMALS or spro_limit(metric) or takes_percent(metric):
                remedy = f"`zsad run --metric {metric}` adds it"
            raise RecordError(f"no record has the metric '{metric}'; {remedy}.")
    return tuple(dict.fromkeys(wanted))


def _nearest(metric: str) -> str:
    """Return the metrics that a wrong name is part of, else the nearest one, else all."""
    parts = [known for known in METRICS if metric.lower() in known.split("_")]
    known = (*METRICS, *DERIVED, *_SHORT, *COSTS)
    return f" Did you mean {' or '.join(map(repr, parts))}?" if len(parts) > 1 else suggest(metric, known)


def _board(
    group: Group,
    records: Sequence[Record],
    metrics: tuple[str, ...],
    by: By,
    sort: str | None,
    published: Choice,
) -> Board:
    rows = rows_of(records, metrics, by, published)
    if AVERAGE_RANK in (*metrics, sort):
        rows = with_average_ranks(rows, contests(metrics))
    board = Board(group, by, metrics, tuple(rows))
    key = sort or board.shown[0]
    categories = {name: i for i, name in enumerate(dict.fromkeys(row.category for row in rows))}

    def order(row: Row) -> tuple[int, float, str]:
        return (categories[row.category], row.standing(key), row.label)

    return replace(board, rows=tuple(sorted(rows, key=order)), sorted_by=key)


def _kept_apart(board: Board, tables: Sequence[Board]) -> tuple[str, ...]:
    """Return what sets a board apart from others of its dataset and protocol, which look alike."""
    own = board.group
    others = [
        other.group
        for other in tables
        if (other.group.dataset, other.group.protocol) == (own.dataset, own.protocol) and other is not board
    ]
    return tuple(
        f"Apart from another board of {own.dataset}: {', '.join(own.differences(other))}." for other in others
    )


def _odd_one(groups: dict[Group, list[Record]]) -> str:
    """Say which group stands apart from the largest one, where its records lie and in what it differs."""
    ranked = sorted(groups, key=lambda group: (-len(groups[group]), group))
    usual, odd = ranked[0], ranked[-1]
    lies = ", ".join(str(record.path.parent) for record in groups[odd])
    return (
        f"these records cannot stand in one column: {lies} ({odd}) has {', '.join(odd.differences(usual))}; "
        "leave it out or score all runs under one protocol with `zsad score`."
    )


def _no_pair(groups: dict[Group, list[Record]]) -> str:
    if len(groups) > 1:
        return _odd_one(groups)
    return (
        "only one method here (equal runs count once), and a pair needs two; give the results of another "
        "method on this dataset."
    )

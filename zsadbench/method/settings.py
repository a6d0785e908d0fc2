"""The fields of a method as flat names with types: what ``--set`` and the cards write to.

A name is a field of the method, else of its ``preprocess`` (size, tiles, ...), else of its ``backbone``
(``weights``, ``activation``, ``position``; ``backbone`` itself is the architecture's name).  A field that
declares a second tower is two names: ``dino`` its name, ``dino_weights`` its weights.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import MethodError, UsageError, ZsadError, suggest
from ..inputs import Within, second_towers

M = TypeVar("M")

_TRUTH = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def places(method: Any) -> dict[str, tuple[str, ...]]:
    """Return every flat name of ``method`` with the path of the field it stands for."""
    found: dict[str, tuple[str, ...]] = {"backbone": ("backbone", "name")}
    for part in ("backbone", "preprocess"):
        nested = dataclasses.fields(getattr(method, part))
        found |= {field.name: (part, field.name) for field in nested if field.name != "name"}
    towers = second_towers(method)
    for part in towers:
        found |= {part: (part, "name"), f"{part}_weights": (part, "weights")}
    own = [f.name for f in dataclasses.fields(method) if f.init and f.metadata.get("parameter", True)]
    return found | {name: (name,) for name in own if name not in ("backbone", "preprocess", *towers)}


def override(
    method: M, settings: Mapping[str, Any], *, error: type[ZsadError] = UsageError, where: str = ""
) -> M:
    """Return ``method`` with ``settings`` (flat name -> text or value) in place, each of its field's type.

    Raises:
        ZsadError: of class ``error``, for a name that is no field or a value of another type; ``where`` is
            put before the message.
    """
    known = places(method)
    nested = ("preprocess", "backbone", *second_towers(method))
    changes: dict[str, dict[str, Any]] = {part: {} for part in ("", *nested)}
    for name, value in settings.items():
        if name not in known:
            raise error(f"{where}'{name}' is no parameter of this method.{_help(name, known)}")
        part, field = known[name][0] if len(known[name]) > 1 else "", known[name][-1]
        changes[part][field] = _typed(
            getattr(method, part) if part else method, field, value, name, error, where
        )
    for part in nested:
        if changes[part]:
            changes[""][part] = dataclasses.replace(getattr(method, part), **changes[part])
    try:
        return dataclasses.replace(method, **changes[""])  # type: ignore[type-var]
    except ValueError as reason:
        raise error(f"{where}{reason}") from None


def _help(name: str, known: Mapping[str, Any]) -> str:
    near = suggest(name, known)
    return near if near.startswith(" Known") else f"{near} Known: {', '.join(sorted(known))}."


def _typed(owner: Any, field: str, value: Any, name: str, error: type[ZsadError], where: str) -> Any:
    hint = hints(type(owner))[field]
    try:
        return convert(value, hint)
    except ValueError as reason:
        raise error(f"{where}{name}={_shown(value)}: must be {describe(hint)}.{reason}") from None


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def hints(cls: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields, with the numbers that they are bound to.

    Raises:
        MethodError: if an annotation names something that cannot be found when the program runs.
    """
    try:
        return get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise MethodError(
            f"{cls.__name__}: the type of a field cannot be resolved ({error}); "
            "import it at the top of the module"
        ) from None


def convert(value: Any, hint: Any) -> Any:
    """Return ``value`` (text, or a value of TOML) as the type ``hint``.

    Raises:
        ValueError: if it is not one; its text is a suggestion or empty.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _bounded(value, *args)
    if origin is Literal:
        return _choice(value, args)
    if origin in (Union, types.UnionType):
        return _first_fit(value, args)
    if origin is tuple:
        return _tuple(value, args)
    simple: dict[Any, Callable[[Any], Any]] = {bool: _bool, int: _int, float: _float, str: _str, Path: _path}
    if hint not in simple:
        raise ValueError
    return simple[hint](value)


def as_text(value: Any) -> str:
    """Return a value as it is written after ``--set NAME=``, which ``convert`` takes back."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(as_text, value)) if isinstance(value, list | tuple) else str(value)


def _bounded(value: Any, hint: Any, *marks: Any) -> Any:
    found = convert(value, hint)
    if any(found not in mark for mark in marks if isinstance(mark, Within)):
        raise ValueError
    return found


def _choice(value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if value == choice or (isinstance(value, str) and value == str(choice)):
            return choice
    near = suggest(str(value), [str(choice) for choice in choices])
    raise ValueError("" if near.startswith(" Known") else near)


def _first_fit(value: Any, options: tuple[Any, ...]) -> Any:
    if type(None) in options and (value is None or value == "none"):
        return None
    # A number written as text is a number where the field may be one.
    for option in sorted(options, key=lambda option: option is str):
        try:
            return convert(value, option)
        except ValueError:
            continue
    raise ValueError


def _tuple(value: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = [piece.strip() for piece in value.split(",") if piece.strip()]
    if not isinstance(value, list | tuple):
        raise ValueError
    kinds = (args[0],) * len(value) if args[-1] is Ellipsis else args
    if len(kinds) != len(value):
        raise ValueError
    return tuple(convert(item, kind) for item, kind in zip(value, kinds, strict=True))


def _bool(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in _TRUTH:
        return _TRUTH[value.lower()]
    if not isinstance(value, bool):
        raise ValueError
    return value


def _int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError
    try:
        return int(value)
    except ValueError:
        raise ValueError from None


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    try:
        number = float(value)
    except ValueError:
        raise ValueError from None
    if not math.isfinite(number):
        raise ValueError
    return number


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _path(value: Any) -> Path:
    return Path(_str(value))


def describe(hint: Any) -> str:
    """Return the type ``hint`` in words, as in "a whole number"."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [f" {mark}" for mark in args[1:] if isinstance(mark, Within)]
        return describe(args[0]) + "".join(bounds)
    if origin is Literal:
        return f"one of {', '.join(str(arg) for arg in args)}"
    if origin in (Union, types.UnionType):
        return " or ".join("'none'" if arg is type(None) else describe(arg) for arg in args)
    if origin is tuple and args[-1] is Ellipsis:
        return f"a list with commas, each {describe(args[0])}"
    if origin is tuple:
        return f"{len(args)} values with commas, each {describe(args[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
    return words.get(hint, f"set in Python ({getattr(hint, '__name__', hint)})")


def parameters(method: Any) -> dict[str, Any]:
    """Return every field of ``method`` as JSON values, nested ones as tables of their own.

    Fields with ``metadata={"parameter": False}`` (trained tensors) are left out.
    """
    return {
        field.name: _json(getattr(method, field.name), field.name)
        for field in dataclasses.fields(method)
        if field.metadata.get("parameter", True)
    }


def flattened(method: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `parameters` of a method like ``method`` by flat names, as ``override`` takes them."""
    names = {path: name for name, path in places(method).items()}
    nested = {path[0] for path in names if len(path) > 1}
    found: dict[str, Any] = {}
    for part, value in values.items():
        own = {(part, field): inner for field, inner in value.items()} if part in nested else {(part,): value}
        found |= {names.get(path, path[-1]): inner for path, inner in own.items()}
    return found


def _json(value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return parameters(value)
    if isinstance(value, tuple | list):
        return [_json(item, name) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _json(item, name) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise MethodError(
        f"field '{name}' holds a {type(value).__name__}, which a record cannot keep; use numbers, texts "
        'and tuples, or declare it with field(metadata={"parameter": False})'
    )

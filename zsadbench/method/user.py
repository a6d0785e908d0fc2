"""Methods that do not belong to the toolkit: a class in a user's file or package.

The card of such a method is made from the class: its docstring's first sentence is the title, and class
variables named like keys of a card (``order_dependent: ClassVar[bool] = True``) are taken over; it is trained
if it has a field ``checkpoint``.  Its version is a checksum of its source, so that an edited method is
observed anew.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from ..errors import MethodError, UsageError, ZsadError, is_out_of_memory, suggest
from .card import WORDINGS, WORDLESS, MethodCard, Training, method_cards

_KEYS = {
    "title": str,
    "paper": str,
    "wording": str,
    "trained": bool,
    "transductive": bool,
    "order_dependent": bool,
    "evidence_per_patch": int,
    "map_parameters": tuple,
    "inductive": dict,
    "words": dict,
}


def is_users(spec: str) -> bool:
    """Tell whether ``spec`` names a user's class and not a method of the toolkit."""
    return ":" in spec or spec.endswith(".py")


def user_class(spec: str) -> type:
    """Import and return the class that ``spec`` names, checked to be a method.

    Raises:
        UsageError: if the file or the class does not exist.
        MethodError: if it cannot be imported or is no method, saying what is missing.
    """
    if spec.endswith(".py"):
        raise UsageError(f"{spec}: name the class too, as in {spec}:Mine")
    place, _, name = spec.rpartition(":")
    module = _file_module(Path(place)) if place.endswith(".py") else _package_module(place)
    classes = [key for key, value in vars(module).items() if isinstance(value, type)]
    if name not in classes:
        own = [key for key in classes if vars(module)[key].__module__ == module.__name__]
        raise UsageError(f"{place}: no class '{name}'.{suggest(name, own)}")
    cls: type = vars(module)[name]
    check_class(cls, spec)
    return cls


def card_of(spec: str) -> MethodCard:
    """Return a card made from the class that ``spec`` names."""
    cls = user_class(spec)
    path = Path(inspect.getfile(cls))
    values = {key: _class_value(cls, key, kind, spec) for key, kind in _KEYS.items() if hasattr(cls, key)}
    summary = (inspect.getdoc(cls) or "").split("\n\n")[0].split(". ")[0].replace("\n", " ").rstrip(".")
    # A dataclass without a docstring gets its signature as one.
    values.setdefault(
        "title", cls.__name__ if summary.startswith(f"{cls.__name__}(") else summary or cls.__name__
    )
    values.setdefault("trained", "checkpoint" in {field.name for field in dataclasses.fields(cls)})
    version = zlib.crc32(_source(path))
    return MethodCard(
        id=f"{path.stem}.{cls.__name__}",
        version=version,
        entry=spec,
        path=path,
        training=_inherited_training(cls),
        **values,
    )


def _inherited_training(cls: type) -> Training | None:
    """Return how the shipped method is trained whose class ``cls`` is or inherits from."""
    shipped = {f"zsadbench.methods.{card.entry}": card for card in method_cards().values()}
    names = [f"{base.__module__}:{base.__qualname__}" for base in cls.__mro__]
    return next((shipped[name].training for name in names if name in shipped), None)


def check_class(cls: type, spec: str) -> None:
    """Refuse a class that is no method.

    Raises:
        MethodError: naming everything that is wrong.
    """
    from ..inputs import Backbone, Preprocess

    faults = []
    if not dataclasses.is_dataclass(cls):
        faults.append("it is no dataclass (put @dataclass(frozen=True) above it)")
    elif not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        faults.append("it is not frozen (write @dataclass(frozen=True))")
    faults += [
        f"it has no {name}()" for name in ("prepare", "maps", "image_scores") if not _callable(cls, name)
    ]
    if not faults:
        try:
            made = cls()
        except ZsadError:
            raise
        except Exception as error:
            faults.append(f"it cannot be made without arguments ({error}); give every field a default")
        else:
            for name, kind in (("preprocess", Preprocess), ("backbone", Backbone)):
                if not isinstance(getattr(made, name, None), kind):
                    faults.append(f"its field '{name}' is no zsadbench.method.{kind.__name__}")
    if faults:
        raise MethodError(f"{spec} is no method: {'; '.join(faults)}")


def _callable(cls: type, name: str) -> bool:
    return callable(getattr(cls, name, None))


def _class_value(cls: type, key: str, kind: type, spec: str) -> Any:
    value = getattr(cls, key)
    value = tuple(value) if kind is tuple and isinstance(value, list) else value
    if not isinstance(value, kind) or (key == "wording" and value not in (*WORDINGS, WORDLESS)):
        wanted = (
            f"one of {', '.join((*WORDINGS, WORDLESS))}" if key == "wording" else f"of type {kind.__name__}"
        )
        raise MethodError(f"{spec}: the class variable '{key}' must be {wanted}, not {value!r}")
    return value


def _file_module(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    return _imported(path, zlib.crc32(os.fsencode(path.resolve()) + _source(path)))


@cache
def _imported(path: Path, stamp: int) -> ModuleType:
    # A package of its own, so that files of one name, a file named like a library, or two states of one
    # file do not collide.
    package = ModuleType(f"{PACKAGES}{stamp:08x}")
    package.__path__ = [str(path.resolve().parent)]
    sys.modules[package.__name__] = package
    let_shipped_in()
    name = f"{package.__name__}.{path.stem}"
    spec = _spec_of(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]  # it was given one
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise MethodError(f"{_where(error, path)}: cannot be imported ({said_of(error)})") from error
    return module


def source_digest(card: MethodCard) -> str:
    """Return the SHA-256 of the file a user's method is in and those beside it that it imports.

    It is that of the file where it imports none, and empty for a method of the toolkit.
    """
    return "" if card.path.suffix == ".toml" else hashlib.sha256(_source(card.path)).hexdigest()


def _source(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in source_files(path))


@contextmanager
def blamed(owner: object, name: str) -> Iterator[None]:
    """Say of whatever the function ``name`` of a user's object raises in which file and line that was.

    ``owner`` is a method or its observer.  Used-up memory and interruptions pass, and so does what is
    raised while the toolkit's own methods work.

    Raises:
        MethodError: for anything else, a call of ``sys.exit`` included.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if type(owner).__module__.startswith(f"{__package__.partition('.')[0]}.") or is_out_of_memory(error):
            raise
        said = str(error) if isinstance(error, ZsadError) else f"{name}() failed ({said_of(error)})"
        raise MethodError(f"{said} ({raised_at(error, owner, name)})") from error


def raised_at(error: BaseException, owner: object, name: str) -> str:
    """Return ``file.py:12``: the last line that ``error`` went through in the file of the function ``name``.

    Where it went through none it is the line on which that function begins.
    """
    cls = type(owner)
    function = getattr(getattr(cls, name, None), "__code__", None)
    path = Path(function.co_filename if function else inspect.getfile(cls))
    line = _line(error, path)
    return f"{path}:{function.co_firstlineno}" if line is None and function else _where(error, path)


def source_files(path: Path) -> list[Path]:
    """Return a user's file and those beside it that it imports by ``from .name import``, directly or not."""
    found = [path]
    for file in found:  # grows while it is walked
        beside = [path.with_name(f"{name}.py") for name in _relative_imports(file)]
        found += [other for other in dict.fromkeys(beside) if other.is_file() and other not in found]
    return found


def _relative_imports(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # importing it says where
        return []
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    return [
        name for node in nodes for name in ([node.module] if node.module else [a.name for a in node.names])
    ]


PACKAGES = "zsad_user_"
"""How the packages begin that users' files are imported into."""


class _AsItIs(SourceFileLoader):
    """Compiles a user's file anew: what Python keeps is told by seconds and size, which an edit may leave."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the file as it is now."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def _spec_of(name: str, path: Path) -> ModuleSpec:
    spec = importlib.util.spec_from_file_location(name, path, loader=_AsItIs(name, str(path)))
    assert spec  # a loader is given
    return spec


class _Beside(MetaPathFinder):
    """Finds the files beside a user's file that it imports by ``from .name import``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        files = [Path(folder, f"{name}.py") for folder in path or () if package.startswith(PACKAGES)]
        return next((_spec_of(fullname, file) for file in files if file.is_file()), None)


class _Shipped(MetaPathFinder, Loader):
    """Gives a user's file the toolkit's modules of methods for relative imports of what is not beside it.

    So a copy of a shipped method runs where it lies, with ``from ._shared import ...`` as it stands.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if not package.startswith(PACKAGES) or not name:
            return None
        shipped = importlib.util.find_spec(f"zsadbench.methods.{name}")
        return ModuleSpec(fullname, self) if shipped else None

    def exec_module(self, module: ModuleType) -> None:
        # A module may put another one in its place while it is executed.
        name = module.__name__.partition(".")[2]
        sys.modules[module.__name__] = importlib.import_module(f"zsadbench.methods.{name}")


_BESIDE, _SHIPPED = _Beside(), _Shipped()


def let_shipped_in() -> None:
    """Let users' files import what lies beside them, else the toolkit's modules of methods as if they did."""
    if _SHIPPED not in sys.meta_path:
        sys.meta_path.insert(0, _BESIDE)
        sys.meta_path.append(_SHIPPED)


def _where(error: BaseException, path: Path) -> str:
    """Return ``path`` with the last of its lines that ``error`` went through."""
    line = _line(error, path)
    return str(path) if line is None else f"{path}:{line}"


def _line(error: BaseException, path: Path) -> int | None:
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if Path(frame.filename) == path), None)


def said_of(error: BaseException) -> str:
    """Return the type and the text of an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _package_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{name}: cannot be imported ({error}); is it installed in this environment?"
        ) from error
    except (Exception, SystemExit) as error:
        raise MethodError(f"{name}: cannot be imported ({said_of(error)})") from error

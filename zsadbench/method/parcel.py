"""Objects on their way to another process, with the code of the users' methods in them.

Of a method in a user's file the text of the file and of those beside it travels, never a path.  What was
``zsad_user_<stamp>.<file>`` where the user named it has the same name where the parcel is opened.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import io
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import MethodError
from .user import PACKAGES, let_shipped_in, said_of, source_files

Files = tuple[tuple[str, str, bytes], ...]
"""Name, path (to be told in errors) and source of files."""


@dataclass(frozen=True)
class Code:
    """The code of a user's method: its module, the files it is made of, and the SHA-256 over their sources.

    Of a class in an installed package no file travels.
    """

    method: str
    module: str
    files: Files = field(repr=False)
    digest: str


@dataclass(frozen=True)
class Parcel:
    """An object on its way, with the code of users' methods that it needs."""

    code: tuple[Code, ...]
    content: bytes = field(repr=False)


def packed(value: object, methods: Mapping[str, object], root: Path) -> Parcel:
    """Return a parcel of ``value``, in which there are ``methods``, by name, and paths below ``root``.

    Raises:
        MethodError: if a file of a user's method was taken away.
    """
    content = io.BytesIO()
    _Pickler(content, root).dump(value)
    code = [_code(name, type(method)) for name, method in methods.items()]
    return Parcel(tuple(one for one in code if one), content.getvalue())


def opened(parcel: Parcel, root: Path) -> Any:
    """Return the object of a parcel; its paths lie below ``root`` now.

    Raises:
        MethodError: if the code of a method cannot be imported here, or is other code here.
    """
    for code in parcel.code:
        _import(code)
    return _Unpickler(io.BytesIO(parcel.content), root).load()


class _Pickler(pickle.Pickler):
    """Writes paths below a folder by their names there."""

    def __init__(self, file: io.BytesIO, root: Path) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.root = root

    def persistent_id(self, value: Any) -> str | None:
        if isinstance(value, Path) and value.is_relative_to(self.root):
            return value.relative_to(self.root).as_posix()
        return None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, root: Path) -> None:
        super().__init__(file)
        self.root = root

    def persistent_load(self, name: str) -> Path:
        return self.root / name


def _code(method: str, cls: type) -> Code | None:
    """Return the code of a user's method; None for a method of the toolkit, which is everywhere."""
    if cls.__module__.startswith(f"{__package__.partition('.')[0]}."):
        return None
    try:
        files = _sources(Path(inspect.getfile(cls)))
    except OSError as error:
        raise MethodError(
            f"{error.filename}: cannot be read ({error.strerror}) to be sent to workers"
        ) from None
    travels = cls.__module__.startswith(PACKAGES)
    return Code(method, cls.__module__, files if travels else (), _digest(files))


def _import(code: Code) -> None:
    if code.files and code.module not in sys.modules:
        package = ModuleType(code.module.partition(".")[0])
        package.__path__ = []
        sys.modules[package.__name__] = package
        sys.meta_path.insert(0, _Sent(package.__name__, code.files))
        let_shipped_in()
    try:
        module = importlib.import_module(code.module)
    except (Exception, SystemExit) as error:
        raise MethodError(f"{code.method}: cannot be imported by a worker ({said_of(error)})") from error
    if not code.files and _digest(_sources(Path(str(module.__file__)))) != code.digest:
        raise MethodError(
            f"{code.method}: {code.module} is other code here; install the same version on every machine"
        )


def _sources(path: Path) -> Files:
    return tuple((file.stem, str(file), file.read_bytes()) for file in source_files(path))


def _digest(files: Files) -> str:
    return hashlib.sha256(b"".join(source for _, _, source in files)).hexdigest()


class _Sent(MetaPathFinder, Loader):
    """Gives the modules of one parcel; the path is only told, nothing is read there."""

    def __init__(self, package: str, files: Sequence[tuple[str, str, bytes]]) -> None:
        self.files = {f"{package}.{name}": (path, source) for name, path, source in files}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in self.files else None

    def exec_module(self, module: ModuleType) -> None:
        path, source = self.files[module.__name__]
        module.__file__ = path
        exec(compile(source, path, "exec"), module.__dict__)

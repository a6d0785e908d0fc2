"""A user's method on its way to another process: the text of its file and of those beside it, never a path.

What was ``zsad_user_<stamp>.<file>`` where the user named it has the same name where the parcel is opened, so
that its objects can be pickled.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from ..errors import MethodError
from .user import PACKAGES, let_shipped_in, said_of, source_files


@dataclass(frozen=True)
class Parcel:
    """The code of a user's method.

    ``module`` is its dotted name, empty for a class of an installed package; ``files`` are name, path (to be
    told in errors) and source of each file; ``digest`` is the SHA-256 over the sources.
    """

    module: str
    files: tuple[tuple[str, str, bytes], ...]
    digest: str


def packed(method: object) -> Parcel | None:
    """Return the code of a user's method; None for a method of the toolkit, which is everywhere.

    Raises:
        MethodError: if a file of it was taken away.
    """
    cls = type(method)
    if cls.__module__.startswith(f"{__package__.partition('.')[0]}."):
        return None
    try:
        files = _sources(cls)
    except OSError as error:
        raise MethodError(
            f"{error.filename}: cannot be read ({error.strerror}) to be sent to workers"
        ) from None
    digest = hashlib.sha256(b"".join(source for _, _, source in files)).hexdigest()
    return Parcel(cls.__module__ if cls.__module__.startswith(PACKAGES) else "", files, digest)


def opened(parcel: Parcel, method: str) -> None:
    """Import the code of a parcel; ``method`` is its name in errors.

    Raises:
        MethodError: if it cannot be imported here.
    """
    if not parcel.module or parcel.module in sys.modules:
        return
    package = ModuleType(parcel.module.partition(".")[0])
    package.__path__ = []
    sys.modules[package.__name__] = package
    sys.meta_path.insert(0, _Sent(package.__name__, parcel.files))
    let_shipped_in()
    try:
        importlib.import_module(parcel.module)
    except (Exception, SystemExit) as error:
        raise MethodError(f"{method}: cannot be imported by a worker ({said_of(error)})") from error


def refuse_other_code(parcel: Parcel, method: object, name: str) -> None:
    """Refuse a class of an installed package that is another one here than where the parcel was packed.

    Raises:
        MethodError: naming the package.
    """
    own = None if parcel.module else packed(method)
    if own and own.digest != parcel.digest:
        package = type(method).__module__
        raise MethodError(f"{name}: {package} is other code here; install the same version on every machine")


def _sources(cls: type) -> tuple[tuple[str, str, bytes], ...]:
    found: Sequence[Path] = source_files(Path(inspect.getfile(cls)))
    return tuple((path.stem, str(path), path.read_bytes()) for path in found)


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

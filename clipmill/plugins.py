"""Plug-ins: classes found by the name of an entry point, or by their address, and loaded by workers on any node.

    brightness              an entry point of an installed package
    my_scorers:Brightness   a class in a module
    path/my.py:Brightness   a class in a file

Workers import installed packages only. So a module that is a single file elsewhere, such as in the working directory,
travels as its source text.
"""

import hashlib
import importlib
import importlib.util
import linecache
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from clipmill.config import unknown_name
from clipmill.errors import UserError
from clipmill.local_files import open_regular

_ATTRIBUTE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_MAX_SOURCE_BYTES = 4 << 20


@dataclass(frozen=True)
class Plugin:
    """Where a class is; `load` imports it. Can be pickled and sent to any node."""

    name: str
    """As it was asked for."""
    target: str
    """module:Class"""
    source: bytes | None = field(default=None, repr=False)
    """Of the module, if workers cannot import it."""
    path: str = ""
    """The file of `source`."""

    def load(self) -> Any:
        """The class. Raises UserError if it cannot be imported."""
        module_name, _, attribute = self.target.partition(":")
        try:
            found: Any = self._executed() if self.source is not None else importlib.import_module(module_name)
        except UserError:
            raise
        except Exception as error:  # whatever the code of a plug-in raises
            where = f" from {self.path}" if self.path else ""
            raise UserError(
                f"{self.name}: cannot import {module_name}{where}: {type(error).__name__}: {error}"
            ) from error
        for part in attribute.split("."):
            if not hasattr(found, part):
                known = sorted(name for name, value in vars(found).items() if isinstance(value, type))
                raise UserError(f"{self.name}: {unknown_name('class', part, known)}")
            found = getattr(found, part)
        if not isinstance(found, type):
            raise UserError(f"{self.name}: expected a class, got a {type(found).__name__}")
        return found

    def _executed(self) -> ModuleType:
        """The module of the source text, executed once per process."""
        assert self.source is not None
        name = f"clipmill_plugin_{hashlib.sha256(self.source).hexdigest()[:16]}"
        if name in sys.modules:
            return sys.modules[name]
        module = ModuleType(name)
        module.__file__ = self.path
        sys.modules[name] = module  # dataclasses and pickle look it up while it runs
        try:
            exec(compile(self.source, self.path, "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
        lines = self.source.decode("utf-8", "replace").splitlines(keepends=True)
        linecache.cache[self.path] = (len(self.source), None, lines, self.path)  # for tracebacks on other nodes
        return module


def find_plugin(asked: str, *, group: str, built_in: Mapping[str, str]) -> Plugin:
    """The class that a name or an address leads to; `group` of entry points, `built_in` name -> module:Class.

    Raises UserError with the known names, or with how to write an address.
    """
    what = group.rpartition(".")[2].removesuffix("s")
    if ":" in asked:
        return _addressed(asked, what)
    targets = dict(_entry_points(group))
    if asked in built_in:
        if asked in targets:
            raise UserError(f"the {what} {asked!r} is one of clipmill's and also the entry point {targets[asked]}")
        return Plugin(asked, built_in[asked])
    if asked not in targets:
        known = unknown_name(what, asked, [*built_in, *targets])
        raise UserError(f"{known} Or name the class: module:Class, path/file.py:Class.")
    return Plugin(asked, targets[asked])


def _entry_points(group: str) -> Iterator[tuple[str, str]]:
    """Name -> module:Class. Raises UserError if two packages have the same name."""
    seen: dict[str, str] = {}
    for point in entry_points(group=group):
        if seen.setdefault(point.name, point.value) != point.value:
            raise UserError(
                f"two installed packages have an entry point {point.name!r} in {group}: {seen[point.name]} and "
                f"{point.value}. Uninstall one of them."
            )
    yield from seen.items()


def _addressed(asked: str, what: str) -> Plugin:
    module, _, attribute = asked.rpartition(":")
    if not module or not _ATTRIBUTE.fullmatch(attribute):
        raise UserError(f"expected a {what} as module:Class or path/file.py:Class, got {asked!r}")
    if module.endswith(".py") or "/" in module:
        path = Path(module).expanduser().resolve()
        return Plugin(asked, f"{path.stem}:{attribute}", _source(path), str(path))
    spec = _spec_of(module)
    if spec is None:
        raise UserError(
            f"{what} {asked!r}: no module {module!r} is installed or in the working directory. Install its package, or "
            "name its file: path/file.py:Class"
        )
    origin = spec.origin or ""
    if "." in module or spec.submodule_search_locations or not origin.endswith(".py") or _is_installed(origin):
        return Plugin(asked, f"{module}:{attribute}")
    return Plugin(asked, f"{module}:{attribute}", _source(Path(origin)), origin)


def _source(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_SOURCE_BYTES:
            raise UserError(f"{path} is larger than {_MAX_SOURCE_BYTES >> 20} MiB: expected a Python module")
        with open_regular(str(path)) as file:
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _spec_of(module: str) -> ModuleSpec | None:
    try:
        with _working_directory_on_path():
            return importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None


@contextmanager
def _working_directory_on_path() -> Iterator[None]:
    """Console scripts do not have it there, `python -m` does."""
    before = list(sys.path)
    sys.path.append(os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def _is_installed(origin: str) -> bool:
    return any(part in ("site-packages", "dist-packages") for part in Path(origin).parts)

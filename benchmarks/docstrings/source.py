"""The docstrings of the standard library that stand in its source files, found without importing them.

The source is read with `ast`, so the result is the same whether or not an optional module can be imported.
"""

from __future__ import annotations

import ast
import functools
import logging
import sys
import sysconfig
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Found", "from_source", "preference"]

logger = logging.getLogger(__name__)

Found = tuple[str, str]
"""Qualified public name and docstring."""

_SKIPPED = {
    *("antigravity", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "this", "turtle", "turtledemo"),
    # Not on every machine.
    *("msilib", "tkinter"),
    # Removed in Python 3.12 or 3.13.
    *("aifc", "asynchat", "asyncore", "cgi", "cgitb", "chunk", "crypt", "distutils", "imghdr", "imp", "mailcap"),
    *("nntplib", "pipes", "smtpd", "sndhdr", "sunau", "telnetlib", "uu", "xdrlib"),
    # `os.path` on any machine is taken from posixpath (see _RENAMED).
    *("ntpath", "nturl2path"),
    *("test", "tests", "site-packages"),
}
_RENAMED = {
    "posixpath": "os.path",
    "genericpath": "os.path",
    # Where the source is from some Python on; of the last two it is the Python twin of a module written in C.
    "_collections_abc": "collections.abc",
    "_pydatetime": "datetime",
    "_pydecimal": "decimal",
    # These two are exported by a module-level `__getattr__`, which no look at the imports can find.
    "concurrent.futures.process": "concurrent.futures",
    "concurrent.futures.thread": "concurrent.futures",
}

_MAX_DEPTH = 8  # of base classes and of re-exports; cuts circles

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Definition = _Function | ast.ClassDef
_Identity = tuple[str, str]  # the module that defines a thing, and its name there


@dataclass(frozen=True)
class _Module:
    """What a source file defines and imports at its top level."""

    name: str
    doc: str
    is_package: bool
    definitions: dict[str, _Definition]
    imported: dict[str, tuple[str, str]]  # local name -> module, name there ("" is the module itself)
    stars: tuple[str, ...]
    exported: frozenset[str] | None  # `__all__`, where it is written out

    def is_public(self, name: str) -> bool:
        return not name.startswith("_") and (self.exported is None or name in self.exported)


def preference(name: str) -> tuple[int, int, str]:
    """Sort key that puts the name that people know first: few dots, then few letters."""
    return name.count("."), len(name), name


def from_source() -> Iterator[Found]:
    """Yield everything public that has a docstring in a source file."""
    public: dict[_Identity, tuple[str, _Module, _Definition]] = {}
    for module_name in sorted(_public_modules(), key=preference):
        module = _read(module_name)
        if module is None:
            continue
        public_name = _RENAMED.get(module_name, module_name)
        if module.doc and public_name == module_name:
            yield module_name, module.doc
        for name, (home, node) in sorted(_exports(module).items()):
            # Packages come before their submodules, so the shortest of several names stays.
            public.setdefault((home.name, node.name), (f"{public_name}.{name}", home, node))
    for name, home, node in public.values():
        doc = ast.get_docstring(node)
        if isinstance(node, ast.ClassDef):
            yield from _describe_class(name, home, node, public)
        elif doc:
            yield name, doc


def _describe_class(name: str, home: _Module, node: ast.ClassDef, public: Container[_Identity]) -> Iterator[Found]:
    doc = ast.get_docstring(node)
    if doc:
        yield name, doc
    for method, method_doc in sorted(_methods(home, node, public).items()):
        if method_doc and not method.startswith("_"):
            yield f"{name}.{method}", method_doc


def _methods(home: _Module, node: ast.ClassDef, public: Container[_Identity], depth: int = 0) -> dict[str, str]:
    """Find the docstrings of the methods that readers look up under a class: its own, and of private base classes."""
    methods: dict[str, str] = {}
    inherited: dict[str, str] = {}
    elsewhere = set()  # what a public base class shows already
    for statement in _statements(node.body):
        if isinstance(statement, _Function) and statement.name not in methods:
            methods[statement.name] = ast.get_docstring(statement) or ""
    for base_home, base in _bases(home, node) if depth < _MAX_DEPTH else ():
        is_public = (base_home.name, base.name) in public
        for name, doc in _methods(base_home, base, public, depth + 1).items():
            if name in methods:
                methods[name] = methods[name] or doc
            elif is_public:
                elsewhere.add(name)
            else:
                inherited.setdefault(name, doc)
    return methods | {name: doc for name, doc in inherited.items() if name not in elsewhere}


def _bases(home: _Module, node: ast.ClassDef) -> Iterator[tuple[_Module, ast.ClassDef]]:
    for base in node.bases:
        found = None
        if isinstance(base, ast.Name):
            found = _resolve(home, base.id)
        elif isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name):
            source, name = home.imported.get(base.value.id, ("", ""))
            module = _read(".".join(filter(None, (source, name))))
            found = _resolve(module, base.attr) if module else None
        if found and isinstance(found[1], ast.ClassDef):
            yield found[0], found[1]


def _exports(module: _Module) -> dict[str, tuple[_Module, _Definition]]:
    """Find what a reader would look up in this module: its own, and what it exports of submodules and private ones."""
    names = {*module.definitions, *module.imported}
    for star in module.stars:
        source = _read(star)
        names |= _exports(source).keys() if source else set()
    exports = {}
    for name in filter(module.is_public, names):
        found = _resolve(module, name)
        if found is None:
            continue
        home = found[0].name
        is_inner = module.is_package and home.startswith(f"{module.name}.")
        # What a private module defines is handed on by `__all__` or a star; else it is only used (`Mapping` in `os`).
        is_listed = module.exported is not None or name not in module.imported
        is_handed_on = is_listed and any(part.startswith("_") for part in home.split("."))
        if home == module.name or is_inner or is_handed_on:
            exports[name] = found
    return exports


def _resolve(module: _Module, name: str, depth: int = 0) -> tuple[_Module, _Definition] | None:
    """Follow imports to the module that defines a name."""
    if name in module.definitions:
        return module, module.definitions[name]
    sources = [module.imported[name]] if name in module.imported else [(star, name) for star in module.stars]
    for source_name, source_attribute in sources if depth < _MAX_DEPTH else ():
        source = _read(source_name) if source_attribute else None
        found = _resolve(source, source_attribute, depth + 1) if source else None
        if found:
            return found
    return None


def _public_modules() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    yield from (name for name in _RENAMED if name.startswith("_"))
    for name in sys.stdlib_module_names:
        if name.startswith("_") or name in _SKIPPED:
            continue
        yield name
        for path in (root / name).rglob("*.py"):
            parts = (*path.parent.relative_to(root).parts, *(() if path.stem == "__init__" else (path.stem,)))
            if len(parts) > 1 and not any(part.startswith("_") or part in _SKIPPED for part in parts):
                yield ".".join(parts)


@functools.cache
def _read(name: str) -> _Module | None:
    path = Path(sysconfig.get_path("stdlib"), *name.split("."))
    is_package = (path / "__init__.py").is_file()
    file = path / "__init__.py" if is_package else path.with_suffix(".py")
    tree = _parsed(file) if name and file.is_file() else None
    if tree is None:
        return None
    package = name if is_package else name.rpartition(".")[0]
    definitions: dict[str, _Definition] = {}
    imported: dict[str, tuple[str, str]] = {}
    stars = []
    for statement in _statements(tree.body):
        if isinstance(statement, _Definition):
            if statement.name not in definitions or not ast.get_docstring(definitions[statement.name]):
                definitions[statement.name] = statement
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                imported.setdefault(alias.asname or alias.name, (alias.name, ""))
        elif isinstance(statement, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - statement.level + 1] if statement.level else []
            source = ".".join([*above, *filter(None, [statement.module])])
            for alias in statement.names:
                if alias.name == "*":
                    stars.append(source)
                else:
                    imported.setdefault(alias.asname or alias.name, (source, alias.name))
    doc = ast.get_docstring(tree) or ""
    return _Module(name, doc, is_package, definitions, imported, tuple(stars), _written_out_all(tree))


def _parsed(file: Path) -> ast.Module | None:
    try:
        return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        logger.warning("the docstrings in %s are left out: %s", file, error)
        return None


def _written_out_all(tree: ast.Module) -> frozenset[str] | None:
    """Read the names in `__all__`, or None where there is none or it is computed."""
    names: set[str] | None = None
    for statement in _statements(tree.body):
        if isinstance(statement, ast.Expr) and ast.unparse(statement.value).startswith("__all__."):
            return None
        if not isinstance(statement, (ast.Assign, ast.AugAssign)):
            continue
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            try:
                names = (names or set()) | set(ast.literal_eval(statement.value))
            except ValueError:
                return None
    return None if names is None else frozenset(names)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a body, those under `if` and `try` included."""
    for statement in body:
        yield statement
        if isinstance(statement, (ast.If, ast.Try)):
            for name in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(statement, name, []))
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)

"""What users can name in a library: its public functions, classes and properties, with signatures.

Names are as users write them: `json.JSONDecoder` for json.decoder's class, because json's package
imports it from there; `os.path.join` for posixpath's function, by a table. Works on syntax trees.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from llamita.starter.corpus import PythonFile
from llamita.starter.docstrings import docstring_of

Function = ast.FunctionDef | ast.AsyncFunctionDef

# Modules that stand under another name for what no import statement of the other one shows.
_ALIASES = {
    "posixpath": "os.path",
    "genericpath": "os.path",
    "_pyio": "io",
    "_pydatetime": "datetime",
}
# Applications and build tools of no use to import, and the other system's os.path.
_NO_LIBRARY = frozenset(
    {"idlelib", "lib2to3", "turtledemo", "distutils", "ensurepip", "encodings", "ntpath"}
)
_PROPERTIES = frozenset({"property", "cached_property", "abstractproperty"})
# Later definitions of a name that has one already.
_AGAIN = frozenset({"setter", "deleter", "overload"})
_MAX_DEFAULT = 20  # characters; longer and private defaults are shown as ...


@dataclass(frozen=True)
class PublicName:
    """One thing that users can name: `parameters` as in a call, None if it is not called so."""

    name: str  # such as os.path.join
    is_function: bool
    parameters: tuple[str, ...] | None  # such as ("a", "*", "key=None")
    docstring: str
    file: str  # the corpus's name of the file that the docstring stands in


def is_library(file: PythonFile) -> bool:
    """Whether a file is of a module to import, and not of an application or a build tool."""
    return file.module.split(".")[0] not in _NO_LIBRARY


def public_names(modules: Mapping[PythonFile, ast.Module]) -> Iterator[PublicName]:
    """The documented public names of all modules, in their order, each name once."""
    exports = _exports(modules)
    seen: set[str] = set()
    for file, tree in modules.items():
        listed = _listed(tree)
        for top in _definitions(tree):
            full = exports.get((file.module, top.name))
            if full is None and (listed is None or top.name in listed):
                full = f"{_ALIASES.get(file.module, file.module)}.{top.name}"
            if full is None or not _is_public(full):
                continue
            for found in _named(top, full, file.file, in_class=False):
                if found.name not in seen:
                    seen.add(found.name)
                    yield found


def _named(
    node: ast.ClassDef | Function, name: str, file: str, *, in_class: bool
) -> Iterator[PublicName]:
    """A definition if it is documented, and for a class its public members."""
    decorators = {_last_name(decorator) for decorator in node.decorator_list}
    if decorators & _AGAIN:
        return
    text = docstring_of(node)
    if isinstance(node, ast.ClassDef):
        if text:
            yield PublicName(name, False, _constructor(node), text, file)
        for member in _definitions(node):
            if _is_public(member.name):
                yield from _named(member, f"{name}.{member.name}", file, in_class=True)
    elif text:
        if decorators & _PROPERTIES:
            yield PublicName(name, False, None, text, file)
        else:
            bound = in_class and "staticmethod" not in decorators
            yield PublicName(name, True, parameters(node.args, bound=bound), text, file)


def parameters(arguments: ast.arguments, *, bound: bool) -> tuple[str, ...]:
    """Parameters as in a signature, without annotations; without the first one if `bound`."""
    given = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(given) - len(arguments.defaults)) + arguments.defaults
    shown = [_shown(*pair) for pair in zip(given, defaults, strict=True)]
    if arguments.posonlyargs:
        shown.insert(len(arguments.posonlyargs), "/")
    if bound:
        shown = shown[1:]
        if shown[:1] == ["/"]:
            shown = shown[1:]
    if arguments.vararg:
        shown.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        shown.append("*")
    shown += [
        _shown(*pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg:
        shown.append(f"**{arguments.kwarg.arg}")
    return tuple(shown)


def _shown(argument: ast.arg, default: ast.expr | None) -> str:
    if default is None:
        return argument.arg
    value = ast.unparse(default)
    if len(value) > _MAX_DEFAULT or value.startswith("_"):
        value = "..."
    return f"{argument.arg}={value}"


def _constructor(node: ast.ClassDef) -> tuple[str, ...] | None:
    """The parameters of a class's own `__init__` or else `__new__`; None if it inherits them."""
    own = {d.name: d for d in _definitions(node) if not isinstance(d, ast.ClassDef)}
    made_by = own.get("__init__") or own.get("__new__")
    return parameters(made_by.args, bound=True) if made_by else None


def _definitions(parent: ast.AST) -> Iterator[ast.ClassDef | Function]:
    """Classes and functions of a module or class, also those under `if`, `try` and `with`."""
    return (s for s in _statements(parent) if isinstance(s, ast.ClassDef | Function))


def _statements(parent: ast.AST) -> Iterator[ast.stmt]:
    """Statements of a module or class, those under `if`, `try` and `with` in their place."""
    for child in ast.iter_child_nodes(parent):
        if isinstance(child, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _statements(child)
        elif isinstance(child, ast.stmt):
            yield child


def _exports(modules: Mapping[PythonFile, ast.Module]) -> dict[tuple[str, str], str]:
    """(module, name) → the shortest public name under which another module shows it.

    A module shows what it imports from within itself, or from a private module: one of its own
    package, or one that it imports whole or lists in `__all__`.
    """
    trees = {file.module: tree for file, tree in modules.items()}
    found: dict[tuple[str, str], str] = {}
    for file, tree in modules.items():
        if not _is_public(file.module):
            continue
        listed = _listed(tree)
        package = _package(file)
        for statement in _statements(tree):
            if not isinstance(statement, ast.ImportFrom) or not statement.module:
                continue
            origin = _origin(statement, package)
            ours = origin.startswith((f"{file.module}.", f"{package}._"))
            if origin not in trees or (_is_public(origin) and not ours):
                continue
            for name, shown in _imported(statement, trees[origin]):
                whole = statement.names[0].name == "*"
                if not (whole or ours if listed is None else whole or shown in listed):
                    continue
                known, full = found.get((origin, name)), f"{file.module}.{shown}"
                if _is_public(shown) and (known is None or (len(full), full) < (len(known), known)):
                    found[origin, name] = full
    return found


def _package(file: PythonFile) -> str:
    """The package that a module's relative imports begin in; empty for a top-level module."""
    if PurePosixPath(file.name).name == "__init__.py":
        return file.module
    return file.module.rpartition(".")[0]


def _origin(statement: ast.ImportFrom, package: str) -> str:
    """The full name of the module that is imported from."""
    parts = package.split(".")
    outer = parts[: len(parts) - statement.level + 1] if statement.level else []
    return ".".join([*outer, statement.module or ""])


def _imported(statement: ast.ImportFrom, origin: ast.Module) -> Iterator[tuple[str, str]]:
    """(name there, name here) of what an import statement brings, `*` spelt out."""
    for alias in statement.names:
        if alias.name != "*":
            yield alias.name, alias.asname or alias.name
            continue
        listed = _listed(origin)
        for node in _definitions(origin):
            if (_is_public(node.name)) if listed is None else (node.name in listed):
                yield node.name, node.name


def _listed(tree: ast.Module) -> frozenset[str] | None:
    """A module's `__all__`; None if it has none, or one that is more than one literal."""
    found = [
        statement
        for statement in _statements(tree)
        if not isinstance(statement, ast.ClassDef | Function)
        and any(isinstance(node, ast.Name) and node.id == "__all__" for node in ast.walk(statement))
    ]
    if len(found) != 1 or not isinstance(found[0], ast.Assign):
        return None
    value = found[0].value
    if not isinstance(value, ast.List | ast.Tuple):
        return None
    return frozenset(str(v.value) for v in value.elts if isinstance(v, ast.Constant))


def _last_name(decorator: ast.expr) -> str:
    """`setter` for `@name.setter`, `overload` for `@typing.overload`."""
    if isinstance(decorator, ast.Call):
        decorator = decorator.func
    if isinstance(decorator, ast.Attribute):
        return decorator.attr
    return decorator.id if isinstance(decorator, ast.Name) else ""


def _is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))

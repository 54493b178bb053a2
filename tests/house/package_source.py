"""What the source of gradfeat says: its imports, functions and lengths, read from the text, without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src"
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Module:
    """One file: its text, and the syntax tree of it."""

    name: str
    text: str
    tree: ast.Module

    @property
    def lines(self) -> int:
        return len(self.text.splitlines())


@dataclass(frozen=True)
class Function:
    """A function, method or nested function; `name` has the module and the classes and functions around it."""

    name: str
    node: ast.FunctionDef | ast.AsyncFunctionDef
    is_method: bool

    @property
    def arguments(self) -> list[ast.arg]:
        """All that a caller gives; what a method is called on is none of it."""
        given = self.node.args
        positional = [*given.posonlyargs, *given.args]
        if self.is_method and not any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in self.decorators):
            positional = positional[1:]
        return [*positional, *given.kwonlyargs, *(each for each in (given.vararg, given.kwarg) if each)]

    @property
    def decorators(self) -> list[ast.expr]:
        return self.node.decorator_list

    @property
    def lines(self) -> int:
        """From `def` to the end, without the docstring."""
        return _span(self.node) - self._docstring

    @property
    def body_lines(self) -> int:
        """`lines` without the signature."""
        return self.node.body[-1].end_lineno - self.node.body[0].lineno + 1 - self._docstring

    @property
    def _docstring(self) -> int:
        return 0 if ast.get_docstring(self.node) is None else _span(self.node.body[0])


@dataclass(frozen=True)
class Mapped:
    """A parameter or a field whose type says nothing of what is in it: a dict of `Any` by name, or `**name: Any`."""

    where: str
    name: str
    starred: bool


def _span(node: ast.stmt) -> int:
    return node.end_lineno - node.lineno + 1


def read_modules(source: Path) -> dict[str, Module]:
    """Read every module below `source`, by its name; a package's name is that of its `__init__`."""
    modules = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        modules[name] = Module(name, text, ast.parse(text))
    return modules


@cache
def gradfeat_modules() -> dict[str, Module]:
    """Read gradfeat, once for all tests."""
    return read_modules(SOURCE)


def import_graph(modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Return the modules that each module imports anywhere: at its top, in functions, under TYPE_CHECKING."""
    return {name: set(_imports(module, modules)) - {name} for name, module in modules.items()}


def _imports(module: Module, modules: Mapping[str, Module]) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError(f"{module.name}, line {node.lineno}: write imports with the whole name")
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in modules or node.module in modules:
                    yield whole if whole in modules else str(node.module)


def in_circles(graph: Mapping[str, set[str]]) -> set[str]:
    """Return the modules from which some way of imports leads back to them."""
    return {name for name in graph if name in _reached(name, graph)}


def _reached(start: str, graph: Mapping[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(graph[name])
    return reached


def part_of(name: str) -> str:
    """Return the part of the house that a module is in: its package, or itself at the top level."""
    return name.split(".")[1] if "." in name else name


def functions_of(module: Module) -> Iterator[Function]:
    """Yield all functions of a module, also methods and those inside others."""
    for node, prefix, is_method in _walk(module.tree, module.name.removeprefix("gradfeat."), False):
        if isinstance(node, _FUNCTIONS):
            yield Function(f"{prefix}.{node.name}", node, is_method)


def mapped_of(module: Module) -> Iterator[Mapped]:
    """Yield the parameters and the fields of classes that are mappings of anything by name."""
    for node, prefix, is_method in _walk(module.tree, module.name.removeprefix("gradfeat."), False):
        if isinstance(node, ast.ClassDef):
            fields = [
                each for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
            ]
            for each in fields:
                if _is_open_mapping(each.annotation):
                    yield Mapped(f"{prefix}.{node.name}", each.target.id, starred=False)
        elif isinstance(node, _FUNCTIONS):
            function = Function(f"{prefix}.{node.name}", node, is_method)
            for argument in function.arguments:
                starred = argument is node.args.kwarg
                if (starred and _is_open(argument.annotation)) or _is_open_mapping(argument.annotation):
                    yield Mapped(function.name, argument.arg, starred)


def _walk(node: ast.AST, prefix: str, in_class: bool) -> Iterator[tuple[ast.AST, str, bool]]:
    for child in ast.iter_child_nodes(node):
        yield child, prefix, in_class
        named = isinstance(child, (*_FUNCTIONS, ast.ClassDef))
        inside = f"{prefix}.{child.name}" if named else prefix
        yield from _walk(child, inside, isinstance(child, ast.ClassDef) if named else in_class)


def _is_open(annotation: ast.expr | None) -> bool:
    return annotation is not None and ast.unparse(annotation) in ("Any", "object")


def _is_open_mapping(annotation: ast.expr | None) -> bool:
    """Whether a type is a mapping of Any by name, or may be one."""
    if annotation is None:
        return False
    opens = ("dict[str, Any]", "Mapping[str, Any]", "MutableMapping[str, Any]")
    return any(isinstance(node, ast.Subscript) and ast.unparse(node) in opens for node in _alternatives(annotation))


def _alternatives(annotation: ast.expr) -> Iterator[ast.expr]:
    if isinstance(annotation, ast.BinOp):
        yield from _alternatives(annotation.left)
        yield from _alternatives(annotation.right)
    else:
        yield annotation

"""What our sources mean, read from their syntax trees: each definition as what it computes and what it uses.

Nothing is imported or run. Two definitions have one digest where they compute the same: comments, docstrings, layout,
annotations, the words of errors and of a `note`, the order and spelling of imports, and the names of modules and of
what a module defines have no part in it. The names of attributes, parameters and local variables have.
"""

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

READ: Final = frozenset({"models", "data", "flows"})
OUTER: Final = frozenset({"infra", "services"})  # ours, and where nothing is computed
ADDRESS: Final = re.compile(rf"({'|'.join(sorted(READ | OUTER))})(\.\w+)+(:\w+)?")
SILENT: Final = frozenset({"ctx", "type_comment", "kind", "annotation", "returns"})  # of a node
WHOLE: Final = "*"

Functions: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Scope: TypeAlias = dict[str, str | None]
"""Names bound in a function; the address of those that an import binds, None for values."""


class Key(NamedTuple):
    """A definition: a function, class or constant of a module, a method `Class.method`, or "*", all of them."""

    module: str
    name: str


class Foreign(NamedTuple):
    """Something that is not read: of another package, or of ours where nothing is computed."""

    address: str

    @property
    def package(self) -> str:
        """Its first name: torch, time, infra."""
        return self.address.partition(".")[0]


class Module(NamedTuple):
    """A module of ours."""

    name: str


Target: TypeAlias = Key | Module | Foreign | None
"""What a name leads to; None where only Python knows."""


@dataclass(frozen=True, slots=True)
class Form:
    """What one definition says."""

    digest: str  # of what it computes, whatever the things that it uses are called
    uses: tuple[Key, ...]  # in their order, as often as they are named
    types: frozenset[Key]  # named by annotations alone
    attributes: frozenset[str]  # named after a dot: any method of such a name may be meant
    foreign: frozenset[str]  # packages


@dataclass(slots=True)
class Source:
    """A module's top level."""

    name: str
    path: Path | None
    defined: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imported: dict[str, str] = field(default_factory=dict)  # address by name
    on_import: list[ast.stmt] = field(default_factory=list)  # done, and bound to no name

    @property
    def package(self) -> bool:
        """Whether it has modules below it."""
        return self.path is None or self.path.name == "__init__.py"


class Sources:
    """The Python files below a folder that holds our packages, each read at most once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._read: dict[str, Source | None] = {}
        self._forms: dict[Key, Form] = {}

    def source(self, module: str) -> Source | None:
        """Return a module's top level, an empty one for a folder, or None where there is no such module."""
        if module not in self._read:
            place = self.root.joinpath(*module.split("."))
            files = (place.with_suffix(".py"), place / "__init__.py")
            path = next((path for path in files if path.is_file()), None)
            empty = Source(module, None) if place.is_dir() else None
            self._read[module] = empty if path is None else _top_level(module, path)
        return self._read[module]

    def find(self, address: str) -> Target:
        """Return what `package.module.name` or `package.module:name` leads to, also through re-exports."""
        parts = address.replace(":", ".").split(".")
        found: Target = Module(parts[0]) if parts[0] in READ else Foreign(address)
        for part in parts[1:]:
            if not isinstance(found, Module):
                break
            found = self.member(found, part)
        return found

    def member(self, module: Module, name: str) -> Target:
        """Return what a name in a module is."""
        source = self.source(module.name)
        if source is None:
            return None
        if name in source.defined:
            return Key(module.name, name)
        if name in source.imported:
            return self.find(source.imported[name])
        inner = f"{module.name}.{name}"
        return Module(inner) if source.package and self.source(inner) else None

    def table(self, address: str) -> dict[str, str]:
        """Return a constant that maps names to addresses."""
        key = self.find(address)
        assert isinstance(key, Key), f"there is no {address}"
        statement = self._statements(key)[0]
        assert isinstance(statement, ast.Assign | ast.AnnAssign)
        assert statement.value is not None
        found: dict[str, str] = ast.literal_eval(statement.value)
        return found

    def names(self, module: str) -> list[str]:
        """Return what a module defines."""
        source = self.source(module)
        return list(source.defined) if source else []

    def is_class(self, key: Key) -> bool:
        """Return whether a key is a class."""
        return isinstance(self._statements(key)[-1], ast.ClassDef)

    def is_constant(self, key: Key) -> bool:
        """Return whether a key is neither function nor class."""
        return not isinstance(self._statements(key)[-1], Functions | ast.ClassDef)

    def methods(self, key: Key) -> dict[str, Key]:
        """Return a class's own methods by name."""
        body = (line for node in self._statements(key) for line in getattr(node, "body", ()))
        names = [line.name for line in body if isinstance(line, Functions)]
        return {name: Key(key.module, f"{key.name}.{name}") for name in names}

    def is_called(self, key: Key) -> bool:
        """Return whether a method is called by what is written over it: a validator, a hook."""
        marks = [
            mark for node in self._statements(key) for mark in getattr(node, "decorator_list", ())
        ]
        return any(not _is_plain(mark) for mark in marks)

    def bases(self, key: Key) -> list[Target]:
        """Return a class's bases."""
        node = self._statements(key)[-1]
        assert isinstance(node, ast.ClassDef)
        writer = _Writer(self, key.module)
        return [
            writer.target(base.value if isinstance(base, ast.Subscript) else base)
            for base in node.bases
        ]

    def form(self, key: Key) -> Form:
        """Return what a definition says; of a class without its methods."""
        if key not in self._forms:
            writer = _Writer(self, key.module)
            for node in self._statements(key):
                writer.definition(node, key.name)
            self._forms[key] = writer.form()
        return self._forms[key]

    def _statements(self, key: Key) -> list[ast.stmt]:
        source = self.source(key.module)
        assert source is not None
        if key.name == ON_IMPORT:
            return source.on_import
        name, _, method = key.name.partition(".")
        found = source.defined[name]
        if method:
            lines = (line for node in found for line in getattr(node, "body", ()))
            found = [line for line in lines if isinstance(line, Functions) and line.name == method]
        return found

    def on_import(self, module: str) -> Key | None:
        """Return what importing a module does beside defining names, if it does anything."""
        source = self.source(module)
        return Key(module, ON_IMPORT) if source and source.on_import else None


ON_IMPORT: Final = "on import"


def _is_plain(mark: ast.expr) -> bool:
    """Return whether a decorator leaves it to callers when a method is called."""
    called = mark.func if isinstance(mark, ast.Call) else mark
    plain = {
        "property",
        "cached_property",
        "staticmethod",
        "classmethod",
        "abstractmethod",
        "setter",
    }
    plain |= {"no_grad", "inference_mode", "contextmanager", "cache", "lru_cache", "override"}
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    return name in plain


def _top_level(module: str, path: Path) -> Source:
    found = Source(module, path)
    for line in _lines(_parsed(path.read_bytes()).body):
        match line:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found.defined.setdefault(line.name, []).append(line)
            case ast.Import() | ast.ImportFrom():
                found.imported |= _imports(line, found.name, found.package)
            case ast.AnnAssign(value=None) | ast.Pass() | ast.Expr(value=ast.Constant()):
                pass
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
                targets = line.targets if isinstance(line, ast.Assign) else [line.target]
                names = [
                    one.id
                    for target in targets
                    for one in ast.walk(target)
                    if isinstance(one, ast.Name)
                ]
                plain = all(isinstance(one, ast.Name | ast.Tuple | ast.List) for one in targets)
                for name in names if plain else ():
                    found.defined.setdefault(name, []).append(line)
                if not plain:
                    found.on_import.append(line)
            case _:
                found.on_import.append(line)
    return found


@lru_cache(maxsize=1024)
def _parsed(text: bytes) -> ast.Module:
    """Return a file's tree, which nobody changes: a process asks for several codes, of much the same files."""
    return ast.parse(text)


def _lines(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield a module's statements, those in conditions too."""
    for line in body:
        if isinstance(line, ast.If) and "__name__" in ast.dump(line.test):
            continue
        if isinstance(line, ast.If | ast.Try | ast.With):
            for name in ("body", "orelse", "finalbody"):
                yield from _lines(getattr(line, name, ()))
            for handler in getattr(line, "handlers", ()):
                yield from _lines(handler.body)
        else:
            yield line


def _imports(line: ast.Import | ast.ImportFrom, module: str, package: bool) -> dict[str, str]:
    """Return the addresses that an import statement binds, by name."""
    if isinstance(line, ast.Import):
        return {
            one.asname or one.name.partition(".")[0]: one.name
            if one.asname
            else one.name.partition(".")[0]
            for one in line.names
        }
    above = line.module or ""
    if line.level:
        parts = module.split(".")
        kept = parts[: len(parts) - line.level + package]
        above = ".".join([*kept, *([line.module] if line.module else [])])
    return {one.asname or one.name: f"{above}.{one.name}" for one in line.names}


def _bound(nodes: Iterable[ast.AST], module: str, package: bool) -> Scope:
    """Return the names that statements of one function bind."""
    found: Scope = {}
    outside: set[str] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found[node.name] = None
                continue
            case ast.Lambda():
                continue
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                left += [one.target for one in ast.walk(node) if isinstance(one, ast.NamedExpr)]
                continue
            case ast.Import() | ast.ImportFrom():
                found |= _imports(node, module, package)
            case ast.Global():
                outside |= set(node.names)
            case ast.Name(ctx=ast.Store() | ast.Del()):
                found.setdefault(node.id, None)
            case (
                ast.ExceptHandler(name=str(name))
                | ast.MatchAs(name=str(name))
                | ast.MatchStar(name=str(name))
            ):
                found[name] = None
        left += _children(node)
    return {name: address for name, address in found.items() if name not in outside}


def _children(node: ast.AST) -> list[ast.AST]:
    """Return a node's children, as `ast.iter_child_nodes`, in a third of its time."""
    found: list[ast.AST] = []
    for value in vars(node).values():
        if isinstance(value, ast.AST):
            found.append(value)
        elif isinstance(value, list):
            found += [one for one in value if isinstance(one, ast.AST)]
    return found


class _Writer(ast.NodeVisitor):
    """Writes a definition down as tokens, and what it uses beside."""

    def __init__(self, sources: Sources, module: str) -> None:
        self.sources, self.module = sources, module
        source = sources.source(module)
        self._package = source is not None and source.package
        self._tokens: list[str] = []
        self._scopes: list[Scope] = []
        self._uses: list[Key] = []
        self._types: set[Key] = set()
        self._attributes: set[str] = set()
        self._foreign: set[str] = set()

    def form(self) -> Form:
        """Return what was written."""
        digest = hashlib.sha256("\n".join(self._tokens).encode(errors="surrogatepass")).hexdigest()
        types = frozenset(self._types) - set(self._uses)
        sets = (frozenset(self._attributes), frozenset(self._foreign))
        return Form(digest[:16], tuple(self._uses), types, *sets)

    def definition(self, node: ast.stmt, name: str) -> None:
        """Write one that is at a module's top level, or a method there."""
        outer, _, method = name.partition(".")
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self._tokens.append(f"{type(node).__name__} {method}")
                self._function(node)
            case ast.ClassDef():
                self._tokens.append("ClassDef")
                for one in (*node.decorator_list, *node.bases, *node.keywords):
                    self.visit(one)
                lines = [line for line in node.body if not isinstance(line, Functions)]
                self._scopes.append(_bound(lines, self.module, self._package))
                self._body(lines, fields=True)
                self._scopes.pop()
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [
                    [one.id for one in ast.walk(t) if isinstance(one, ast.Name)] for t in targets
                ]
                places = [found.index(outer) for found in names if outer in found]
                self._tokens.append(f"{type(node).__name__} {places}")
                if isinstance(node, ast.AnnAssign):
                    self._annotation(node.annotation)
                if node.value is not None:
                    self.visit(node.value)
            case _:
                self.visit(node)

    def target(self, node: ast.AST) -> Target:
        """Return what a name or a dotted name leads to; None for a value."""
        match node:
            case ast.Name():
                return self._find(node.id)
            case ast.Attribute():
                above = self.target(node.value)
                if isinstance(above, Module):
                    return self.sources.member(above, node.attr)
                return (
                    Foreign(f"{above.address}.{node.attr}") if isinstance(above, Foreign) else None
                )
        return None

    def _find(self, name: str) -> Target:
        for scope in reversed(self._scopes):
            if name in scope:
                address = scope[name]
                return None if address is None else self.sources.find(address)
        return self.sources.member(Module(self.module), name)

    def visit_Name(self, node: ast.Name) -> None:
        """Write a name by what it leads to."""
        if not self._linked(self.target(node)):
            self._tokens.append(f"Name {node.id}")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Write `module.name` as that name, else the attribute after what it is one of."""
        if not self._linked(self.target(node)):
            self.visit(node.value)
            self._tokens.append(f".{node.attr}")
            self._attributes.add(node.attr)

    def _linked(self, found: Target) -> bool:
        match found:
            case Key():
                self._uses.append(found)
                self._tokens.append("use")
            case Module():
                self._uses.append(Key(found.name, WHOLE))
                self._tokens.append("use")
            case Foreign():
                self._foreign.add(found.package)
                outer = found.package in OUTER
                self._tokens.append("outer" if outer else f"foreign {found.address}")
            case None:
                return False
        return True

    def visit_Constant(self, node: ast.Constant) -> None:
        """Write a value; where our code lies is none."""
        is_address = isinstance(node.value, str) and ADDRESS.fullmatch(node.value)
        self._tokens.append(
            "address" if is_address else f"{type(node.value).__name__} {node.value!r}"
        )

    def visit_Dict(self, node: ast.Dict) -> None:
        """Write a table; one of addresses is a table of contents, and who looks something up in it names that."""
        values = [isinstance(one, ast.Constant) and one.value for one in node.values]
        if values and all(isinstance(one, str) and ADDRESS.fullmatch(one) for one in values):
            self._tokens.append("addresses")
        else:
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Write a call; `getattr(x, "name")` names an attribute."""
        match node:
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]):
                self._attributes.add(name)
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        """Write which error it is, not its words."""
        self._tokens.append("Raise")
        if node.exc is not None:
            self.visit(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)

    def visit_Assert(self, node: ast.Assert) -> None:
        """Write what must hold, not the words for it."""
        self._tokens.append("Assert")
        self.visit(node.test)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Write an assignment without its type."""
        self._annotation(node.annotation)
        if node.value is not None:
            self._tokens.append("Assign")
            self.visit(node.target)
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Write a function in a function."""
        self._tokens.append(f"FunctionDef {node.name}")
        self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        """Write a function in a function."""
        self._tokens.append(f"AsyncFunctionDef {node.name}")
        self._function(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """Write a function without a name."""
        self._tokens.append("Lambda")
        self._scoped(node.args, [node.body])

    def visit_ListComp(self, node: ast.ListComp) -> None:
        """Write a comprehension."""
        self._comprehension(node)

    def visit_SetComp(self, node: ast.SetComp) -> None:
        """Write a comprehension."""
        self._comprehension(node)

    def visit_DictComp(self, node: ast.DictComp) -> None:
        """Write a comprehension."""
        self._comprehension(node)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> None:
        """Write a comprehension."""
        self._comprehension(node)

    def _comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
    ) -> None:
        targets = [one.target for one in node.generators]
        self.visit(node.generators[0].iter)  # which does not see the targets
        self._scopes.append(_bound(targets, self.module, self._package))
        self.generic_visit(node)
        self._scopes.pop()

    def _function(self, node: Functions) -> None:
        for mark in node.decorator_list:
            self.visit(mark)
        if node.returns is not None:
            self._annotation(node.returns)
        self._scoped(node.args, node.body)

    def _scoped(self, args: ast.arguments, body: Iterable[ast.AST]) -> None:
        for default in (*args.defaults, *(one for one in args.kw_defaults if one)):
            self.visit(default)
        ends = [one for one in (args.vararg, args.kwarg) if one]
        named = [*args.posonlyargs, *args.args, *args.kwonlyargs, *ends]
        for one in named:
            if one.annotation is not None:
                self._annotation(one.annotation)
        bound = _bound(body, self.module, self._package)
        self._scopes.append({**bound, **{one.arg: None for one in named}})
        self._tokens.append(_signature(args))
        self._body(body)
        self._scopes.pop()

    def _body(self, lines: Iterable[ast.AST], *, fields: bool = False) -> None:
        """Write statements; of a class, fields without a value too."""
        self._tokens.append("[")
        for line in lines:
            if fields and isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                self._tokens.append(f"field {line.target.id}")
            self.visit(line)
        self._tokens.append("]")

    def _annotation(self, node: ast.AST) -> None:
        """Note whose methods may be called; what the type says is nothing that is computed."""
        for one in ast.walk(node):
            if isinstance(one, ast.Constant) and isinstance(one.value, str):
                try:
                    self._annotation(ast.parse(one.value, mode="eval").body)
                except SyntaxError:  # a word of a Literal
                    continue
            elif isinstance(found := self.target(one), Key):
                self._types.add(found)

    def generic_visit(self, node: ast.AST) -> None:
        """Write any other node: its kind and its parts; what says nothing is left out."""
        if isinstance(node, ast.Pass | ast.Import | ast.ImportFrom):
            return
        match node:
            case ast.Expr(value=ast.Constant()):  # a docstring
                return
            case ast.Expr(value=ast.Call(func=ast.Attribute(attr="note"))):  # told to people
                return
        self._tokens.append(f"({type(node).__name__}")
        for name, value in ast.iter_fields(node):
            if name in SILENT or value is None or value == []:
                continue
            self._tokens.append(name)
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, ast.AST):
                    self.visit(one)
                else:
                    self._tokens.append(repr(one))
        self._tokens.append(")")


def _signature(args: ast.arguments) -> str:
    kinds: Mapping[str, list[ast.arg | None]] = {
        "only by place": list(args.posonlyargs),
        "args": list(args.args),
        "*": [args.vararg],
        "only by name": list(args.kwonlyargs),
        "**": [args.kwarg],
    }
    without = [place for place, one in enumerate(args.kw_defaults) if one is None]
    told = {kind: [one.arg for one in found if one] for kind, found in kinds.items()}
    return f"{told} {len(args.defaults)} {without}"

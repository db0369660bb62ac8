"""Which of our code a step's result depends on, found from the step's entries by names.

Of a class that is made or derived from, its body counts and the methods whose names stand after some dot; of one that
only annotations name, those methods alone. Plumbing does not count, nor what it uses: what in `flows` deals with files,
clocks, threads or the cluster, and with no numbers. `infra` is plumbing.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from flows.identity.meaning import ON_IMPORT, WHOLE, Foreign, Form, Key, Sources

SCHEME: Final = 1
"""Of naming code: a change to what counts is told by another number."""

NUMBERS: Final = frozenset({"torch", "numpy", "models", "data"})
PLUMBING: Final = frozenset(
    {
        *("infra", "os", "pathlib", "shutil", "fcntl", "socket", "subprocess", "signal"),
        *("threading", "queue", "time", "ray", "prefect", "mlflow"),
    }
)
NO_CALLERS: Final = frozenset({"abc", "typing"})
"""Other packages' bases may call any method of what is derived from them; these do not."""

MAKING: Final = frozenset({"__init__", "__new__", "__post_init__"})


@dataclass(frozen=True, slots=True)
class Code:
    """The code of a step."""

    digest: str
    parts: Mapping[str, str]  # a digest for each function, method, class and constant
    files: tuple[str, ...]  # where they are written, from the root; of plumbing too


def code_of(sources: Sources, entries: Sequence[str]) -> Code:
    """Return the code that is reached from `module:name` or whole modules.

    Raises:
        ValueError: there is no such definition.
    """
    return _Reach(sources, entries).code()


class _Reach:
    """Walks from definition to definition."""

    def __init__(self, sources: Sources, entries: Sequence[str]) -> None:
        self.sources = sources
        self.counted: dict[Key, Form] = {}
        self._named: set[Key] = set()  # by annotations alone
        self._attributes: set[str] = set()
        self._waiting: dict[str, set[Key]] = {}  # methods that nobody named yet
        self._plumbing: dict[Key, bool] = {}
        self._left: list[tuple[Key, bool]] = []
        self._modules: set[str] = set()
        self.entries = [key for entry in entries for key in self._begin(entry)]
        self._plumbing |= dict.fromkeys(self.entries, False)
        self._left += [(key, True) for key in self.entries]
        while self._left:
            self._visit(*self._left.pop())

    def _begin(self, address: str) -> list[Key]:
        found = self.sources.find(address)
        if found is None or isinstance(found, Foreign):
            raise ValueError(f"no definition {address!r} below {self.sources.root}")
        if isinstance(found, Key):
            return [found]
        return [Key(found.name, name) for name in self.sources.names(found.name)]

    def _visit(self, key: Key, used: bool) -> None:
        """Take a definition in; `used` as against named by an annotation."""
        if key in self.counted or (not used and key in self._named):
            return
        if key.name == WHOLE:
            self._left += [(Key(key.module, name), used) for name in self.sources.names(key.module)]
            return
        self._modules.add(key.module)
        if self._is_plumbing(key):
            return
        form = self.sources.form(key)
        constant, kind = self.sources.is_constant(key), self.sources.is_class(key)
        if not used and (constant or kind):
            self._named.add(key)
            self._left += [(one, False) for one in {*form.uses, *form.types}]
        else:
            self.counted[key] = form
            self._left += [(one, True) for one in form.uses] + [(one, False) for one in form.types]
            self._name(form.attributes)
            if on_import := self.sources.on_import(key.module):
                self._left.append((on_import, True))
        if kind:
            self._methods(key, used)

    def _methods(self, key: Key, used: bool) -> None:
        methods = self.sources.methods(key)
        bases = self.sources.bases(key)
        if used and any(
            isinstance(one, Foreign) and one.package not in NO_CALLERS for one in bases
        ):
            self._name(methods)
        for name, method in methods.items():
            special = name.startswith("__") and name.endswith("__") and (used or name not in MAKING)
            called = used and self.sources.is_called(method)
            if special or called or name in self._attributes:
                self._left.append((method, True))
            else:
                self._waiting.setdefault(name, set()).add(method)

    def _name(self, attributes: Iterable[str]) -> None:
        for name in attributes:
            if name not in self._attributes:
                self._attributes.add(name)
                self._left += [(method, True) for method in self._waiting.pop(name, ())]

    def _is_plumbing(self, key: Key) -> bool:
        if not key.module.startswith("flows."):
            return False
        top = Key(key.module, key.name.partition(".")[0])
        if top not in self._plumbing:
            touched = self._touched(top)
            self._plumbing[top] = bool(touched & PLUMBING) and not touched & NUMBERS
        return self._plumbing[top]

    def _touched(self, key: Key) -> set[str]:
        """Return the packages that a definition of `flows` deals with, itself or by what it uses there."""
        touched: set[str] = set()
        seen: set[Key] = set()
        left = [key]
        while left:
            one = left.pop()
            package = one.module.partition(".")[0]
            if package != "flows":
                touched.add(package)
            elif one not in seen:
                seen.add(one)
                if one.name == WHOLE:
                    left += [Key(one.module, name) for name in self.sources.names(one.module)]
                    continue
                form = self.sources.form(one)
                touched |= form.foreign
                left += form.uses
                if "." not in one.name and self.sources.is_class(one):
                    left += self.sources.methods(one).values()
        return touched

    def code(self) -> Code:
        """Return what was reached."""
        known = {key: form.digest for key, form in self.counted.items()}
        links = {key: self._links(key) for key in known}
        different = 0
        while different < (different := len(set(known.values()))):
            known = {
                key: _digest(
                    [form.digest, *(f"{name} {known.get(one, '')}" for name, one in links[key])]
                )
                for key, form in self.counted.items()
            }
        entries = [known.get(key, "") for key in self.entries]
        parts: dict[str, list[str]] = {}
        for key, form in self.counted.items():
            parts.setdefault(key.name, []).append(form.digest)
        sources = (self.sources.source(module) for module in self._modules)
        paths = {one.path.relative_to(self.sources.root) for one in sources if one and one.path}
        return Code(
            digest=_digest([str(SCHEME), *entries, *sorted(known.values())]),
            parts={
                name: found[0] if len(found) == 1 else _digest(sorted(found))
                for name, found in sorted(parts.items())
            },
            files=tuple(sorted(path.as_posix() for path in paths)),
        )

    def _links(self, key: Key) -> list[tuple[str, Key]]:
        """Return what a definition uses, in order, and a class's methods that count, by name."""
        links = [("", one) for one in self.counted[key].uses]
        if key.name != ON_IMPORT and self.sources.is_class(key):
            links += sorted(
                (name, one)
                for name, one in self.sources.methods(key).items()
                if one in self.counted
            )
        return links


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

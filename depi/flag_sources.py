"""The flags of a command, read from the source of its configuration classes without importing them.

LeRobot's classes take seconds to import, and dozens of policies register with them that DePi does not train:
what `--help` shows, and whether a flag exists, is read from the syntax trees instead.
"""

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# Where the subclasses are registered that a field of a base class may be: policies that DePi trains, and
# environments that LeRobot's factory or DePi's simulator make. A star stands for the modules of a package.
CHOICES = {
    "PreTrainedConfig": (
        "lerobot.policies.pi0.configuration_pi0",
        "lerobot.policies.pi05.configuration_pi05",
        "depi.policies.*",
        "lerobot.policies.act.configuration_act",
        "lerobot.policies.diffusion.configuration_diffusion",
        "lerobot.policies.vqbet.configuration_vqbet",
        "lerobot.policies.smolvla.configuration_smolvla",
        "lerobot.policies.multi_task_dit.configuration_multi_task_dit",
    ),
    "EnvConfig": ("lerobot.envs.configs", "depi.sim.*", "depi.evaluation.*"),
}
# Policy types of LeRobot's that have more flags here than its configuration has fields.
FLAGS_BESIDE = dict.fromkeys(("pi0", "pi05"), ("depi.policies.choices", "OwnChoices"))
_PACKAGES = ("depi", "lerobot")


@dataclass(frozen=True)
class Flag:
    """One flag: `name` as in `dataset.repo_id`, with its type, default and comment as written there."""

    name: str
    type: str
    default: str | None
    comment: str

    @property
    def types(self) -> set[str]:
        """The parts of a union, without their arguments, as in {"list", "None"}."""
        return {part.strip().partition("[")[0] for part in self.type.split("|")}


@dataclass(frozen=True)
class Flags:
    """All flags of a command.

    own: those of its class and of the dataclasses inside it, in the source's order.
    sections: names of those inside, as `dataset`, with what they are.
    foreign: those of `sections` that are LeRobot's.
    choices: names of fields that are one of several classes, as `policy`: type -> flags of that type.
    doc: the docstring of the command's class.
    """

    own: tuple[Flag, ...]
    sections: dict[str, str]
    foreign: frozenset[str]
    choices: dict[str, dict[str, tuple[Flag, ...]]]
    doc: str

    def known(self, types: dict[str, str | None]) -> dict[str, Flag]:
        """The flags by name; `types` are the chosen types of `choices`, None where no type was chosen."""
        known = {flag.name: flag for flag in self.own}
        for name, choice in self.choices.items():
            chosen = types.get(name)
            for kind, flags in choice.items():
                if chosen in (None, kind):
                    known |= {flag.name: flag for flag in flags}
        return known


@dataclass(frozen=True)
class _Source:
    path: Path
    text: str
    tree: ast.Module
    classes: dict[str, ast.ClassDef]
    imports: dict[
        str, tuple[ast.ImportFrom, str]
    ]  # name in this file -> module it is imported from, and its name there

    def find(self, name: str) -> "tuple[_Source, ast.ClassDef] | None":
        """A class by the name that it has in this file, imported or not."""
        if name in self.classes:
            return self, self.classes[name]
        if name not in self.imports:
            return None
        node, original = self.imports[name]
        path = self._imported(node)
        return _read(path).find(original) if path else None

    def _imported(self, node: ast.ImportFrom) -> Path | None:
        if not node.level:
            return module_path(node.module or "")
        folder = self.path.parents[node.level - 1]
        return _file(folder.joinpath(*(node.module or "").split(".")))


@lru_cache
def _read(path: Path) -> _Source:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    imports = {
        alias.asname or alias.name: (node, alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return _Source(path, text, tree, classes, imports)


def module_path(name: str) -> Path | None:
    """The file of a module of DePi or LeRobot, found without importing it; None for other modules."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top) if top in _PACKAGES else None
    if spec is None or not spec.submodule_search_locations:
        return None
    return _file(Path(spec.submodule_search_locations[0]).joinpath(*rest))


def _file(module: Path) -> Path | None:
    candidates = (module.with_name(f"{module.name}.py"), module / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


@lru_cache
def read_flags(path: Path, class_name: str) -> Flags:
    """Read the flags of the dataclass `class_name` in the file `path`."""
    found = _read(path).find(class_name)
    if found is None:
        raise ValueError(f"{path} has no class {class_name}")
    reader = _Reader()
    own = tuple(reader.flags(*found))
    doc = ast.get_docstring(found[1]) or ""
    return Flags(own, reader.sections, frozenset(reader.foreign), reader.choices, doc)


class _Reader:
    """Walks through a class and the classes inside it."""

    def __init__(self) -> None:
        self.sections: dict[str, str] = {}
        self.foreign: set[str] = set()
        self.choices: dict[str, dict[str, tuple[Flag, ...]]] = {}

    def flags(self, source: _Source, node: ast.ClassDef, prefix: str = "") -> Iterator[Flag]:
        """Yield the flags of a class, each with `prefix` before its name."""
        for where, item in _fields(source, node).values():
            assert isinstance(item.target, ast.Name)
            name = prefix + item.target.id
            inner = _inner_class(where, item.annotation)
            if inner is None:
                yield Flag(name, ast.unparse(item.annotation), _default(item.value), _comment(where, item))
            elif inner[1].name in CHOICES:
                self.choices[name] = dict(_choices(inner[1].name, name))
            else:
                doc = ast.get_docstring(inner[1]) or ""
                self.sections[name] = _comment(where, item) or doc.partition("\n")[0]
                if "lerobot" in inner[0].path.parts:
                    self.foreign.add(name)
                yield from self.flags(*inner, f"{name}.")


def _fields(source: _Source, node: ast.ClassDef) -> dict[str, tuple[_Source, ast.AnnAssign]]:
    """The fields of a class, those of its bases first, by name."""
    fields: dict[str, tuple[_Source, ast.AnnAssign]] = {}
    for base in reversed(node.bases):
        found = source.find(base.id) if isinstance(base, ast.Name) else None
        if found:
            fields |= _fields(*found)
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            is_flag = "ClassVar" not in ast.unparse(item.annotation) and "init=False" not in ast.unparse(item)
            if is_flag:
                fields[item.target.id] = (source, item)
    return fields


def _inner_class(source: _Source, annotation: ast.expr) -> tuple[_Source, ast.ClassDef] | None:
    """The dataclass that a field holds, if it holds one."""
    parts = [annotation]
    while any(isinstance(part, ast.BinOp) for part in parts):
        parts = [
            side
            for part in parts
            for side in ([part.left, part.right] if isinstance(part, ast.BinOp) else [part])
        ]
    for part in parts:
        found = source.find(part.id) if isinstance(part, ast.Name) else None
        if found and any("dataclass" in ast.unparse(decorator) for decorator in found[1].decorator_list):
            return found
    return None


def _choices(base: str, prefix: str) -> Iterator[tuple[str, tuple[Flag, ...]]]:
    for module in CHOICES[base]:
        path = module_path(module.removesuffix(".*"))
        for file in sorted(path.parent.glob("*.py")) if path and module.endswith(".*") else [path]:
            if file is None or f"{base}.register_subclass(" not in file.read_text(encoding="utf-8"):
                continue
            source = _read(file)
            for node in source.tree.body:
                kind = _registered(node, base)
                if kind is not None and isinstance(node, ast.ClassDef):
                    flags = tuple(_Reader().flags(source, node, f"{prefix}."))
                    yield kind, flags + _flags_beside(kind, f"{prefix}.")


def _flags_beside(kind: str, prefix: str) -> tuple[Flag, ...]:
    if kind not in FLAGS_BESIDE:
        return ()
    module, name = FLAGS_BESIDE[kind]
    path = module_path(module)
    found = _read(path).find(name) if path else None
    return tuple(_Reader().flags(*found, prefix)) if found else ()


def _registered(node: ast.stmt, base: str) -> str | None:
    """The name under which a class statement registers itself with `base`."""
    for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else ():
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == f"{base}.register_subclass":
            values = [*decorator.args, *(keyword.value for keyword in decorator.keywords)]
            return str(ast.literal_eval(values[0])) if values else None
    return None


def _default(value: ast.expr | None) -> str | None:
    """The default as a user would type it; None where there is none, or where code computes it."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        made = {keyword.arg: keyword.value for keyword in value.keywords}
        factory = made.get("default", made.get("default_factory"))
        value = factory.body if isinstance(factory, ast.Lambda) else factory
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Path" and value.args:
        value = value.args[0]
    if value is None:
        return None
    try:
        default = [] if ast.unparse(value) == "list" else ast.literal_eval(value)
    except ValueError:
        return None
    return None if default is None else _typed(default)


def _typed(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_typed(part) for part in value)}]"
    return str(value)


def _comment(source: _Source, item: ast.AnnAssign) -> str:
    """The comment lines directly above a field, or the comment behind it."""
    lines = source.text.splitlines()
    above: list[str] = []
    number = item.lineno - 2
    while number >= 0 and lines[number].strip().startswith("#"):
        above.insert(0, lines[number].strip().lstrip("# "))
        number -= 1
    _, mark, behind = lines[(item.end_lineno or item.lineno) - 1][item.end_col_offset or 0 :].partition("#")
    if mark and not behind.strip().startswith(("type:", "noqa")):
        above.append(behind.strip())
    return " ".join(above)

"""Reads target descriptions: YAML of the shape that `schema.Target` states; mistakes are named by file and line."""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from opcel_compiler.errors import OpcelError
from opcel_compiler.targets.checks import check_target
from opcel_compiler.targets.fields import Kind, Many, Record, Records, Scalar
from opcel_compiler.targets.schema import Target

FOLDER = Path(__file__).parent
MAX_BYTES = 1 << 20

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")

Record_ = TypeVar("Record_")


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a description; `field` is a path of keys, as `memories.l1.size`, or empty for the whole file."""

    file: Path
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        return ": ".join(filter(None, [f"{self.file}:{self.line}", self.field, self.message]))


class TargetError(OpcelError):
    """No such target, or a description with mistakes: then `problems` holds all of them."""

    def __init__(self, message: str, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


@dataclass(slots=True)
class _Tree:
    """A YAML node and where it stands; a mapping's value is a dict of trees, a list's a list of trees."""

    value: Any
    file: Path
    line: int


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases are not allowed; use extends",
                problem_mark=self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


@cache
def list_targets() -> tuple[str, ...]:
    """The names of the targets that are built in, sorted; `host` stands for the best one that this machine can run."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*/*.yaml")))


def load_target(name_or_path: str | Path) -> Target:
    """The target of a name in `list_targets()`, of `host`, or of a description's path (with a folder or `.yaml` in it).

    Raises TargetError: an unknown name, an unreadable file, or mistakes in the description.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return _read_target(path)
    if str(name_or_path) == "host":
        from opcel_compiler.targets.host import host_target

        return host_target()
    return _builtin(str(name_or_path))


@cache
def _builtin(name: str) -> Target:
    return _read_target(_builtin_path(name))


def _builtin_path(name: str) -> Path:
    found = next(FOLDER.glob(f"*/{name}.yaml"), None) if name in list_targets() else None
    if found is None:
        raise TargetError(f"no target {name!r}{_nearest(name, list_targets())}; there are host, {_listed()}")
    return found


def _listed() -> str:
    return ", ".join(list_targets())


def _read_target(path: Path) -> Target:
    problems: list[Problem] = []
    tree = _inherited(path, ())
    target = _read_record(Target, tree, "", problems)
    if target is not None and not problems:
        if target.id != path.stem:
            _complain(problems, tree, "id", f"{target.id!r} is not the file's name, {path.stem!r}")
        for field, message in check_target(target):
            _complain(problems, tree, field, message)
    if problems or target is None:
        raise TargetError("\n".join(map(str, problems)), tuple(problems))
    order = {memory.name: _depth(target, memory.name) for memory in target.memories}
    return dataclasses.replace(target, memories=tuple(sorted(target.memories, key=lambda m: order[m.name])))


def _depth(target: Target, name: str) -> int:
    parent = target.memory(name).parent
    return 0 if parent is None else 1 + _depth(target, parent)


def _complain(problems: list[Problem], tree: _Tree, field: str, message: str) -> None:
    """Adds a problem at the line of `field`, or of the nearest key above it that the description has."""
    at = tree
    for key in field.split("."):
        if not isinstance(at.value, dict) or key not in at.value:
            break
        at = at.value[key]
    problems.append(Problem(at.file, at.line, field, message))


def _inherited(path: Path, children: tuple[Path, ...]) -> _Tree:
    """The file's tree over that of the description it extends. Mappings merge key by key, `null` takes an inherited key
    away, all else replaces. `extends` names a file beside this one, without its `.yaml`, or a built-in target."""
    tree = _parse(path)
    extends = tree.value.pop("extends", None)
    if extends is None:
        return tree
    file, line, base = extends.file, extends.line, extends.value
    if not isinstance(base, str) or not _NAME.fullmatch(base):
        raise _error(Problem(file, line, "extends", "is not the name of one target"))
    beside = path.with_name(f"{base}.yaml")
    if not beside.exists() and base not in list_targets():
        known = sorted({p.stem for p in path.parent.glob("*.yaml")} - {path.stem} | set(list_targets()))
        raise _error(Problem(file, line, "extends", f"no target {base!r}{_nearest(base, known)}"))
    if not beside.exists():
        return _over(_builtin_tree(base), tree)
    parent, line_of_descent = beside, (*children, path)
    if parent.resolve() in [p.resolve() for p in line_of_descent]:
        names = " extends ".join(p.stem for p in (*line_of_descent, parent))
        raise _error(Problem(file, line, "extends", f"goes in a circle: {names}"))
    return _over(_inherited(parent, line_of_descent), tree)


@cache
def _builtin_tree(name: str) -> _Tree:
    return _inherited(_builtin_path(name), ())


def _over(base: _Tree, tree: _Tree) -> _Tree:
    return _Tree(_merge(base, tree).value, tree.file, tree.line)


def _merge(base: _Tree, over: _Tree) -> _Tree:
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    merged = dict(base.value)
    for key, tree in over.value.items():
        if key not in merged:
            merged[key] = tree
        elif tree.value is None:
            del merged[key]
        else:
            merged[key] = _merge(merged[key], tree)
    return _Tree(merged, over.file, over.line)


def _parse(path: Path) -> _Tree:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TargetError(f"cannot read the target description {path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise _error(Problem(path, 1, "", f"has {len(data)} bytes; a description has at most {MAX_BYTES}"))
    try:
        loader = _Loader(data.decode("utf-8"))
        root = loader.get_single_node()
    except UnicodeDecodeError as error:
        raise _error(Problem(path, data[: error.start].count(b"\n") + 1, "", "is not UTF-8")) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _error(Problem(path, line, "", f"is not a description in YAML: {error.problem}")) from None
    except yaml.YAMLError as error:
        raise _error(Problem(path, 1, "", f"is not YAML: {' '.join(str(error).split())}")) from None
    except RecursionError:
        raise _error(Problem(path, 1, "", "is nested too deeply")) from None
    problems: list[Problem] = []
    tree = _tree(root, loader, path, "", problems)
    if problems:
        raise TargetError("\n".join(map(str, problems)), tuple(problems))
    if not isinstance(tree.value, dict):
        raise _error(Problem(path, tree.line, "", "is not a mapping of a target's fields"))
    return tree


def _tree(node: yaml.Node | None, loader: _Loader, file: Path, field: str, problems: list[Problem]) -> _Tree:
    if node is None:
        return _Tree(None, file, 1)
    line = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return _Tree([_tree(child, loader, file, field, problems) for child in node.value], file, line)
    if isinstance(node, yaml.MappingNode):
        found: dict[str, _Tree] = {}
        for key_node, child in node.value:
            key, key_line = str(key_node.value), key_node.start_mark.line + 1
            path = f"{field}.{key}" if field else key
            if key in found:
                problems.append(Problem(file, key_line, path, f"is given twice, first at line {found[key].line}"))
                continue
            found[key] = _tree(child, loader, file, path, problems)
            found[key].line = key_line
        return _Tree(found, file, line)
    try:
        return _Tree(loader.construct_object(node), file, line)
    except (yaml.YAMLError, ValueError):
        problems.append(Problem(file, line, field, f"{node.value!r} cannot be read"))
        return _Tree(None, file, line)


def _read_record(
    cls: type[Record_], tree: _Tree, path: str, problems: list[Problem], name: str | None = None
) -> Record_ | None:
    """The dataclass `cls` from a mapping, or None after adding to `problems` all that is wrong with it."""
    if not isinstance(tree.value, dict):
        problems.append(Problem(tree.file, tree.line, path, "is not a mapping"))
        return None
    before = len(problems)
    values: dict[str, Any] = {} if name is None else {"name": name}
    fields = {f.name: f for f in dataclasses.fields(cls) if "kind" in f.metadata}  # type: ignore[arg-type]
    for key, child in tree.value.items():
        where = f"{path}.{key}" if path else key
        if key not in fields:
            problems.append(Problem(child.file, child.line, where, f"is no field{_nearest(key, fields)}"))
        elif child.value is None:
            problems.append(Problem(child.file, child.line, where, "has no value"))
        else:
            values[key] = _read_value(fields[key].metadata["kind"], child, where, problems)
    for key, field in fields.items():
        if key not in tree.value and field.default is dataclasses.MISSING:
            problems.append(Problem(tree.file, tree.line, f"{path}.{key}" if path else key, "is missing"))
    return cls(**values) if len(problems) == before else None


def _read_value(kind: Kind, tree: _Tree, path: str, problems: list[Problem]) -> Any:
    if isinstance(kind, Record):
        return _read_record(kind.type, tree, path, problems)
    if isinstance(kind, Records):
        if not isinstance(tree.value, dict):
            problems.append(Problem(tree.file, tree.line, path, "is not a mapping from names to records"))
            return None
        items = tree.value.items()
        return tuple(_read_record(kind.type, child, f"{path}.{name}", problems, name) for name, child in items)
    try:
        if isinstance(kind, Scalar):
            if isinstance(tree.value, (dict, list)):
                raise ValueError("is not a single value")
            return kind.read(tree.value)
        assert isinstance(kind, Many)
        if not isinstance(tree.value, list):
            raise ValueError("is not a list")
        read = []
        for child in tree.value:
            if isinstance(child.value, (dict, list)):
                raise ValueError("is not a list of single values")
            read.append(kind.item(child.value))
        if kind.check is not None:
            kind.check(tuple(read))
        return tuple(read)
    except ValueError as error:
        problems.append(Problem(tree.file, tree.line, path, str(error)))
        return None


def _error(problem: Problem) -> TargetError:
    return TargetError(str(problem), (problem,))


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""

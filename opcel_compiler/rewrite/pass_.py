"""What a pass is: a frozen dataclass that is at once its command line, its row in the docs and its repr."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Sequence
from typing import Any, ClassVar

from opcel_compiler.ir.graph import Graph
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.driver import apply_rules
from opcel_compiler.rewrite.errors import PipelineError, suggest
from opcel_compiler.rewrite.rule import Rule

__all__ = ["Pass", "PassContext", "RulePass", "check_members", "make_pass", "registered"]

Options = dict[str, Any]
_REGISTRY: dict[str, type[Pass]] = {}
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclasses.dataclass(frozen=True, repr=False)
class Pass:
    """Base of all passes, which are frozen dataclasses; the fields are a pass's options.

    A subclass sets `name` (lower-case-with-dashes) and a one-line `summary`, gives each option a type among bool,
    int, float, str, `tuple[int, ...]`, `tuple[str, ...]` and a default, and defines `run`. `level` says what `run`
    takes: a Graph ("graph") or a Program ("program"). Helpers begin with an underscore. Anything else raises
    TypeError when the class is created. With `abstract=True` the class is a base for passes, not a pass.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    level: ClassVar[str] = "graph"
    _members: ClassVar[frozenset[str]] = frozenset({"name", "summary", "level", "run", "options"})

    def run(self, subject: Any, ctx: PassContext, /) -> None:
        """Change `subject` in place. Raises OpcelError; a subject that a failed pass leaves behind is not used."""
        raise NotImplementedError

    def __init_subclass__(cls, *, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_members(cls, cls._members | set(_annotations(cls)), "a pass")
        for option, annotation in _option_types(cls).items():
            if annotation not in _KINDS:
                kind = getattr(annotation, "__name__", annotation)
                raise TypeError(
                    f"{cls.__name__}.{option}: an option cannot be of type {kind}; use bool, int, float, str, "
                    "tuple[int, ...] or tuple[str, ...]"
                )
            if not hasattr(cls, option):
                raise TypeError(f"{cls.__name__}.{option}: an option needs a default")
        cls.__repr__ = Pass.__str__  # type: ignore[method-assign, assignment]
        if abstract:
            return
        if not _NAME.fullmatch(cls.name):
            raise TypeError(f"{cls.__name__}: name {cls.name!r} is not lower-case words joined by dashes")
        if not cls.summary or "\n" in cls.summary:
            raise TypeError(f"{cls.__name__} needs a one-line summary")
        if cls.level not in ("graph", "program"):
            raise TypeError(f"{cls.__name__}: level {cls.level!r} is neither 'graph' nor 'program'")
        if cls.run is Pass.run:
            raise TypeError(f"{cls.__name__} does not define run(subject, ctx)")
        taken = _REGISTRY.get(cls.name)
        if taken is not None:
            raise TypeError(
                f"{cls.__name__}: the name {cls.name!r} is taken by {taken.__module__}.{taken.__qualname__}"
            )
        _REGISTRY[cls.name] = cls

    @classmethod
    def options(cls) -> Options:
        """The options as the command line spells them, with their defaults."""
        return {f.name.replace("_", "-"): f.default for f in dataclasses.fields(cls)}

    def __str__(self) -> str:
        given = [f"{o}={_print(getattr(self, o.replace('-', '_')))}" for o in self.options()]
        return self.name + (f"{{{','.join(given)}}}" if given else "")

    __repr__ = __str__


def registered() -> dict[str, type[Pass]]:
    """The passes whose classes exist, by name. `pipeline.discover` also imports those that do not yet.

    Raises TypeError for a class with options that lacks `@dataclass(frozen=True)`.
    """
    for cls in _REGISTRY.values():
        declared = {o for o in _annotations(cls) if o in _option_types(cls)}
        params = cls.__dict__.get("__dataclass_params__")
        if declared and (params is None or not params.frozen):
            raise TypeError(
                f"pass {cls.name}: {cls.__qualname__} has options and must be decorated @dataclass(frozen=True)"
            )
    return dict(sorted(_REGISTRY.items()))


def make_pass(cls: type[Pass], given: dict[str, str]) -> Pass:
    """A pass from its options as text. Raises PipelineError that names the option."""
    types = {name.replace("_", "-"): t for name, t in _option_types(cls).items()}
    values: Options = {}
    for option, text in given.items():
        if option not in types:
            raise PipelineError(f"pass {cls.name} has no option {option!r}{suggest(option, types)}")
        kind = _KINDS[types[option]]
        try:
            values[option.replace("-", "_")] = kind.parse(text)
        except ValueError:
            raise PipelineError(f"pass {cls.name}, option {option}: {text!r} is not {kind.noun}") from None
    return cls(**values)


def check_members(cls: type, allowed: frozenset[str] | set[str], what: str) -> None:
    """Raise TypeError for a public member of `cls` outside `allowed`: most likely a misspelt hook."""
    for member in vars(cls):
        if not member.startswith("_") and member not in allowed:
            near = suggest(member, allowed)
            raise TypeError(
                f"{cls.__name__}.{member}: {what} has no such member{near} (helpers begin with an underscore)"
            )


def _annotations(cls: type) -> dict[str, Any]:
    return inspect.get_annotations(cls)


def _option_types(cls: type) -> dict[str, Any]:
    """The resolved types of the options of `cls` and its bases."""
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise TypeError(f"{cls.__name__}: cannot resolve an option's type: {error}") from None
    return {n: t for n, t in hints.items() if typing.get_origin(t) is not ClassVar}


@dataclasses.dataclass(frozen=True)
class _Kind:
    noun: str
    parse: Any


def _parse_bool(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def _parse_str(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return text[1:-1]
    return text


def _parse_list(text: str) -> list[str]:
    if not (text.startswith("[") and text.endswith("]")):
        raise ValueError(text)
    return [item.strip() for item in text[1:-1].split(",") if item.strip()]


_KINDS: dict[Any, _Kind] = {
    bool: _Kind("true or false", _parse_bool),
    int: _Kind("an integer", int),
    float: _Kind("a number", float),
    str: _Kind("text", _parse_str),
    tuple[int, ...]: _Kind("a list of integers such as [1,2]", lambda t: tuple(int(i) for i in _parse_list(t))),
    tuple[str, ...]: _Kind("a list such as [a,b]", lambda t: tuple(_parse_str(i) for i in _parse_list(t))),
}


def _print(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{','.join(map(_print, value))}]"
    if isinstance(value, str) and not re.fullmatch(r"[\w.+-]+", value):
        return f'"{value}"'
    return str(value)


@dataclasses.dataclass(frozen=True, repr=False)
class RulePass(Pass, abstract=True):
    """A pass that applies `rules` until none applies; the rules are all that its file needs."""

    rules: ClassVar[Sequence[Rule]] = ()
    _members: ClassVar[frozenset[str]] = Pass._members | {"rules"}

    def run(self, subject: Graph, ctx: PassContext, /) -> None:
        apply_rules(subject, self.rules, ctx)

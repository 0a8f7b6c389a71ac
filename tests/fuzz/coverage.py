"""Which blocks of our Python code an execution reaches: a byte for each, set by a statement at the block's head.

The statements are put into the syntax trees of the modules below a package as they are imported, so `install` comes
before the first import. A block costs some 30 ns, where a trace function costs microseconds a line.
"""

from __future__ import annotations

import ast
import builtins
import importlib.machinery
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

import numpy as np

NAME = "opcel_blocks__"
_CAPACITY = 1 << 16

_Block = list[ast.stmt]


class Coverage:
    """The blocks reached since the last `take`, and all that were reached before."""

    def __init__(self) -> None:
        self.hits = bytearray(_CAPACITY)
        self.blocks = 0
        self._now = np.frombuffer(self.hits, np.uint64)
        self._unseen = np.full(_CAPACITY // 8, (1 << 64) - 1, np.uint64)
        self._used = 0

    def new_block(self) -> int:
        """The index of a block; those past the capacity share the last one."""
        self.blocks += 1
        self._used = min(self.blocks, _CAPACITY) // 8 + 1
        return min(self.blocks, _CAPACITY) - 1

    def clear(self) -> None:
        self._now[: self._used] = 0

    def take(self) -> int:
        """How many blocks were reached for the first time."""
        fresh = self._now[: self._used] & self._unseen[: self._used]
        if not fresh.any():
            return 0
        self._unseen[: self._used] &= ~fresh
        return int(np.count_nonzero(fresh.view(np.uint8)))

    @property
    def reached(self) -> int:
        return int(np.count_nonzero(self._unseen.view(np.uint8) == 254))


class _Marks(ast.NodeTransformer):
    """Puts a mark at the head of each function, branch, loop body and handler, and on branches that are not taken."""

    def __init__(self, coverage: Coverage) -> None:
        self.coverage = coverage

    def mark(self, near: ast.AST) -> ast.stmt:
        index = self.coverage.new_block()
        target = ast.Subscript(ast.Name(NAME, ast.Load()), ast.Constant(index), ast.Store())
        return ast.fix_missing_locations(ast.copy_location(ast.Assign([target], ast.Constant(1)), near))

    def headed(self, block: _Block, near: ast.AST) -> _Block:
        return [self.mark(block[0] if block else near), *block]

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self.generic_visit(node)
        skipped = 1 if ast.get_docstring(node, clean=False) is not None else 0
        node.body[skipped:] = self.headed(node.body[skipped:], node.body[0])
        return node

    visit_FunctionDef = _function
    visit_AsyncFunctionDef = _function

    def _branches(self, node: ast.If | ast.For | ast.While) -> ast.AST:
        self.generic_visit(node)
        node.body = self.headed(node.body, node)
        node.orelse = self.headed(node.orelse, node)
        return node

    visit_If = _branches
    visit_For = _branches
    visit_While = _branches

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        self.generic_visit(node)
        node.body = self.headed(node.body, node)
        return node

    def visit_match_case(self, node: ast.match_case) -> ast.AST:
        self.generic_visit(node)
        node.body = self.headed(node.body, node.body[0])
        return node


class _Loader(SourceFileLoader):
    coverage: Coverage

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = _Marks(self.coverage).visit(ast.parse(self.get_data(path), path))
        return compile(tree, path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def __init__(self, package: str, coverage: Coverage) -> None:
        self.package, self.coverage = package, coverage

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.package and not fullname.startswith(self.package + "."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            loader = _Loader(fullname, spec.loader.path)
            loader.coverage = self.coverage
            spec.loader = loader
        return spec


def install(package: str) -> Coverage:
    """Modules of `package` that are imported from now on mark the blocks that they reach."""
    coverage = Coverage()
    setattr(builtins, NAME, coverage.hits)
    sys.meta_path.insert(0, _Finder(package, coverage))
    return coverage

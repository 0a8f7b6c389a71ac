"""OPCEL: a graph compiler that turns an ONNX model into a fast, checked, self-contained artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opcel_compiler.version import VERSION as __version__

if TYPE_CHECKING:
    from opcel_compiler.driver import compile
    from opcel_compiler.runtime import CompiledModel, load

__all__ = ["CompiledModel", "__version__", "compile", "load"]


def __getattr__(name: str) -> Any:
    # Loading is quick only while it does not import the compiler.
    if name == "compile":
        from opcel_compiler.driver import compile

        return compile
    if name in ("load", "CompiledModel"):
        from opcel_compiler import runtime

        return getattr(runtime, name)
    raise AttributeError(f"module 'opcel_compiler' has no attribute {name!r}")

"""The models that ONNX Runtime is given: regions of a graph, or a model whole; and whether it can run them."""

from __future__ import annotations

from collections.abc import Iterator

from opcel_compiler.compilation import Compilation
from opcel_compiler.errors import OpcelError
from opcel_compiler.frontend.exporter import export_model
from opcel_compiler.frontend.older import at_older_opsets
from opcel_compiler.frontend.whole import whole_model
from opcel_compiler.runtime.fallback import refusal


class EngineError(OpcelError):
    """Nodes that have no kernel, and that ONNX Runtime does not run either."""


def region_models(work: Compilation) -> Iterator[bytes]:
    """The model of each region, at the newest of its opsets that the installed ONNX Runtime loads.

    Raises EngineError when it loads none, ExportError for what ONNX cannot say. Without ONNX Runtime nothing is tried.
    """
    models = [whole_model(work.imported)] if work.whole else [export_model(region) for region in work.regions]
    for i, model in enumerate(models):
        first = None
        for candidate in at_older_opsets(model):
            data = candidate.SerializeToString(deterministic=True)
            why = refusal(data)
            if why is None:
                yield data
                break
            first = first or why
        else:
            raise EngineError(f"{_fallbacks(work, i)}; and ONNX Runtime cannot run it either: {first}")


def _fallbacks(work: Compilation, index: int) -> str:
    """What falls back in a region, in a few words."""
    found = work.fallbacks
    if not work.whole:
        origins = {o for n in work.regions[index].nodes for o in n.origin}
        found = [f for f in found if origins.issuperset(f.origin)] or found
    shown = [f"{f.op} ({', '.join(f.origin[:2]) or 'unnamed'}): {f.reason}" for f in found[:3]]
    return "; ".join(shown) + (f" and {len(found) - 3} more" if len(found) > 3 else "")

"""Models with outputs that are sequences of maps."""

from __future__ import annotations

from typing import Any

from opcel_compiler.runtime.model import CompiledModel


class MappedModel(CompiledModel):
    """An artifact that computes the values of its maps as tensors: through the C interface they are just those."""

    def run(self, feeds: Any, outputs: Any = None) -> dict[str, Any]:
        """The outputs by name; of those that are maps a list of dicts, one a row."""
        found: dict[str, Any] = dict(self.run_tensors(feeds, outputs))
        for name, labels in self.manifest["maps"].items():
            found[name] = [dict(zip(labels, row, strict=True)) for row in found[name].tolist()]
        return found

    def run_tensors(self, feeds: Any, outputs: Any = None) -> dict[str, Any]:
        """The outputs by name, those that are maps as tensors [rows, labels]."""
        return super().run(feeds) if outputs is None else super().run(feeds, outputs)

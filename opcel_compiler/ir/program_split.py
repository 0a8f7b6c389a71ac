"""Take a kernel apart where no single kernel can run it whole."""

from __future__ import annotations

from opcel_compiler.ir.outline import outline, outside_values
from opcel_compiler.ir.program import Buffer, Kernel, whole


def split_epilogue(kernel: Kernel, name: str) -> list[Kernel]:
    """[anchor alone, its epilogue as an elementwise kernel] with a new buffer `name` between; [kernel] without one."""
    anchor = kernel.anchor
    if anchor is None or len(list(kernel.body.nodes)) == 1:
        return [kernel]
    link = whole(Buffer(name, anchor.result.tensor))
    views = dict(zip(kernel.body.inputs, kernel.inputs, strict=True)) | {anchor.result: link}
    rest = [n for n in kernel.body.nodes if n is not anchor and n.op != "constant"]
    first, second = outline([anchor], [anchor.result]), outline(rest, kernel.body.outputs)
    first_inputs = [views[v] for v in outside_values([anchor])]
    second_inputs = [views[v] for v in outside_values(rest)]
    copied = next(n for n in first.nodes if n.op == anchor.op)
    return [
        Kernel(kernel.family, first, first_inputs, [link], copied, dict(kernel.params), origin=kernel.origin),
        Kernel("elementwise", second, second_inputs, list(kernel.outputs), None, origin=kernel.origin),
    ]

"""Take a kernel apart where no single kernel can run it whole."""

from __future__ import annotations

from collections.abc import Callable

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Node, Value
from opcel_compiler.ir.outline import outline, outside_values
from opcel_compiler.ir.program import Buffer, Kernel, View, whole


def fresh_name(base: str, taken: set[str]) -> str:
    """A name for a new buffer that begins with `base`, noted in `taken`."""
    name, count = base, 0
    while name in taken:
        count += 1
        name = f"{base}{count}"
    taken.add(name)
    return name


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


def separate_operands(kernel: Kernel) -> None:
    """Give a contraction, or the dequantization of its operand, a view of its own of what other nodes of the body read
    too: what is packed for the one must not be read by the others."""
    anchor, body = kernel.anchor, kernel.body
    if anchor is None or "contraction" not in anchor.definition.traits:
        return
    for i, operand in enumerate(anchor.operands):
        maker = None if operand is None else operand.producer
        reader, slot = (maker, 0) if maker is not None and maker.op == "dequantize" else (anchor, i)
        value = reader.operands[slot]
        if value is None or value not in body.inputs or len(value.uses) < 2:
            continue
        at = body.inputs.index(value)
        reader.set_operand(slot, body.add_input(value.name, value.type))
        if kernel.maps:
            count = len(kernel.inputs)
            kernel.maps = (*kernel.maps[:count], kernel.maps[at], *kernel.maps[count:])
        kernel.inputs.append(kernel.inputs[at])


def dequantizations(anchor: Node) -> list[Node]:
    """The nodes of the kernel's body that give a contraction's first two operands from integers."""
    makers = (v.producer for v in anchor.operands[:2] if v is not None)
    return [n for n in dict.fromkeys(makers) if n is not None and n.op == "dequantize"]


def source(value: Value) -> Value:
    """What a value of a body is the dequantization of, or the value itself."""
    node = value.producer
    return node.operand(0) if node is not None and node.op == "dequantize" else value


def zero_point(kernel: Kernel) -> Value | None:
    """The zero point of the anchor's first operand, where that is dequantized with one."""
    assert kernel.anchor is not None
    node = kernel.anchor.operand(0).producer
    return None if node is None else node.optional(2)


def zero_number(kernel: Kernel) -> int | None:
    """The same as a number, 0 where there is none; None where it is known only as the kernel runs."""
    zero = zero_point(kernel)
    if zero is None:
        return 0
    return None if zero.constant is None else int(zero.constant.array.reshape(-1)[0])


def split_quantized(kernel: Kernel, name: Callable[[str], str]) -> list[Kernel]:
    """The kernel in f32 alone, between kernels that dequantize its anchor's operands and quantize its result: the same
    numbers. Constant operands are dequantized here. [kernel] where there is nothing to split. `name` makes names of
    buffers."""
    anchor = kernel.anchor
    if anchor is None:
        return [kernel]
    first, last = dequantizations(anchor), kernel.body.outputs[0].producer
    ends = last is not None and last.op == "quantize" and len(kernel.outputs) == 1
    if not first and not ends:
        return [kernel]
    views = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    steps = []
    for node in first:
        steps += _alone(node, views, name, kernel.origin)
    rest = [n for n in kernel.body.nodes if n.op != "constant" and n not in first and not (ends and n is last)]
    result = last.operand(0) if ends and last is not None else kernel.body.outputs[0]
    middle = outline(rest, [result])
    out = list(kernel.outputs)
    if ends:
        out = [whole(Buffer(name(f"{kernel.outputs[0].buffer.name}.real"), result.tensor))]
        views[result] = out[0]
    copied = next(n for n in middle.nodes if n.op == anchor.op)
    inputs = [views[v] for v in outside_values(rest)]
    steps.append(Kernel(kernel.family, middle, inputs, out, copied, dict(kernel.params), origin=kernel.origin))
    if ends and last is not None:
        steps += _alone(last, views, name, kernel.origin, kernel.outputs)
    return steps


def _alone(
    node: Node, views: dict[Value, View], name: Callable[[str], str], origin: tuple[str, ...],
    outputs: list[View] | None = None,
) -> list[Kernel]:  # fmt: skip
    """A kernel for the elementwise node; none where all that it reads is constant. `views` gains its result."""
    operands = [v for v in node.operands if v is not None]
    inputs = [views[v] for v in outside_values([node])]
    base = f"{inputs[0].buffer.name if inputs else node.result.name}.real"
    if outputs is None and all(v.buffer.kind == "weight" and v.is_whole for v in inputs):
        data = [v.constant or views[v].buffer.data for v in operands]
        arrays = [d.array.reshape(v.tensor.static_shape) for d, v in zip(data, operands, strict=True) if d is not None]
        evaluate = node.definition.evaluate
        assert evaluate is not None and len(arrays) == len(operands)
        made = Constant(evaluate(arrays, node.attrs)[0], node.result.tensor.dtype)
        weight = Buffer(name(base), node.result.tensor, "weight", data=made)
        views[node.result] = whole(weight)
        return []
    out = outputs or [whole(Buffer(name(base), node.result.tensor))]
    views[node.result] = out[0]
    return [Kernel("elementwise", outline([node], node.results), inputs, list(out), None, origin=origin)]

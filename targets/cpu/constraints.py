"""What CPU kernels can take, as predicates on Graph nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opcel_compiler.ir.graph import Node, Value
from opcel_compiler.ir.ops.norm import fits_row
from opcel_compiler.ir.recurrent import MOST_UNITS, RECURRENT
from opcel_compiler.ir.types import I8, DType, TensorType
from opcel_compiler.targets.constraints import Constraint
from opcel_compiler.targets.kernels import kernel_table

PLAIN = frozenset("f32 f64 i8 i16 i32 i64 u8 u16 u32 u64 bool".split())
"""The element types that C++ has itself."""

GROUPS: dict[str, Callable[[DType], bool]] = {
    "any": lambda d: d.kind != "s",
    "arithmetic": lambda d: d.kind in "fiub",
    "floats": lambda d: d.kind == "f",
    "plain": lambda d: d.name in PLAIN,
}
"""The groups of element types that the kernel table names."""


def accepts(allowed: Iterable[str], dtype: DType) -> bool:
    """Whether `dtype` is among the types and groups of types that the kernel table lists."""
    return any(GROUPS[name](dtype) if name in GROUPS else name == dtype.name for name in allowed)


def cpu_constraints() -> tuple[Constraint, ...]:
    """The constraints of the CPU's kernels beyond those of the target's description."""
    checks = (
        kernel_exists, element_type, constant_pad, filters, head_size, gather_index, batch_axes, norm_sides, pool_axes,
        recurrent, scatter, nbits_constants,
    )  # fmt: skip
    return tuple(Constraint(check.__name__.replace("_", "-"), check) for check in checks)


def _name(node: Node) -> str:
    if node.op == "foreign":
        domain = node.attrs["domain"]
        return f"{domain}::{node.attrs['op_type']}" if domain else str(node.attrs["op_type"])
    return node.op


def kernel_exists(node: Node) -> str | None:
    """The operator needs a CPU kernel."""
    table = kernel_table()
    if node.op in table.elementwise or node.op in table.operators or node.op in ("fused", "invalid"):
        return None
    why = str(node.attrs.get("reason", "")) if node.op == "foreign" else ""
    return f"{_name(node)} has none" + (
        f" ({why})" if why and why != f"{node.attrs['op_type']} has no lowering" else ""
    )


def element_type(node: Node) -> str | None:
    """The element types are ones that the operator's kernel computes with."""
    table = kernel_table()
    if node.op in table.elementwise:
        allowed = table.elementwise[node.op].dtypes or ("arithmetic",)
        values = [v for v in (*node.operands, *node.results) if v is not None]
        if node.op != "where" and not ({"equal", "less", "less_equal", "cast", "is_nan", "is_inf"} & {node.op}):
            values = values[:1]
    elif node.op in table.operators:
        allowed = table.operators[node.op].dtypes
        values = [v for v in node.operands if v is not None][:1]
    else:
        return None
    for v in values:
        if not isinstance(v.type, TensorType):
            continue
        dtype = v.type.dtype
        if not accepts(allowed, dtype):
            return f"%{v.name} is {dtype}; {node.op} takes {', '.join(allowed)}"
    return None


def constant_pad(node: Node) -> str | None:
    """A pad fills with a constant."""
    if node.op != "pad":
        return None
    if node.attrs["mode"] != "constant":
        return f"its mode is {node.attrs['mode']}"
    if any(type(p) is int and p < 0 for p in node.attrs["pads"]):
        return "a pad is negative"
    return None


def filters(node: Node) -> str | None:
    """A convolution has one to three spatial axes and no negative pads."""
    if node.op not in ("conv", "conv_transpose"):
        return None
    rank = len(node.operand(0).tensor.dims) - 2
    if not 1 <= rank <= 3:
        return f"it has {rank}"
    return "a pad is negative" if any(p < 0 for p in node.attrs["pads"]) else None


def head_size(node: Node) -> str | None:
    """Attention's head sizes are constants up to 256."""
    if node.op != "attention":
        return None
    for i in (0, 2):
        size = node.operand(i).tensor.dims[-1]
        if not (isinstance(size, int) and 0 < size <= 256):
            return f"one is {size}"
    return None


def gather_index(node: Node) -> str | None:
    """A gather's indices are i32 or i64, and the length of index tuples is constant."""
    if node.op not in ("gather", "gather_elements", "gather_nd"):
        return None
    if node.op == "gather_nd" and not isinstance(node.operand(1).tensor.dims[-1], int):
        return f"it is {node.operand(1).tensor.dims[-1]}"
    dtype = node.operand(1).tensor.dtype.name
    return None if dtype in ("i32", "i64") else f"they are {dtype}"


def scatter(node: Node) -> str | None:
    """A scatter takes at most 8 axes and indices of i32 or i64, and joins arithmetic types."""
    if node.op not in ("scatter_elements", "scatter_nd"):
        return None
    x, indices = node.operand(0).tensor, node.operand(1).tensor
    if len(x.dims) > 8:
        return f"it has {len(x.dims)}"
    if node.op == "scatter_nd" and not isinstance(indices.dims[-1], int):
        return f"the length of its index tuples is {indices.dims[-1]}"
    if indices.dtype.name not in ("i32", "i64"):
        return f"the indices are {indices.dtype}"
    joins = node.attrs["reduction"] != "none"
    return f"%{node.operand(0).name} is {x.dtype}" if joins and x.dtype.name not in PLAIN - {"bool"} else None


def batch_axes(node: Node) -> str | None:
    """A matrix product has at most 6 batch axes."""
    if node.op != "matmul":
        return None
    rank = len(node.result.tensor.dims) - 2
    return None if rank <= 6 else f"it has {rank}"


def norm_sides(node: Node) -> str | None:
    """A norm's scale and bias have the shape of the axes that it normalises."""
    if node.op not in ("layer_norm", "rms_norm"):
        return None
    row = node.result.tensor.dims[node.attrs["axis"] :]
    for v in node.operands[1:]:
        if v is not None and not fits_row(v.tensor.dims, row):
            return f"%{v.name} is {v.type}"
    return None


def pool_axes(node: Node) -> str | None:
    """A pool has at most 6 spatial axes, and its window stays within what ceil_mode false would give."""
    if node.op not in ("max_pool", "avg_pool", "arg_max_pool"):
        return None
    rank = len(node.operand(0).tensor.dims) - 2
    return None if rank <= 6 else f"it has {rank}"


def _outside(value: Value) -> Value:
    """What a value is outside of the fused node whose input it is."""
    graph = value.graph
    parent = graph.parent if graph is not None else None
    if graph is None or parent is None or parent.op != "fused" or value not in graph.inputs:
        return value
    return parent.operand(graph.inputs.index(value))


def nbits_constants(node: Node) -> str | None:
    """Weights of a few bits are constants, their groups at most 32768 long, and a row has at most 32768 elements."""
    if node.op != "matmul_nbits":
        return None
    held = [_outside(v) for v in node.operands[1:] if v is not None]
    computed = next((v for v in held if v.constant is None), None)
    if computed is not None:
        return f"%{computed.name} is computed"
    k = node.operand(1).tensor.dims[0]
    return None if isinstance(k, int) and k <= 32768 else f"a row has {k}"


def recurrent(node: Node) -> str | None:
    """A recurrent layer has weights for its input, a GRU that resets before the product at most 8192 units, and a layer
    with weights of bytes at most 32768."""
    if node.op not in RECURRENT:
        return None
    states = len(node.results)
    if node.optional(2) is None and node.operand(1).tensor.dtype != I8:
        return "it has no weights for its input"
    lengths = node.optional(4 + states)
    if lengths is not None and lengths.tensor.dtype.name != "i32":
        return f"its lengths are {lengths.tensor.dtype}"
    n = node.operand(1).tensor.dims[2]
    if node.op == "gru" and not node.attrs["reset_after"] and not (isinstance(n, int) and n <= 8192):
        return f"it has {n}"
    if node.operand(1).tensor.dtype == I8 and not (isinstance(n, int) and n <= MOST_UNITS):
        return f"it has {n}"
    return None

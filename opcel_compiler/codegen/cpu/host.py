"""The generated host function: binds symbols, places buffers, calls the kernels in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from opcel_compiler.codegen.cpu.checks import Check, checks_of, known_after
from opcel_compiler.codegen.cpu.expressions import CTYPES, c_dim
from opcel_compiler.codegen.cpu.unit import KernelUnit
from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.dims import Dim, Symbol, as_symbol
from opcel_compiler.ir.program import Buffer, Control, Program, Read, Region, View
from opcel_compiler.schedule.memory import MemoryPlan


class HostError(OpcelError):
    """A program whose symbols cannot be read from its inputs."""


@dataclass
class Weights:
    """Offsets in bytes of weight buffers in the weights file, its size, the part of each packing by the packing's name
    ("" for layouts), and its fingerprint."""

    offsets: dict[Buffer, int] = field(default_factory=dict)
    size: int = 0
    packings: dict[str, int] = field(default_factory=dict)
    check: int = 0


def c_string(text: str) -> str:
    """A C string literal, ASCII only."""
    out = []
    for byte in text.encode():
        c = chr(byte)
        out.append(c if 32 <= byte < 127 and c not in '"\\?' else f"\\{byte:03o}")
    return '"' + "".join(out) + '"'


def unbound_symbols(program: Program) -> list[str]:
    """The symbols that are no input's dimension by themselves, nor read by a step; a program that has some cannot be
    generated."""
    dims = [as_symbol(d) for b in program.inputs for d in b.type.dims]
    given = {s.name for s in dims if s is not None} | {s.name for step in program.reads for s in step.symbols}
    return [name for name in program.symbols if name not in given]


FAIL = "return snprintf(r->error, r->error_bytes, {}), OPCEL_FAILED;"


class HostWriter:
    """Writes the one translation unit that knows the network. `units[i]` are the calls of the program's i-th step. The
    steps that compute are numbered as `Program.launches`, for profiles."""

    def __init__(
        self, program: Program, units: Sequence[Sequence[KernelUnit]], memory: MemoryPlan, weights: Weights,
        names: tuple[Sequence[str], Sequence[str]], features: Sequence[str],
    ) -> None:  # fmt: skip
        self.program, self.units, self.memory, self.weights = program, units, memory, weights
        self.names, self.features = names, features
        self.symbols = {name: f"s[{i}]" for i, name in enumerate(program.symbols)}
        self.iterations = {name: f"at_{name}" for name in program.iterations}
        self.checks = checks_of(program, self.dim, self.wide)
        self.place: dict[Buffer, str] = {}
        for i, b in enumerate(program.inputs):
            self.place[b] = f"static_cast<char*>(r->in[{i}])"
        for i, b in enumerate(program.outputs):
            self.place[b] = f"static_cast<char*>(r->out[{i}])"

    def dim(self, value: Dim) -> str:
        return c_dim(value, {**self.symbols, **self.iterations, "opcel_threads": "int64_t{r->threads}"})

    def wide(self, value: Dim) -> str:
        """The same as a double, for what may be too large."""
        return c_dim(value, {n: f"static_cast<double>({s})" for n, s in self.symbols.items()}, "double")

    def text(self) -> str:
        kernels = sorted({u.name for calls in self.units for u in calls})
        declared = "".join(
            f"OPCEL_HIDDEN void {k}(void* const*, const int64_t*, int64_t, int64_t, int32_t);\n" for k in kernels
        )
        return (
            '#include "base/dims.h"\n#include "runtime/program.h"\n\nusing namespace opcel;\n\n'
            f'extern "C" {{\n{declared}}}\n\nnamespace {{\n\n'
            f"{self._values('input', self.program.inputs, self.names[0])}"
            f"{self._values('output', self.program.outputs, self.names[1])}"
            f"{self._symbols()}{self._states()}{self._bind()}{self._output_shapes()}"
            f"{self._arena()}"
            f"{self._run()}\n}}  // namespace\n\n{self._table()}"
        )

    # -- signature -------------------------------------------------------------------------------------------------

    def _code(self, dim: Dim) -> str:
        if isinstance(dim, int):
            return str(dim)
        found = as_symbol(dim)
        return f"-1 - {list(self.symbols).index(found.name)}" if found is not None else "OPCEL_DIM_EXPRESSION"

    def _values(self, kind: str, buffers: Sequence[Buffer], names: Sequence[str]) -> str:
        dims, rows = [], []
        for i, (b, name) in enumerate(zip(buffers, names, strict=True)):
            shape = b.type.dims
            dims.append(f"const int64_t {kind}{i}_dims[] = {{{', '.join(map(self._code, shape)) or '0'}}};\n")
            rows.append(f"  {{{c_string(name)}, {b.type.dtype.code}, {len(shape)}, {kind}{i}_dims}},\n")
        table = (
            f"const OpcelTensorInfo {kind}s[] = {{\n{''.join(rows)}}};\n\n"
            if rows
            else f"const OpcelTensorInfo* const {kind}s = nullptr;\n\n"
        )
        return "".join(dims) + table

    def _symbols(self) -> str:
        if not self.symbols:
            return "const char* const* const symbols = nullptr;\n\n"
        return f"const char* const symbols[] = {{{', '.join(map(c_string, self.symbols))}}};\n\n"

    def _states(self) -> str:
        rows = [
            f"{{{self.program.inputs.index(s.past)}, {self.program.outputs.index(s.present)}, {s.axis}, {s.capacity}}}"
            for s in self.program.states
        ]
        if not rows:
            return "const opcel_state* const states = nullptr;\n\n"
        return f"const opcel_state states[] = {{{', '.join(rows)}}};\n\n"

    def _bind(self) -> str:
        lines = []
        seen = set()
        for i, b in enumerate(self.program.inputs):
            for axis, dim in enumerate(b.type.dims):
                found = as_symbol(dim)
                if found is None or found.name in seen:
                    continue
                seen.add(found.name)
                at = self.symbols[found.name]
                lines.append(f"  {at} = in[{i}].shape[{axis}];")
                high = f" || {at} > {found.hi}" if found.hi is not None else ""
                if found.lo > 0 or found.hi is not None:
                    span = f"{found.lo} to {found.hi}" if found.hi is not None else f"at least {found.lo}"
                    text = f"{found.name} must be {span}"
                    lines.append(f"  if ({at} < {found.lo}{high}) return snprintf(error, bytes, {c_string(text)}), 1;")
        if missing := unbound_symbols(self.program):
            raise HostError(
                f"the size {missing[0]} cannot be read from any input's shape, so code for it cannot be generated; "
                "fix that dimension in the model or give it a value"
            )
        checks = [self._check(c, "return snprintf(error, bytes, {}), 1;") for c in self.checks.bound]
        body = "\n".join([*lines, *checks])
        return (
            "int32_t bind(const opcel_tensor* in, int64_t* s, char* error, size_t bytes) {\n"
            f"  (void)in, (void)s, (void)error, (void)bytes;\n{body}\n  return 0;\n}}\n\n"
        )

    def _output_shapes(self) -> str:
        lines = [
            f"  shapes[{i}][{axis}] = {self.dim(dim) if known_after(self.program, dim) < 0 else -1};"
            for i, b in enumerate(self.program.outputs)
            for axis, dim in enumerate(b.type.dims)
        ]
        return (
            "void output_shapes(const int64_t* s, int64_t* const* shapes) {\n  (void)s, (void)shapes;\n"
            + "\n".join(lines) + "\n}\n\n"
        )  # fmt: skip

    def _arena(self) -> str:
        arena = self.memory.arena
        guard = ""
        if not isinstance(arena, int):
            wide = self.wide(arena)
            guard = f"  if ({wide} > 0x1p62) return SIZE_MAX;\n"
        return (
            f"size_t arena_bytes(const int64_t* s) {{\n  (void)s;\n{guard}"
            f"  return static_cast<size_t>({self.dim(arena)});\n}}\n\n"
        )

    @staticmethod
    def _check(check: Check, fail: str) -> str:
        arguments = [c_string(check.text), *(f"static_cast<long long>({v})" for v in check.values)]
        return f"  if ({check.condition}) {fail.format(', '.join(arguments))}"

    # -- the run ---------------------------------------------------------------------------------------------------

    def address(self, view: View) -> str:
        """The address of a view's first element."""
        b = view.buffer
        if b in self.place:
            base = self.place[b]
        elif b.kind == "weight":
            base = f"weights + {self.weights.offsets[b]}"
        else:
            at = self.memory.block.get(b)
            base = f"{'arena' if at is None else f'block{at}'} + {self.dim(self.memory.offsets[b])}"
        offset = view.offset * b.element_bytes
        return base if offset == 0 else f"{base} + {self.dim(offset)}"

    def _run(self) -> str:
        lines = [
            "int32_t run(OpcelRun* r) {", "  int64_t* const s = r->sym;", "  char* const arena = r->arena;",
            "  char* const weights = const_cast<char*>(r->weights);", "  (void)s, (void)arena, (void)weights;",
            *(f"  char* block{i} = nullptr;" for i in self.memory.blocks),
        ]  # fmt: skip
        reads = {step: i for i, step in enumerate(self.program.reads)}
        if any(u.fallible for calls in self.units for u in calls):
            lines.append("  int32_t bad = 0;")
        mark = 0
        for i, (step, calls) in enumerate(zip(self.program.steps, self.units, strict=True)):
            if isinstance(step, Control):
                lines.append(self._control(step))
                lines += [self._check(check, FAIL) for check in self.checks.marks.get(i, ())]
                continue
            if isinstance(step, Region):
                lines += self._region(step)
            if isinstance(step, Read):
                lines += self._read(step, reads[step])
                continue
            for unit in calls:
                lines += self._call(unit, step.origin)
            lines.append(f"  opcel_mark(r, {mark});")
            mark += 1
        return "\n".join([*lines, "  return OPCEL_OK;", "}", ""])

    def _control(self, mark: Control) -> str:
        tests = [f"*reinterpret_cast<const bool*>({self.address(v)})" for v in mark.inputs]
        if mark.kind == "if":
            return f"  if ({tests[0]}) {{"
        if mark.kind == "loop":
            assert mark.iteration is not None
            at = self.iterations[mark.iteration.name]
            limit = [] if mark.trip is None else [f"{at} < {self.dim(mark.trip)}"]
            return f"  for (int64_t {at} = 0; {' && '.join([*limit, *tests])}; ++{at}) {{"
        return "  } else {" if mark.kind == "else" else "  }"

    def _call(self, unit: KernelUnit, origin: Sequence[str]) -> list[str]:
        pointers = [self.address(v) for v in unit.pointers]
        if unit.fallible:
            pointers.append("&bad")
        fixed = unit.calls == 1 and all(isinstance(v, int) for v in unit.integers)
        lines = ["  {", f"    void* const p[] = {{{', '.join(pointers)}}};"]
        if unit.integers:
            values = ", ".join(map(self.dim, unit.integers))
            kind = "static const int64_t" if fixed else "const int64_t" if unit.calls == 1 else "int64_t"
            lines.append(f"    {kind} d[] = {{{values}{', 0' if unit.calls != 1 else ''}}};")
        d = "d" if unit.integers else "nullptr"
        call = f"opcel_parallel(r, {unit.name}, p, {d}, {self.dim(unit.tasks)});"
        if unit.tasks == 1:
            call = f"{unit.name}(p, {d}, 0, 1, 0);"
        if unit.calls != 1:
            index = unit.call
            call = f"for ({index} = 0; {index} < {self.dim(unit.calls)}; ++{index}) {call}"
        lines.append(f"    {call}")
        if unit.fallible:
            text = f"{', '.join(origin[:3]) or 'gather'}: an index is out of range"
            lines.append(f"    if (bad) return opcel_fail(r, {c_string(text)});")
        return [*lines, "  }"]

    def _read(self, step: Read, number: int) -> list[str]:
        """Set the symbols, check them, and place what they tell the size of."""
        (view,) = step.inputs
        ctype = CTYPES[view.dtype]
        lines = ["  {", f"    const {ctype}* const x = reinterpret_cast<const {ctype}*>({self.address(view)});"]
        for i, symbol in enumerate(step.symbols):
            lines.append(f"    {self.symbols[symbol.name]} = static_cast<int64_t>(x[{i}]);")
            lines += self._in_range(symbol, ", ".join(step.origin[:2]))
        lines += ["  " + self._check(check, FAIL) for check in self.checks.reads.get(number, ())]
        if number in self.memory.blocks:
            size = self.memory.blocks[number]
            wide = self.wide(size)
            lines.append(f"    block{number} = opcel_block(r, {list(self.memory.blocks).index(number)}, {wide},")
            lines.append(f"                          {wide} < 0x1p62 ? {self.dim(size)} : 0);")
            lines.append(f"    if (!block{number}) return OPCEL_MEMORY;")
        for i, b in enumerate(self.program.outputs):
            if known_after(self.program, *b.type.dims) == number:
                lines.append(f"    const int64_t shape{i}[] = {{{', '.join(map(self.dim, b.type.dims))}}};")
                lines.append(f"    if (const int32_t status = opcel_output(r, {i}, shape{i})) return status;")
        return [*lines, "  }"]

    def _in_range(self, symbol: Symbol, where: str) -> list[str]:
        value, lo, hi = self.symbols[symbol.name], symbol.lo, symbol.hi
        allowed = f"{lo} to {hi}" if hi is not None else f"at least {lo}"
        high = f" || {value} > INT64_C({hi})" if hi is not None else ""
        what = c_string(f"{where}: {symbol}" if where else str(symbol))
        text = f"return opcel_outside(r, {what}, {value}, {c_string(allowed)});"
        return [f"    if ({value} < INT64_C({lo}){high}) {text}"]

    def _region(self, region: Region) -> list[str]:
        lines = ["  {"]

        def tensors(kind: str, views: Sequence[View]) -> None:
            for i, v in enumerate(views):
                shape = ", ".join(map(self.dim, v.shape)) or "0"
                lines.append(f"    const int64_t {kind}{i}[] = {{{shape}}};")
            rows = [
                f"{{{self.address(v)}, {kind}{i}, nullptr, {v.dtype.code}, {len(v.shape)}}}"
                for i, v in enumerate(views)
            ]
            empty = "{nullptr, nullptr, nullptr, 0, 0}"
            lines.append(f"    const opcel_tensor {kind}s[] = {{{', '.join(rows) or empty}}};")

        tensors("in", region.inputs)
        tensors("out", region.outputs)
        lines.append(
            f"    if (const int32_t status = opcel_region(r, {region.index}, ins, {len(region.inputs)}, outs, "
            f"{len(region.outputs)})) return status;"
        )
        return [*lines, "  }"]

    def _table(self) -> str:
        regions = sum(isinstance(s, Region) for s in self.program.steps)
        features = c_string(" ".join(self.features)) if self.features else "nullptr"
        fields = [
            "OPCEL_PROGRAM_VERSION", str(len(self.program.inputs)), str(len(self.program.outputs)),
            str(len(self.symbols)), str(regions), "inputs", "outputs", "symbols", f"UINT64_C({self.weights.size})",
            f"UINT64_C({self.weights.check})", "bind", "output_shapes", "arena_bytes", "run", features,
            str(len(self.program.launches)), str(len(self.program.states)), "states", str(len(self.memory.blocks)),
        ]  # fmt: skip
        return f'extern "C" OPCEL_HIDDEN const OpcelProgram opcel_program = {{\n    {", ".join(fields)}}};\n'

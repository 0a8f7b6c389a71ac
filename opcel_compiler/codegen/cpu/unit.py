"""The unit of CPU code generation: one kernel's source, apart from its name, and how a call of it is set up."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from opcel_compiler.ir.dims import Dim, symbol
from opcel_compiler.ir.program import View
from opcel_compiler.ir.types import BF16, BOOL

MAX_TASK_WORK = 1 << 16
"""Elementwise work of one task, in elements: enough to pay for handing it to another thread."""


THREADS = symbol("opcel_threads", 1)
"""How many threads the run has; in a unit's `integers` and `tasks` alone."""


@dataclass
class KernelUnit:
    """A kernel of signature `void k(void* const* p, const int64_t* d, int64_t begin, int64_t end, int32_t thread)`.

    `source` names the kernel `KERNEL`. `pointers[i]` is what the host passes as p[i], `integers[i]` as d[i]; `tasks`
    the size of its task space. With `calls` it is called that often, one call after another. Equal sources are
    compiled once, whatever calls them.
    """

    pointers: list[View] = field(default_factory=list)
    integers: list[Dim] = field(default_factory=list)
    tasks: Dim = 1
    source: str = ""
    fallible: bool = False
    headers: list[str] = field(default_factory=list)
    """What the declarations need beyond the headers that `finish` is given."""
    calls: Dim = 1

    def pointer(self, view: View, ctype: str = "float", const: bool = True) -> str:
        """The C++ expression of the address of the view's first element.

        As "char" it is bytes. Raises ValueError for elements that lie in memory as another type than `ctype`: a family
        that is not made for such storage was chosen.
        """
        held = view.buffer.layout.storage or ("bf16" if view.dtype == BF16 else "")
        if ctype != "char" and (held == "bf16") != (ctype == "bf16"):
            raise ValueError(f"{view.buffer!r} cannot be read or written as {ctype}")
        if ctype == view.dtype.name and view.dtype != BOOL:
            self.headers.append("base/narrow.h")
        self.pointers.append(view)
        return f"static_cast<{'const ' if const else ''}{ctype}*>(p[{len(self.pointers) - 1}])"

    def integer(self, value: Dim) -> str:
        """The C++ expression of a size, stride or count that is an argument of the call."""
        self.integers.append(value)
        return f"d[{len(self.integers) - 1}]"

    @property
    def call(self) -> str:
        """The C++ expression of the number of the call, from 0; asked for after the last `integer` and with `calls`
        set."""
        return "0" if self.calls == 1 else f"d[{len(self.integers)}]"

    @property
    def name(self) -> str:
        """The kernel's symbol, named by its content."""
        return "k_" + hashlib.sha256(self.source.encode()).hexdigest()[:16]

    def over_tasks(
        self, headers: list[str], args: str, fields: Sequence[str], kernel: str, declarations: str = ""
    ) -> KernelUnit:
        """`finish` with the statements that most kernels have: the C++ struct `args` of `fields`, and `kernel`, a
        function of `kernels/`, on the tasks from begin to end."""
        made = f"  const {args} args{{{', '.join(fields)}}};\n  {kernel}(args, begin, end);\n"
        return self.finish(headers, declarations, made)

    def finish(self, headers: list[str], declarations: str, statements: str) -> KernelUnit:
        """Set `source` from the headers it needs, declarations before the kernel, and the kernel's statements."""
        includes = "".join(f'#include "{h}"\n' for h in dict.fromkeys((*headers, *self.headers)))
        self.source = (
            f"{includes}using namespace opcel;\nnamespace {{\n{declarations}}}\n"
            'extern "C" __attribute__((visibility("hidden"))) void KERNEL(void* const* p, const int64_t* d, '
            f"int64_t begin, int64_t end, int32_t) {{\n  (void)p, (void)d;\n{statements}}}\n"
        )
        return self

"""recognize-norms, recognize-activations, recognize-attention."""

from __future__ import annotations

import math

import numpy as np
import pytest

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.rewrite.context import PassContext

RSQRT2 = f"{math.sqrt(0.5)!r}"
TANH_SCALE = f"{math.sqrt(2 / math.pi)!r}"


def graph(body: str, inputs: str = "%x: f32[n, 5, 8]") -> str:
    lines = "\n  ".join(body.split("|"))
    return f"graph main({inputs}) {{\n  {lines}\n  return %y\n}}"


# -- norms ---------------------------------------------------------------------------------------------------------

CENTRE = (
    "%two = f32[] 2.0|%one = f32[] 1.0|%eps = f32[] 1e-5|%m = reduce_mean(%x){axes=[2], keepdims=true}|"
    "%d = sub(%x, %m)|"
)
VARIANCES = ["%q = pow(%d, %two)|", "%q = mul(%d, %d)|"]
DIVISIONS = [
    "%s = sqrt(%e)|%y = div(%d, %s)",
    "%s = sqrt(%e)|%r = reciprocal(%s)|%y = mul(%d, %r)",
    "%s = sqrt(%e)|%r = div(%one, %s)|%y = mul(%r, %d)",
    "%h = f32[] -0.5|%r = pow(%e, %h)|%y = mul(%d, %r)",
    "%h = f32[] 0.5|%s = pow(%e, %h)|%y = div(%d, %s)",
]


@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize("variance", VARIANCES)
def test_layer_norm(apply, variance: str, division: str) -> None:
    body = f"{CENTRE}{variance}%v = reduce_mean(%q){{axes=[2], keepdims=true}}|%e = add(%eps, %v)|{division}"
    out = apply(graph(body), "recognize-norms,dead-code", tolerance=1e-5)
    assert out.ops == ["layer_norm"]
    assert out.only("layer_norm") == {"axis": 2, "epsilon": pytest.approx(1e-5)}


@pytest.mark.parametrize("division", DIVISIONS)
def test_rms_norm(apply, division: str) -> None:
    body = "%one = f32[] 1.0|%eps = f32[] 1e-6|%q = mul(%x, %x)|%v = reduce_mean(%q){axes=[1, 2], keepdims=true}|"
    body += "%e = add(%v, %eps)|" + division.replace("%d", "%x")
    out = apply(graph(body), "recognize-norms,dead-code", tolerance=1e-5)
    assert out.ops == ["rms_norm"] and out.only("rms_norm")["axis"] == 1


NORM = "%z = layer_norm(%x){axis=2, epsilon=1e-5}|"
EIGHT = "[1., 2., 3., 4., 5., 6., 7., 8.]"


@pytest.mark.parametrize(
    ("end", "ops"),
    [
        ("%y = mul(%p, %x)", ["gelu", "mul"]),
        ("%d = mul(%p, %x)|%y = mul(%d, %half)", ["gelu"]),
        ("%d = mul(%p, %x)|%y = mul(%half, %d)", ["gelu"]),
        ("%d = mul(%p, %x)|%y = relu(%d)", ["gelu", "mul", "relu"]),
    ],
)
def test_gelu_whose_half_went_elsewhere(apply, end: str, ops: list[str]) -> None:
    tanh = TANH + INNER[0] + "%e = tanh(%b)|%p = add(%e, %one)|"
    for gate, form in ((ERF, "none"), (tanh, "tanh")):
        out = apply(graph(NUMBERS + gate + end), "recognize-activations,dead-code", tolerance=4e-6)
        assert out.ops == ops and out.only("gelu") == {"approximate": form}


@pytest.mark.parametrize(
    ("body", "ops"),
    [
        (f"%g = f32[8] {EIGHT}|%b = f32[8] {EIGHT}|%w = mul(%z, %g)|%y = add(%b, %w)", ["layer_norm"]),
        (f"%g = f32[1, 1, 8] [[{EIGHT}]]|%y = mul(%g, %z)", ["layer_norm"]),
        (f"%b = f32[8] {EIGHT}|%y = add(%z, %b)", ["layer_norm"]),
        (f"%b = f32[8] {EIGHT}|%w = add(%z, %b)|%y = mul(%w, %b)", ["layer_norm", "mul"]),
        ("%g = f32[] 3.0|%y = mul(%z, %g)", ["layer_norm", "mul"]),
        ("%g = f32[5, 1] [[1.], [2.], [3.], [4.], [5.]]|%y = mul(%z, %g)", ["layer_norm", "mul"]),
        ("%y = add(%z, %x)", ["layer_norm", "add"]),
    ],
)
def test_norm_takes_in_scale_and_bias(apply, body: str, ops: list[str]) -> None:
    out = apply(graph(NORM + body), "recognize-norms,fold-constants,dead-code", tolerance=1e-5)
    assert out.ops == ops


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (("axes=[2]", "axes=[1]"), "axes (1,) are not the last ones of 3"),
        (("%two = f32[] 2.0", "%two = f32[] 3.0"), "constant %two is 3, not 2"),
        (("%eps = f32[] 1e-5", "%eps = f32[5, 1] [[1.], [2.], [3.], [4.], [5.]]"), "epsilon varies"),
        (("%q = pow(%d, %two)", "%q = mul(%d, %x)"), "%x is not %d"),
    ],
)
def test_what_is_no_layer_norm(apply, changed: tuple[str, str], reason: str) -> None:
    body = CENTRE + "%q = pow(%d, %two)|%v = reduce_mean(%q){axes=[2], keepdims=true}|%e = add(%v, %eps)|"
    body += "%s = sqrt(%e)|%y = div(%d, %s)"
    assert changed[0] in body
    out = apply(graph(body.replace(*changed)), "recognize-norms", tolerance=1e-5)
    assert "layer_norm" not in out.ops
    assert reason in out.reasons


# -- activations ---------------------------------------------------------------------------------------------------

NUMBERS = f"%half = f32[] 0.5|%one = f32[] 1.0|%two = f32[] 2.0|%r = f32[] {RSQRT2}|%root = f32[] 1.4142135|"
ERF = "%s = mul(%x, %r)|%e = erf(%s)|%p = add(%e, %one)|"
GELU = [
    ERF + "%h = mul(%x, %half)|%y = mul(%h, %p)",
    ERF + "%h = mul(%x, %p)|%y = mul(%half, %h)",
    ERF + "%h = mul(%p, %half)|%y = mul(%x, %h)",
    ERF + "%h = div(%x, %two)|%y = mul(%h, %p)",
    ERF + "%h = mul(%x, %p)|%y = div(%h, %two)",
    ERF + "%h = div(%p, %two)|%y = mul(%h, %x)",
    "%s = div(%x, %root)|%e = erf(%s)|%p = add(%one, %e)|%h = mul(%x, %half)|%y = mul(%h, %p)",
    "%s = div(%x, %root)|%e = erf(%s)|%h = mul(%half, %e)|%p = add(%h, %half)|%y = mul(%p, %x)",
]


@pytest.mark.parametrize("body", GELU)
def test_gelu(apply, body: str) -> None:
    out = apply(graph(NUMBERS + body), "recognize-activations,dead-code", tolerance=2e-6)
    assert out.ops == ["gelu"] and out.only("gelu") == {"approximate": "none"}


TANH = f"%k = f32[] 0.044715|%w = f32[] {TANH_SCALE}|%three = f32[] 3.0|"
INNER = [
    "%u = pow(%x, %three)|%v = mul(%u, %k)|%a = add(%x, %v)|%b = mul(%a, %w)|",
    "%t = mul(%x, %x)|%u = mul(%t, %x)|%v = mul(%k, %u)|%a = add(%x, %v)|%b = mul(%w, %a)|",
    "%t = mul(%k, %x)|%u = mul(%t, %x)|%v = mul(%u, %x)|%a = add(%v, %x)|%b = mul(%w, %a)|",
    "%t = mul(%x, %x)|%u = mul(%t, %k)|%v = add(%u, %one)|%a = mul(%v, %x)|%b = mul(%w, %a)|",
    "%c = mul(%w, %x)|%t = mul(%k, %x)|%u = mul(%t, %x)|%v = add(%one, %u)|%b = mul(%c, %v)|",
]


@pytest.mark.parametrize("inner", INNER)
def test_gelu_tanh(apply, inner: str) -> None:
    body = NUMBERS + TANH + inner + "%e = tanh(%b)|%p = add(%e, %one)|%h = mul(%x, %half)|%y = mul(%h, %p)"
    out = apply(graph(body), "recognize-activations,dead-code", tolerance=2e-6)
    assert out.ops == ["gelu"] and out.only("gelu") == {"approximate": "tanh"}


@pytest.mark.parametrize(
    ("body", "ops"),
    [
        ("%s = sigmoid(%x)|%y = mul(%x, %s)", ["silu"]),
        ("%a = neg(%x)|%b = exp(%a)|%c = add(%b, %one)|%y = reciprocal(%c)", ["sigmoid"]),
        ("%a = neg(%x)|%b = exp(%a)|%c = add(%one, %b)|%y = div(%one, %c)", ["sigmoid"]),
        ("%a = neg(%x)|%b = exp(%a)|%c = add(%one, %b)|%y = div(%x, %c)", ["silu"]),
        ("%a = exp(%x)|%b = add(%a, %one)|%y = log(%b)", ["softplus"]),
        ("%s = sigmoid(%x)|%a = neg(%x)|%y = mul(%a, %s)", ["sigmoid", "neg", "mul"]),
        ("%s = softmax(%x){axis=1}|%y = log(%s)", ["log_softmax"]),
        ("%s = mul(%x, %two)|%e = erf(%s)|%p = add(%e, %one)|%h = mul(%x, %half)|%y = mul(%h, %p)",
         ["mul", "erf", "add", "mul", "mul"]),
    ],
)  # fmt: skip
def test_other_activations(apply, body: str, ops: list[str]) -> None:
    assert apply(graph(NUMBERS + body), "recognize-activations,dead-code", tolerance=1e-5).ops == ops


SUM = "%e = exp(%d)|%s = reduce_sum(%e){axes=[2], keepdims=true}|"


@pytest.mark.parametrize("end", ["%y = div(%e, %s)", "%r = reciprocal(%s)|%y = mul(%e, %r)"])
@pytest.mark.parametrize("axis", [1, 2])
def test_softmax(apply, end: str, axis: int) -> None:
    body = "%m = reduce_max(%x){axes=[2], keepdims=true}|%d = sub(%x, %m)|" + SUM + end
    out = apply(graph(body.replace("[2]", f"[{axis}]")), "recognize-activations,dead-code", tolerance=1e-6)
    assert out.ops == ["softmax"] and out.only("softmax") == {"axis": axis}


def test_softmax_over_two_axes_is_none(apply) -> None:
    body = "%m = reduce_max(%x){axes=[1, 2], keepdims=true}|%d = sub(%x, %m)|" + SUM + "%y = div(%e, %s)"
    out = apply(graph(body.replace("axes=[2]", "axes=[1, 2]")), "recognize-activations")
    assert "softmax" not in out.ops and "not over one" in out.reasons


def test_unshifted_softmax_only_when_approximate_is_allowed(apply) -> None:
    text = graph(SUM.replace("%d", "%x") + "%y = div(%e, %s)")
    assert "it approximates, and the pipeline forbids that" in apply(text, "recognize-activations").reasons
    out = apply(text, "recognize-activations", tolerance=1e-6, ctx=PassContext(forbidden=frozenset()), special=False)
    assert out.ops == ["softmax"]


# -- attention -----------------------------------------------------------------------------------------------------

QKV = "%q: f32[b, 2, s, 4], %k: f32[b, 2, t, 4], %v: f32[b, 2, t, 6], %m: f32[b, 1, 1, t], %h: bool[s, t]"
KT = "%kt = transpose(%k){perm=[0, 1, 3, 2]}|"
END = "%p = softmax(%a){axis=3}|%y = matmul(%p, %v)"
SCALES = [
    ("%c = f32[] 0.5|" + KT + "%d = matmul(%q, %kt)|%a = mul(%d, %c)|" + END, 0.5),
    ("%c = f32[] 2.0|" + KT + "%d = matmul(%q, %kt)|%a = div(%d, %c)|" + END, 0.5),
    ("%c = f32[] 2.0|" + KT + "%w = div(%q, %c)|%a = matmul(%w, %kt)|" + END, 0.5),
    ("%c = f32[] 0.5|" + KT + "%w = mul(%q, %c)|%u = mul(%kt, %c)|%a = matmul(%w, %u)|" + END, 0.25),
    ("%c = f32[] 0.5|%u = mul(%k, %c)|" + KT.replace("(%k)", "(%u)") + "%a = matmul(%q, %kt)|" + END, 0.5),
    (KT + "%a = matmul(%q, %kt)|" + END, 1.0),
]


@pytest.mark.parametrize(("body", "scale"), SCALES)
def test_attention_scales(apply, body: str, scale: float) -> None:
    out = apply(graph(body, QKV), "recognize-attention,move-transposes,dead-code", tolerance=2e-6)
    assert out.ops == ["attention"] and out.only("attention") == {"scale": scale, "causal": False}


def test_attention_from_the_heads_of_one_projection(apply) -> None:
    out = apply(
        graph(
            "%c = f32[] 2.0|%u = reshape(%x){shape=[n, 5, 2, 4]}|%q = transpose(%u){perm=[0, 2, 1, 3]}|"
            "%k = transpose(%u){perm=[0, 2, 3, 1]}|%d = matmul(%q, %k)|%a = div(%d, %c)|%p = softmax(%a){axis=3}|"
            "%o = matmul(%p, %q)|%z = transpose(%o){perm=[0, 2, 1, 3]}|%y = reshape(%z){shape=[n, 5, 8]}"
        ),
        "recognize-attention,move-transposes,common-subexpressions,dead-code",
        tolerance=2e-6,
    )
    assert out.ops == ["reshape", "transpose", "attention", "transpose", "reshape"]


SCORES = "%c = f32[] 0.5|" + KT + "%d = matmul(%q, %kt)|%w = mul(%d, %c)|"


@pytest.mark.parametrize(
    "mask",
    [
        "%a = add(%w, %m)|",
        "%a = add(%m, %w)|",
        "%f = f32[] -1e4|%g = mul(%m, %f)|%z = add(%w, %m)|%a = add(%z, %g)|",
        "%f = f32[] -3.4028235e38|%a = where(%h, %w, %f)|",
        "%f = f32[] -3.4028235e38|%a = where(%h, %f, %w)|",
    ],
)
def test_attention_masks(apply, mask: str) -> None:
    out = apply(
        graph(SCORES + mask + END, QKV),
        "recognize-attention,move-transposes,dead-code",
        tolerance=2e-6,
        special="where" not in mask,
    )
    assert out.ops[-1] == "attention" and "softmax" not in out.ops
    assert len(next(n for n in out.graph.nodes if n.op == "attention").operands) == 4


@pytest.mark.parametrize("rank", [2, 3])
def test_attention_of_lower_rank(apply, rank: int) -> None:
    lead, perm = ("", "1, 0") if rank == 2 else ("b, ", "0, 2, 1")
    inputs = f"%q: f32[{lead}s, 4], %k: f32[{lead}t, 4], %v: f32[{lead}t, 6], %m: f32[{lead}s, t]"
    body = f"%kt = transpose(%k){{perm=[{perm}]}}|%d = matmul(%q, %kt)|%a = add(%d, %m)|"
    body += f"%p = softmax(%a){{axis={rank - 1}}}|%y = matmul(%p, %v)"
    out = apply(graph(body, inputs), "recognize-attention,move-transposes,dead-code", tolerance=2e-6)
    assert "attention" in out.ops and set(out.ops) == {"reshape", "attention"}


def causal(queries: int, keys: int) -> Constant:
    hidden = np.arange(keys)[None, :] > np.arange(queries)[:, None] + keys - queries
    return Constant(np.where(hidden, np.float32(-np.inf), np.float32(0)).reshape(1, 1, queries, keys))


@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (3, 5)])
def test_causal_mask(apply, queries: int, keys: int) -> None:
    mask = causal(queries, keys)
    inputs = QKV.replace("s, 4", f"{queries}, 4").replace("t, 4", f"{keys}, 4").replace("t, 6", f"{keys}, 6")
    body = f"%g = f32[1, 1, {queries}, {keys}] #{mask.digest}|" + SCORES + "%a = add(%w, %g)|" + END
    out = apply(
        graph(body, inputs),
        "recognize-attention,move-transposes,dead-code",
        tolerance=2e-6,
        constants={mask.digest: mask},
        special=False,
    )
    assert out.ops == ["attention"] and out.only("attention")["causal"] is True


RANGES = (
    "%i = range_{start=[ROW], size=[s], step=1, dtype=i64}|%u = reshape(%i){shape=[s, 1]}|"
    "%j = range_{start=[0], size=[t], step=1, dtype=i64}|%z = f32[] 0.0|%f = f32[] FILL|"
)
SEEN = "%b = less_equal(%j, %u)|%g = where(%b, %z, %f)|"
HIDDEN = "%b = less_equal(%u, %j)|%g = where(%b, %f, %z)|"
LATER = "%b = less(%u, %j)|%g = where(%b, %f, %z)|"
EARLIER = "%b = less(%j, %u)|%g = where(%b, %z, %f)|"


@pytest.mark.parametrize(
    ("row", "mask", "fill", "recognized"),
    [
        ("0", SEEN, "-inf", True),
        ("0", SEEN, "-3.4e38", True),
        ("1", HIDDEN, "-inf", True),
        ("0", LATER, "-inf", True),
        ("1", EARLIER, "-inf", True),
        ("0", EARLIER, "-1e38", False),
        ("1", LATER, "-1e38", False),
        ("0", SEEN, "-1.0", False),
        ("1", SEEN, "-1e38", False),
        ("0", HIDDEN, "-1e38", False),
    ],
)
def test_computed_causal_mask(apply, row: str, mask: str, fill: str, recognized: bool) -> None:
    inputs = "%q: f32[b, 2, s, 4], %k: f32[b, 2, s, 4], %v: f32[b, 2, s, 6]"
    body = RANGES.replace("[t]", "[s]").replace("ROW", row).replace("FILL", fill) + mask
    out = apply(
        graph(body + SCORES + "%a = add(%w, %g)|" + END, inputs),
        "recognize-attention,move-transposes,dead-code",
        tolerance=2e-6,
        special=not recognized,
    )
    assert out.only("attention")["causal"] is recognized and (out.ops == ["attention"]) is recognized


def test_causal_mask_of_a_cache_needs_alignment(apply) -> None:
    inputs = "%q: f32[b, 2, s, 4], %k: f32[b, 2, s + 2, 4], %v: f32[b, 2, s + 2, 6]"
    for row, recognized in (("2", True), ("0", False)):
        body = RANGES.replace("[t]", "[s + 2]").replace("ROW", row).replace("FILL", "-inf") + SEEN
        out = apply(
            graph(body + SCORES + "%a = add(%w, %g)|" + END, inputs),
            "recognize-attention",
            tolerance=2e-6,
            special=False,
        )
        assert out.only("attention")["causal"] is recognized


REPEAT = (
    "reshape(%X){shape=[b, 2, 1, t, D]}|%Xw = expand(%Xo){shape=[b, 2, 3, t, D]}|"
    "%Xr = reshape(%Xw){shape=[b, 6, t, D]}|"
)


@pytest.mark.parametrize("order", ["repeat", "tile"])
def test_grouped_heads(apply, order: str) -> None:
    inputs = "%q: f32[b, 6, s, 4], %k: f32[b, 2, t, 4], %v: f32[b, 2, t, 6]"
    body = "".join(f"%{n}o = " + REPEAT.replace("X", n).replace("D", d) for n, d in (("k", "4"), ("v", "6")))
    if order == "tile":
        body = body.replace("[b, 2, 1, t", "[b, 1, 2, t").replace("[b, 2, 3, t", "[b, 3, 2, t")
    out = apply(
        graph(body + "%y = attention(%q, %kr, %vr){scale=0.5, causal=true}", inputs),
        "recognize-attention,simplify-shapes",
        tolerance=2e-6,
    )
    assert (out.ops == ["attention"]) is (order == "repeat")


def test_guard_against_hidden_rows(apply) -> None:
    inputs = "%q: f32[b, 2, 2, 4], %k: f32[b, 2, 2, 4], %v: f32[b, 2, 2, 6]"
    body = "%g = f32[2, 2] [[-inf, -inf], [0.0, -inf]]|%z = f32[] 0.0|" + SCORES
    body += "%a = add(%w, %g)|%r = softmax(%a){axis=3}|%n = is_nan(%r)|%p = where(%n, %z, %r)|%y = matmul(%p, %v)"
    out = apply(
        graph(body, inputs),
        "recognize-attention,fold-constants,move-transposes,dead-code",
        tolerance=2e-6,
        special=False,
    )
    assert out.ops == ["attention", "where"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (SCORES + "%z = add(%w, %m)|%a = mul(%z, %c)|" + END, "scales the mask too"),
        (SCORES + "%a = exp(%w)|" + END, "is made by exp"),
        (SCORES + "%p = softmax(%w){axis=2}|%y = matmul(%p, %v)", "not over the keys"),
        (SCORES + "%f = f32[] -5.0|%a = where(%h, %w, %f)|" + END, "is made by where"),
        (SCORES + "%p = softmax(%w){axis=3}|%o = matmul(%p, %v)|%z = reduce_sum(%w){axes=[3], keepdims=true}|"
         "%y = mul(%o, %z)", "is used elsewhere"),
    ],
)  # fmt: skip
def test_what_is_no_attention(apply, body: str, reason: str) -> None:
    out = apply(graph(body, QKV), "recognize-attention")
    assert "attention" not in out.ops and reason in out.reasons

"""The HTML page of an artifact: whole, harmless, the same bytes each time, and as a browser shows it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import onnx
import pytest
from commands import Opcel
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from opcel_compiler.cli import main
from opcel_compiler.report.html import page
from opcel_compiler.report.picture import HEIGHT, MAX_BOXES, WIDTH, joined, svg
from opcel_compiler.report.sketch import KINDS, Sketch, graph_sketch

HOSTILE = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202e\x07&amp;]]>"


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory, falling_back: Callable[[], AbstractContextManager[None]]) -> Path:
    """The artifact of a model with hostile names everywhere, and with a node that falls back."""
    folder = tmp_path_factory.mktemp("hostile")
    x = helper.make_tensor_value_info(f"x{HOSTILE}", TensorProto.FLOAT, ["n", 5, 4, 4])
    y = helper.make_tensor_value_info(f"y{HOSTILE}", TensorProto.FLOAT, ["n", 5])
    nodes = [
        helper.make_node("Relu", [x.name], ["r"], name=f"relu{HOSTILE}"),
        helper.make_node("Det", ["r"], [y.name], name=f"det{HOSTILE}"),
    ]
    graph = helper.make_graph(nodes, HOSTILE, [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "h.onnx")
    with falling_back():
        command = ["compile", str(folder / "h.onnx"), "-o", str(folder / "h.opcel"), "--quiet", "--fallback=allow"]
        assert main(command) == 0
    return folder / "h.opcel"


def text_of(artifact: Path) -> str:
    return (artifact / "report.html").read_text(encoding="utf-8")


def facts_of(artifact: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    report, manifest = (
        json.loads((artifact / f"{n}.json").read_text(encoding="utf-8")) for n in ("report", "manifest")
    )
    return report, manifest


class Reader(HTMLParser):
    """Collects tags, attributes and text; fails on tags that do not nest."""

    VOID = frozenset({"meta", "br", "wbr", "path", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_tells_what_a_user_asks_first(artifact: Path) -> None:
    text = " ".join(Reader(text_of(artifact)).words)
    for words in (
        "proved",
        "all native",
        "every node runs natively",
        "weights",
        "Modelled time",
        "x f32[n, 8]",
        "gemm",
    ):
        assert words in text, words
    assert "gemm_0" in text and "relu_0" in text and "fold-constants" in text


def test_what_fell_back_and_why(hostile: Path) -> None:
    text = " ".join(Reader(text_of(hostile)).words)
    for words in ("1 fell back", "Det has none", "Det:17", "ONNX Runtime"):
        assert words in text, words


def test_names_cannot_become_markup(hostile: Path) -> None:
    read = Reader(text_of(hostile))
    assert not read.tags & {"script", "img", "iframe", "link", "object", "base"}
    assert not any(name.startswith("on") or name in ("src", "href") for name in read.attributes)
    whole = "".join(read.words)
    assert "<script>alert(1)</script>" in whole and "\\u202e\\x07&amp;]]>" in whole
    assert "\u202e" not in whole and "\x07" not in whole


def test_nothing_comes_from_outside(artifact: Path) -> None:
    text = text_of(artifact)
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|url\(|@import|<script|<link", text)


def test_the_same_model_gives_the_same_bytes(models: Path, artifact: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.opcel"
    assert main(["compile", str(models / "mlp.onnx"), "-o", str(again), "--quiet"]) == 0
    assert text_of(again) == text_of(artifact) == page(*facts_of(artifact))


def test_a_proof_that_comes_later_is_on_the_page(models: Path, tmp_path: Path) -> None:
    path, model = tmp_path / "late.opcel", models / "mlp.onnx"
    assert main(["compile", str(model), "-o", str(path), "--quiet", "--no-proof"]) == 0
    assert "unproved" in text_of(path)
    assert main(["run", str(path), "--prove", str(model)]) == 0
    assert "unproved" not in text_of(path) and "against ONNX Runtime" in text_of(path)


def test_a_thousand_kernels_stay_under_a_megabyte(artifact: Path) -> None:
    report, manifest = facts_of(artifact)
    name = "/network/encoder/layer.11/attention/output/dense/MatMul_{}"
    kernel = {**report["kernels"][0], "origin": [name.format(i) for i in range(20)]}
    boxes = [["contraction", "matmul", name.format(i)] for i in range(3000)]
    edges = [[i, i + 1] for i in range(2999)] + [[i, i + 3] for i in range(0, 2990, 7)]
    sketch = {"nodes": boxes, "edges": sorted(edges)}
    large = {**report, "kernels": [{**kernel, "step": i} for i in range(1000)]}
    text = page({**large, "graphs": {"before": sketch, "after": sketch}}, manifest)
    assert len(text.encode()) < 1_000_000 and text.count("<tr>") > 1000
    Reader(text)
    assert "left out" in text


# -- opcel info --html -------------------------------------------------------------------------------------------------


def test_info_writes_the_page(opcel: Opcel, artifact: Path, tmp_path: Path) -> None:
    result = opcel("info", artifact, "--html", "out.html")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert (tmp_path / "out.html").read_text(encoding="utf-8") == text_of(artifact)


def test_measured_times_come_from_a_profile(opcel: Opcel, artifact: Path, tmp_path: Path) -> None:
    count = len(facts_of(artifact)[0]["kernels"])
    (tmp_path / "p.json").write_text(json.dumps({"steps": [{"seconds": 0.00123}] * count}))
    assert opcel("info", artifact, "--html", "out.html", "--profile", "p.json").code == 0
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert text.count("1.23 ms") == count and "Measured" in text and "Measured" not in text_of(artifact)


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["A", "--html", "o.html", "--profile", "none.json"], 1, "none.json holds no profile"),
        (["A", "--html", "o.html", "--profile", "other.json"], 1, "9 measured steps for 1 kernels"),
        (["A", "--profile", "other.json"], 2, "--profile goes with --html"),
        (["host", "--html", "o.html"], 1, "--html needs a compiled model"),
        (["A", "--html", "none/o.html"], 4, "cannot write none/o.html"),
    ],
)
def test_errors(opcel: Opcel, artifact: Path, tmp_path: Path, argv: list[str], status: int, message: str) -> None:
    (tmp_path / "other.json").write_text(json.dumps({"steps": [{"seconds": 1.0}] * 9}))
    result = opcel("info", *(str(artifact) if a == "A" else a for a in argv))
    assert result.code == status and message in result.err and not (tmp_path / "o.html").exists()


# -- the picture -------------------------------------------------------------------------------------------------------


@st.composite
def sketches(draw: st.DrawFn) -> Sketch:
    count = draw(st.integers(1, 30))
    nodes = [[draw(st.sampled_from(KINDS)), f"n{i}", ""] for i in range(count)]
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    edges = sorted({(min(p), max(p)) for p in draw(st.lists(pairs, max_size=60)) if p[0] != p[1]})
    return {"nodes": nodes, "edges": [list(e) for e in edges]}


@given(sketches())
def test_boxes_lie_apart_and_arrows_point_down(sketch: Sketch) -> None:
    picture = svg(sketch, "a picture")
    assert picture == svg(sketch, "a picture")
    places = [(float(x), float(y)) for x, y in re.findall(r'<rect x="([-\d.]+)" y="(\d+)"', picture)]
    titles = re.findall(r"<title>(n\d+)</title>", picture)
    assert titles == [node[1] for node in sketch["nodes"]]
    for i, (x, y) in enumerate(places):
        for a, b in places[:i]:
            assert abs(x - a) >= WIDTH or abs(y - b) >= HEIGHT
    for a, b in sketch["edges"]:
        assert places[a][1] < places[b][1]
    width = float(re.findall(r'width="(\d+)"', picture)[0])
    assert all(0 <= x and x + WIDTH <= width for x, _ in places)


@given(sketches(), st.integers(2, 12))
def test_joined_chains_keep_the_order(sketch: Sketch, limit: int) -> None:
    drawn, left = joined(sketch, limit)
    assert len(drawn["nodes"]) <= max(limit, 1) or drawn is sketch
    assert all(a < b < len(drawn["nodes"]) for a, b in drawn["edges"])
    assert left >= 0 and {n[0] for n in drawn["nodes"]} <= {n[0] for n in sketch["nodes"]}
    svg(drawn, "")


def test_a_chain_is_joined_only_when_there_is_need() -> None:
    chain: Sketch = {"nodes": [["row", "a", ""]] * MAX_BOXES, "edges": [[i, i + 1] for i in range(MAX_BOXES - 1)]}
    assert joined(chain) == (chain, 0)
    longer: Sketch = {"nodes": [["row", "a", ""]] * (MAX_BOXES + 1), "edges": [[i, i + 1] for i in range(MAX_BOXES)]}
    assert joined(longer)[0]["nodes"] == [["row", f"{MAX_BOXES + 1}: a … a", ""]]


def test_a_sketch_of_a_graph_leaves_out_constants() -> None:
    from opcel_compiler.ir.parse import parse_graph

    graph = parse_graph('graph main(%x: f32[2]) {\n %c = f32[] 2.0\n %y = mul(%x, %c) from "m"\n return %y as "out"\n}')
    assert graph_sketch(graph, ("in",)) == {
        "nodes": [["port", "in", "input"], ["elementwise", "mul", "m"], ["port", "out", "output"]],
        "edges": [[0, 1], [1, 2]],
    }


# -- in a browser ------------------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HARNESS = """<!DOCTYPE html><meta charset="utf-8"><body><script>
console.log("control");
const sizes = [400, 1600], out = [];
let left = sizes.length;
for (const size of sizes) {
  const frame = document.createElement("iframe");
  frame.width = size; frame.height = 900;
  frame.srcdoc = PAGE;
  frame.onload = () => {
    const d = frame.contentDocument, view = d.documentElement;
    const shown = [...d.querySelectorAll("h1,h2,.big,th,td,summary,svg text")].filter(e => {
      const box = e.getBoundingClientRect(); return box.width > 0 && box.height > 0;
    }).map(e => e.textContent);
    const boxes = [...d.querySelectorAll("svg g")].filter(g => {
      const box = g.querySelector("rect").getBBox();
      return [...g.querySelectorAll("text")].some(t => t.getBBox().width > box.width);
    });
    out.push({size, overflow: view.scrollWidth - view.clientWidth, shown, spilt: boxes.map(b => b.textContent)});
    if (--left == 0) document.body.textContent = "RESULT" + JSON.stringify(out) + "END";
  };
  document.body.append(frame);
}
</script>"""


def browse(path: Path, folder: Path, *options: str) -> tuple[str, list[str]]:
    """The page as the browser leaves it, and what it wrote to its console."""
    assert BROWSER is not None
    profile = folder / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    command = [BROWSER, *flags.split(), "--disable-component-update", f"--user-data-dir={profile}", *options]
    command += ["--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the path")
@pytest.mark.parametrize("which", ["artifact", "hostile"])
def test_in_a_browser(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    path: Path = request.getfixturevalue(which)
    assert browse(path / "report.html", tmp_path)[1] == []
    # The page forbids all scripts, so it is measured from outside, in a frame, without that rule.
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text_of(path))
    harness = tmp_path / "harness.html"
    harness.write_text(HARNESS.replace("PAGE", json.dumps(text).replace("<", "\\u003c")), encoding="utf-8")
    dom, console = browse(harness, tmp_path)
    assert len(console) == 1 and "control" in console[0]
    found = re.search("RESULT(.*)END", dom, re.DOTALL)
    assert found is not None, dom[:2000]
    for frame in json.loads(html.unescape(found[1])):
        assert frame["overflow"] <= 0, f"the page is wider than its window of {frame['size']}"
        assert not frame["spilt"], f"text wider than its box: {frame['spilt']}"
        wanted = {"What fell back", "Inputs and outputs", "Graph", "Passes", "proved", "Kernel", "From the nodes"}
        assert wanted | {"all native" if which == "artifact" else "1 fell back"} <= set(frame["shown"])

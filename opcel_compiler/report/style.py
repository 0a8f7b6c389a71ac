"""The style sheet of the report."""

from __future__ import annotations

_COLOURS = {
    "contraction": ("#dbeafe", "#2563eb", "#172f5c", "#60a5fa"), "row": ("#ede9fe", "#7c3aed", "#33235f", "#a78bfa"),
    "reduction": ("#ffedd5", "#c2410c", "#4a2410", "#fb923c"),
    "elementwise": ("#dcfce7", "#15803d", "#123d23", "#4ade80"),
    "movement": ("#f1f5f9", "#64748b", "#2a3341", "#94a3b8"), "fallback": ("#fee2e2", "#dc2626", "#571c1c", "#f87171"),
    "port": ("#ffffff", "#94a3b8", "#11161d", "#64748b"),
}  # fmt: skip
"""Fill and line of each kind of box, light and dark."""


def _kinds(fill: int, line: int) -> str:
    return "".join(f".{k} rect{{fill:{c[fill]};stroke:{c[line]}}}" for k, c in _COLOURS.items())


def _legend(fill: int, line: int) -> str:
    return "".join(f"li.{k}{{background:{c[fill]};border-color:{c[line]}}}" for k, c in _COLOURS.items())


CSS = (
    ":root{color-scheme:light dark;--bg:#fff;--fg:#1b2430;--soft:#5b6675;--line:#d9dfe7;--card:#f7f9fb;"
    "--good:#15803d;--bad:#b91c1c;--bar:#dbeafe}"
    "*{box-sizing:border-box}"
    "body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}"
    "header,main{max-width:1480px;margin:0 auto;padding:0 clamp(12px,3vw,40px)}"
    "header{padding-top:24px}h1{font-size:1.6rem;margin:0;overflow-wrap:anywhere}"
    "header p{color:var(--soft);margin:4px 0}"
    "h2{font-size:1.15rem;margin:32px 0 8px}p{margin:4px 0 8px;max-width:80ch}"
    ".cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,215px),1fr));gap:12px;margin-top:20px}"
    ".card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px;"
    "border-top:3px solid var(--line)}.card h2{margin:0;font-size:.85rem;font-weight:500;color:var(--soft)}"
    ".card p{margin:2px 0;font-size:.85rem;color:var(--soft);overflow-wrap:anywhere}"
    ".card p.big{font-size:1.25rem;font-weight:600;color:var(--fg)}"
    ".good{border-top-color:var(--good)}.bad{border-top-color:var(--bad)}"
    ".card.good p.big{color:var(--good)}.card.bad p.big{color:var(--bad)}"
    ".scroll{overflow:auto;border:1px solid var(--line);border-radius:8px;max-height:80vh}"
    ".few .scroll{max-height:19em}.few td:first-child{width:6em}"
    ".graph{max-height:70vh;padding:8px;text-align:center}.graph>div{position:relative;display:inline-block}"
    ".graph i{position:absolute;top:0;width:1px;height:1px;scroll-initial-target:nearest}"
    ".pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:16px}.pair>*{min-width:0}"
    "summary{cursor:pointer;padding:4px 0;font-weight:600}.n{color:var(--soft);font-weight:400;font-size:.85rem}"
    "table{border-collapse:collapse;width:100%;font-size:.88rem}"
    "th,td{text-align:left;vertical-align:top;padding:5px 10px;border-bottom:1px solid var(--line)}"
    "td{overflow-wrap:anywhere;min-width:4.5em}"
    "th{position:sticky;top:0;background:var(--card);white-space:nowrap;font-weight:600}"
    "tr:last-child td{border-bottom:0}"
    ".r{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}"
    ".bar{background:linear-gradient(to left,var(--bar) var(--w),transparent 0)}"
    ".hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}"
    "code{font:.88em ui-monospace,monospace;overflow-wrap:anywhere}"
    ".legend{list-style:none;display:flex;flex-wrap:wrap;gap:8px;padding:0;margin:8px 0;font-size:.85rem}"
    ".legend li{border:1px solid;border-radius:6px;padding:1px 8px}"
    "svg{display:inline-block}svg rect{stroke-width:1.2}svg .fallback rect{stroke-dasharray:5 3}"
    "svg text{font:600 12px system-ui,sans-serif;fill:var(--fg);text-anchor:middle}"
    "svg text.n{font:400 10px system-ui,sans-serif;fill:var(--soft)}"
    "path{fill:none;stroke:var(--soft);stroke-width:1.1}path.s{stroke-dasharray:2 2}"
    + _kinds(0, 1) + _legend(0, 1)
    + "@media(prefers-color-scheme:dark){:root{--bg:#0f141a;--fg:#e6ebf2;--soft:#9aa7b8;--line:#2b3542;--card:#171e27;"
    "--good:#4ade80;--bad:#f87171;--bar:#1e3a66}" + _kinds(2, 3) + _legend(2, 3) + "}"
    "@media print{.scroll,.graph{max-height:none}}"
)  # fmt: skip

"""The frame, style sheets and scripts of the report pages. Nothing in them is loaded from elsewhere."""

from html import escape


def document(title: str, head: str, main: str, script: str) -> str:
    """Return a page: text `title`, HTML for the head and the body's main element, and a script to run at its end."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
{head}
</head>
<body>
<main>
{main}</main>
<script>{script}</script>
</body>
</html>
"""


CSS = """
:root { --paper: #fff; --ink: #1d2430; --soft: #5b6675; --line: #e1e5ea; --wash: #f6f7f9; --accent: #0b5cad;
  --good: #0a6b4f; --good-wash: #e4f4ee; --bad: #9a3412; --bad-wash: #fdeee6; --note: #7a5a00; --note-wash: #fdf6e0; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: var(--paper); line-height: 1.55; font-size: 16px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 48px 28px 72px; }
h1, h2, h3 { line-height: 1.25; font-weight: 650; letter-spacing: -0.01em; }
h1 { font-size: 2rem; margin: 0 0 .5rem; }
h2 { font-size: 1.4rem; margin: 3.2rem 0 .4rem; padding-top: 1.4rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 2.2rem 0 .6rem; }
p { margin: .5rem 0; max-width: 46rem; }
.lede { font-family: Charter, "Bitstream Charter", "Iowan Old Style", Georgia, serif; font-size: 1.28rem;
  line-height: 1.5; max-width: 48rem; margin: .8rem 0 0; }
.soft { color: var(--soft); }
.notice { background: var(--note-wash); color: var(--note); border-left: 3px solid #d9a400; padding: .5rem .9rem;
  margin: 1rem 0; border-radius: 0 4px 4px 0; font-size: .93rem; }
.notice p { margin: .25rem 0; max-width: none; }
.scroll { overflow-x: auto; margin: .9rem 0; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
thead th { text-align: right; font-weight: 600; color: var(--soft); font-size: .8rem; vertical-align: bottom;
  border-bottom: 1.5px solid var(--ink); padding: .3rem .6rem .45rem; line-height: 1.3; }
td, tbody th { text-align: right; padding: .5rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap;
  font-weight: 400; }
th:first-child, td.text, th.text { text-align: left; }
tbody th:first-child { font-weight: 600; }
tbody th.path { font-weight: 400; font-size: .82rem; font-family: ui-monospace, Menlo, Consolas, monospace; }
th:first-child { position: sticky; left: 0; background: var(--paper); padding-left: 0; z-index: 1; }
tr.baseline td, tr.baseline th { color: var(--soft); }
td.wrap { white-space: normal; min-width: 16rem; }
.swatch { display: inline-block; width: 18px; height: 0; margin-right: 8px; vertical-align: middle;
  border-top: 3px solid; }
.interval { vertical-align: middle; margin-right: 10px; }
.tag { display: inline-block; padding: .06rem .55rem; border-radius: 99px; font-size: .78rem; font-weight: 600;
  background: var(--wash); color: var(--soft); white-space: nowrap; }
.tag.faster, .tag.finished { background: var(--good-wash); color: var(--good); }
.tag.slower, .tag.diverged, .tag.failed { background: var(--bad-wash); color: var(--bad); }
.tag.skipped, .tag.interrupted, .tag.unfinished { background: var(--note-wash); color: var(--note); }
.verdicts { padding: 0; margin: .6rem 0; list-style: none; font-size: .95rem; }
.verdicts li { padding: .3rem 0; }
.controls { display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; margin: .8rem 0 .2rem; }
button { font: inherit; font-size: .85rem; color: var(--ink); background: var(--paper); border: 1px solid var(--line);
  border-radius: 99px; padding: .2rem .75rem; cursor: pointer; }
button:hover { border-color: var(--soft); }
button:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
.arms button[aria-pressed="false"] { opacity: .45; text-decoration: line-through; }
.switch { display: inline-flex; margin-right: 1rem; border: 1px solid var(--line); border-radius: 99px;
  overflow: hidden; }
.switch button { border: 0; border-radius: 0; }
.switch button[aria-pressed="true"] { background: var(--ink); color: var(--paper); }
.plots { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; }
.plots > div { min-width: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.4rem; margin: .6rem 0; font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.reading { background: var(--wash); border-radius: 6px; padding: .9rem 1.3rem; margin: 1.4rem 0; font-size: .92rem; }
.reading h3 { margin: 0 0 .3rem; }
.reading ul { margin: 0; padding-left: 1.1rem; }
.reading li { margin: .2rem 0; }
@media (max-width: 720px) {
  main { padding: 28px 16px 48px; }
  h1 { font-size: 1.6rem; }
  .lede { font-size: 1.12rem; }
  .plots { grid-template-columns: 1fr; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .55rem; }
  .interval { display: none; }
  td, tbody th, thead th { padding-left: .5rem; padding-right: .5rem; }
}
@media print { .controls .switch { display: none; } .scroll { overflow: visible; } }
"""

SCRIPT = """
for (const panel of document.querySelectorAll("section.curves")) {
  const plots = [...panel.querySelectorAll(".plotly-graph-div")];
  const axes = [...panel.querySelectorAll(".switch button")];
  const arms = [...panel.querySelectorAll(".arms button")];
  const isPressed = (button) => button.getAttribute("aria-pressed") === "true";
  function show() {
    const axis = axes.find(isPressed);
    const shown = new Set(arms.filter(isPressed).map((button) => button.dataset.arm));
    for (const plot of plots) {
      const visible = plot.data.map((trace) => trace.meta.axis === axis.dataset.axis && shown.has(trace.meta.arm));
      Plotly.update(plot, { visible }, { "xaxis.title.text": axis.dataset.title, "xaxis.autorange": true });
    }
  }
  for (const button of axes) button.addEventListener("click", () => {
    for (const other of axes) other.setAttribute("aria-pressed", other === button);
    show();
  });
  for (const button of arms) button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", !isPressed(button));
    show();
  });
}
"""

INDEX_CSS = """
a { color: var(--accent); }
article { margin: 2.4rem 0; padding-top: .4rem; scroll-margin-top: 1rem; }
article h3 .tag { margin-left: .4rem; font-weight: 600; letter-spacing: 0; }
article img { display: block; max-width: 100%; height: auto; margin: .8rem 0; padding: 10px; background: #fff;
  border: 1px solid var(--line); border-radius: 6px; }
.tag { white-space: normal; border-radius: .7rem; }
td .tag { margin: .1rem 0; }
pre { background: var(--wash); border-radius: 6px; padding: .6rem .9rem; overflow-x: auto; font-size: .85rem;
  font-family: ui-monospace, Menlo, Consolas, monospace; margin: .8rem 0; }
summary { cursor: pointer; color: var(--soft); font-size: .9rem; }
button[aria-pressed="true"] { background: var(--ink); color: var(--paper); border-color: var(--ink); }
[hidden] { display: none; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14181f; --ink: #e6e9ee; --soft: #9aa5b4; --line: #2c333e; --wash: #1d232c; --accent: #7db6f5;
    --good: #6fd3ae; --good-wash: #12342a; --bad: #f3a27c; --bad-wash: #3d2116; --note: #e8c766; --note-wash: #362c10; }
}
@media print {
  :root { --paper: #fff; --ink: #000; --soft: #444; --line: #ccc; --wash: #f6f7f9; }
  body { font-size: 10pt; }
  .controls { display: none; }
  article { break-inside: avoid; }
  article img { max-width: 15cm; }
  pre { white-space: pre-wrap; }
}
tbody th.wrap { white-space: normal; font-weight: 500; }
@media (max-width: 720px) {
  .stack thead { display: none; }
  .stack tr { display: block; padding: .6rem 0; border-bottom: 1px solid var(--line); }
  .stack th, .stack td { display: block; text-align: left; border: 0; padding: .1rem 0; white-space: normal; }
  .stack [hidden] { display: none; }
  .stack td[data-label]::before { content: attr(data-label) ": "; color: var(--soft); }
}
"""

FILTER = """
const buttons = [...document.querySelectorAll("button[data-paper]")];
for (const button of buttons) button.addEventListener("click", () => {
  for (const other of buttons) other.setAttribute("aria-pressed", other === button);
  for (const part of document.querySelectorAll("section[data-paper], tr[data-paper]"))
    part.hidden = button.dataset.paper !== "" && part.dataset.paper !== button.dataset.paper;
});
"""

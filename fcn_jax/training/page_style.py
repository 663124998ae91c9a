"""The style sheet and the script of a report page."""

# Moves the edge between an image and its prediction.
SCRIPT = """
for (const slider of document.querySelectorAll(".slider")) {
  const above = slider.closest("figure").querySelector(".above");
  const show = () => {
    above.style.clipPath = `inset(0 0 0 ${100 - slider.value}%)`;
  };
  slider.addEventListener("input", show);
  show();
}
"""

STYLE = """
:root {
  color-scheme: light dark; --back: #ffffff; --text: #1c1f24; --soft: #59616d;
  --line: #d5d9df; --panel: #f4f5f7; --first: #1f5fbf; --second: #b4540a;
  --right: #2f7fe0; --wrong: #e06a1a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #15181d; --text: #e8eaed; --soft: #a3abb7; --line: #3a414c;
    --panel: #1f242b; --first: #7db2ff; --second: #ffb066;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.7rem; margin: 0.6em 0; overflow-wrap: anywhere; }
h2, summary { font-size: 1.2rem; font-weight: 600; margin: 2em 0 0.6em; }
summary { cursor: pointer; }
p { margin: 0.4em 0; overflow-wrap: anywhere; }
.note { color: var(--soft); max-width: 46em; }
.hidden { position: absolute; clip-path: inset(50%); }
table { border-collapse: collapse; }
th, td {
  padding: 4px 12px 4px 0; text-align: left; vertical-align: top;
  overflow-wrap: anywhere;
}
th { font-weight: 600; }
thead th { overflow-wrap: normal; }
tbody th { font-weight: 400; }
.facts th { white-space: nowrap; color: var(--soft); }
.figures { display: grid; grid-template-columns: repeat(2, 1fr); gap: 10px; }
.figures div { background: var(--panel); border-radius: 8px; padding: 10px 14px; }
.figures dt { color: var(--soft); font-size: 0.9rem; }
.figures dd { margin: 0; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.two { display: grid; gap: 16px; }
.bars { width: 100%; }
.bars td { font-variant-numeric: tabular-nums; white-space: nowrap; }
.bars td:nth-child(2) { width: 50%; }
.track { display: block; height: 0.8em; margin-top: 0.35em; background: var(--panel); }
.bar { display: block; height: 100%; background: var(--first); }
.swatch {
  display: inline-block; width: 0.9em; height: 0.9em; margin-right: 0.5em;
  border: 1px solid var(--soft); vertical-align: -0.1em;
}
.scroll { overflow-x: auto; }
.matrix { font-size: 0.85rem; font-variant-numeric: tabular-nums; }
.matrix th span { writing-mode: vertical-rl; max-height: 9em; }
.matrix th[scope=col] { vertical-align: bottom; padding: 4px; }
.matrix th[scope=row] { white-space: nowrap; }
.matrix td { min-width: 2.6em; padding: 4px; text-align: center; }
.matrix tr + tr td { border: 1px solid var(--line); }
figure { margin: 1.2em 0 2em; max-width: 820px; }
figcaption { margin-bottom: 0.5em; overflow-wrap: anywhere; }
img { display: block; width: 100%; max-height: 70vh; object-fit: contain; }
img[src^='data:image/png'] { image-rendering: pixelated; }
.compared { position: relative; }
.above { position: absolute; inset: 0; height: 100%; }
.choice { display: flex; align-items: center; gap: 10px; }
.slider { flex: 1; min-width: 0; max-width: 260px; accent-color: var(--first); }
svg { display: block; width: 100%; }
svg text { fill: var(--text); font-size: 14px; }
svg .left { text-anchor: end; }
svg .middle { text-anchor: middle; }
.grid { stroke: var(--line); }
.line { fill: none; stroke-width: 2.5; }
.line0 { stroke: var(--first); }
.line1 { stroke: var(--second); stroke-dasharray: 7 4; }
.dot0 { fill: var(--first); }
.dot1 { fill: var(--second); }
code { font-size: 0.9rem; }
@media (min-width: 760px) {
  .figures { grid-template-columns: repeat(4, 1fr); }
  .two { grid-template-columns: 1fr 1fr; }
}
@media (max-width: 759px) {
  .bars td:nth-child(2) { width: 20%; }
  .bars tbody th { min-width: 7.5em; }
  .bars th, .bars td { padding-right: 8px; font-size: 0.9rem; }
}
"""

"""The report page's style sheet: light, dark and print."""

from __future__ import annotations

STYLE = """<style>
:root { color-scheme: light dark; --page: #f5f6f8; --card: #ffffff; --ink: #1c2430; --soft: #5d6875; --line: #dfe3e8;
  --accent: #0072b2; --good: #00795a; --goodback: #e1f4ee; --bad: #b34400; --badback: #fdeee2; --head: #f2f4f7; }
@media (prefers-color-scheme: dark) { :root { --page: #0e1114; --card: #14181d; --ink: #e8ecf1; --soft: #a2adba;
  --line: #2b323a; --accent: #56b4e9; --good: #2fd0a0; --goodback: #10322a; --bad: #ff9a5e; --badback: #3a2313;
  --head: #1b2127; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 48px; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 6px; }
h2 { font-size: 18px; margin: 0 0 12px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px 22px;
  margin-top: 18px; }
.facts { color: var(--soft); margin: 0; overflow-wrap: anywhere; }
.facts b { color: var(--ink); font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px; margin-top: 18px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px; }
.tile b { display: block; font-size: 30px; line-height: 1.2; font-weight: 680; letter-spacing: -0.01em; }
.tile span { color: var(--soft); font-size: 13.5px; }
.verdict { margin-top: 18px; padding: 12px 18px; border-radius: 12px; font-size: 16px; font-weight: 600;
  background: var(--head); border-left: 6px solid var(--soft); }
.verdict.met { background: var(--goodback); border-color: var(--good); }
.verdict.missed { background: var(--badback); border-color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 7px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-size: 13px; font-weight: 600; color: var(--soft); background: var(--head); }
th:first-child, td:first-child, .left { text-align: left; }
.wide { white-space: normal; min-width: 220px; overflow-wrap: anywhere; }
tr.total td, tr.main td { font-weight: 650; }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
.note { color: var(--soft); font-size: 13.5px; margin: 10px 0 0; }
.bar { display: block; height: 10px; border-radius: 3px; background: var(--accent); min-width: 2px; }
.bar.earlier { opacity: .35; }
td.barcell { width: 55%; }
code { font: 13px/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
figure { margin: 0; }
figure img { display: block; width: 100%; max-width: 920px; height: auto; border-radius: 8px; background: #fff; }
figure svg { display: block; width: 100%; height: auto; }
.picture { padding: 10px; }
@media (max-width: 700px) { .picture svg { min-width: 900px; } }
footer { color: var(--soft); font-size: 13px; margin-top: 20px; }
@media print { :root { --page: #fff; --card: #fff; --ink: #1c2430; --soft: #5d6875; --line: #dfe3e8; --accent: #0072b2;
  --good: #00795a; --goodback: #fff; --bad: #b34400; --badback: #fff; --head: #fff; }
  main { max-width: none; padding: 0; } .scroll { overflow: visible; } body { font-size: 10px; }
  tr, figure, .tile { break-inside: avoid; } h2 { break-after: avoid; }
  section { padding: 12px 14px; margin-top: 10px; }
  .tiles { grid-template-columns: repeat(4, 1fr); gap: 8px; } .tile { padding: 8px 12px; } .tile b { font-size: 20px; }
  h1 { font-size: 20px; } h2 { font-size: 14px; } th { font-size: 9px; } th, td { padding: 3px 5px; }
  .tile span, .note, footer, code { font-size: 9px; } figure img { max-width: 560px; } }
</style>"""

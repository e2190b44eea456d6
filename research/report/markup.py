"""How does a value become safe HTML, and what does the report look like?

Every text that reaches the page passes `text`; the page loads nothing but the PNGs beside it, and its policy lets the
browser run only the one script below (by its SHA-256).
"""

import base64
import hashlib
import html
import math
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.tabular import format_number

STYLE = """
:root { color-scheme: light dark; --ink:#1d2329; --soft:#57606a; --line:#d7dce1; --ground:#fff; --raised:#f6f8fa;
  --accent:#0a5c94; --warn:#7a4300; --warn-ground:#fff3dc; --warn-line:#e69f00; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ec; --soft:#9aa4ae; --line:#3a424b; --ground:#15191e;
  --raised:#1d232a; --accent:#7cc0ee; --warn:#ffd58a; --warn-ground:#3a2a08; --warn-line:#b97f00; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 2rem 1.5rem 4rem; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .7rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
p { max-width: 50rem; } a { color: var(--accent); }
nav { margin: 1rem 0; font-size: .9rem; } nav a { margin-right: 1rem; }
.soft, figcaption, caption { color: var(--soft); }
.warning { border-left: .35rem solid var(--warn-line); background: var(--warn-ground); color: var(--warn);
  padding: .6rem 1rem; margin: .6rem 0; font-weight: 600; }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .86em; }
pre { background: var(--raised); border: 1px solid var(--line); border-radius: .4rem; padding: .7rem 1rem;
  overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .9rem; margin: 1rem 0; }
.card { border: 1px solid var(--line); border-radius: .5rem; background: var(--raised); padding: .8rem 1rem; }
.card b { display: block; font-size: 1.75rem; font-weight: 650; line-height: 1.25; }
.card span { display: block; font-size: .86rem; color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; margin: .6rem 0 1rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-size: .86rem; padding-bottom: .4rem; }
th, td { padding: .3rem .75rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--raised); font-weight: 600; white-space: nowrap; }
td:first-child { white-space: nowrap; }
td.n, th.n { text-align: right; white-space: nowrap; } td small { color: var(--soft); }
tr.chosen td { font-weight: 650; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort="ascending"] button::after { content: " ▲"; font-size: .7em; }
th[aria-sort="descending"] button::after { content: " ▼"; font-size: .7em; }
figure { margin: 1rem 0 1.2rem; max-width: 100%; }
figcaption { font-size: .88rem; margin-top: .4rem; contain: inline-size; }
figure img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: .4rem; }
.figures { display: flex; flex-wrap: wrap; gap: 0 1.6rem; align-items: flex-start; }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: 1rem; }
.mistakes figure { margin: 0; } .mistakes img { width: 100%; aspect-ratio: 1; object-fit: contain; background: #000; }
.mistakes figcaption { font-size: .8rem; line-height: 1.4; overflow-wrap: anywhere; }
.pairs td:first-child { color: var(--soft); white-space: nowrap; } .pairs td { overflow-wrap: anywhere; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--accent); }
@media print { :root { color-scheme: light; --ink:#000; --soft:#444; --line:#bbb; --ground:#fff; --raised:#fff;
  --accent:#000; --warn:#000; --warn-ground:#fff; }
  body { max-width: none; padding: 0; font-size: 10pt; } nav { display: none; } .scroll { overflow: visible; }
  figure, .card, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } details > * { display: block; } }
"""

SCRIPT = """
document.querySelectorAll("table.sortable").forEach(function (table) {
  table.querySelectorAll("thead th").forEach(function (head, column) {
    var button = document.createElement("button");
    button.type = "button"; button.textContent = head.textContent; button.title = "sort by this column";
    head.textContent = ""; head.appendChild(button);
    button.addEventListener("click", function () {
      var down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("thead th").forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      var rows = Array.from(table.tBodies[0].rows), key = function (row) { return row.cells[column].dataset.key; };
      rows.sort(function (left, right) {
        var a = key(left), b = key(right);
        if (a === "" || b === "") { return (a === "") - (b === ""); }
        var order = isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, {numeric: true}) : a - b;
        return down ? -order : order;
      });
      rows.forEach(function (row) { table.tBodies[0].appendChild(row); });
    });
  });
});
"""


def text(value: object) -> str:
    """Any value as escaped text, safe between tags and inside a quoted attribute."""
    return html.escape("" if value is None else str(value), quote=True)


def reference(path: str) -> str:
    """A relative path as an escaped URL; `:` is quoted as well, so that it cannot act as a scheme."""
    return text(urllib.parse.quote(path, safe="/"))


def estimate(value: Any) -> str:
    """A number, or a dict of value, low and high, as `0.712 [0.654, 0.770]`; `–` for an unknown one."""
    if not isinstance(value, Mapping):
        return text(format_number(value))
    shown = text(format_number(value.get("value")))
    if value.get("low") is None or value.get("high") is None:
        return shown
    return f"{shown} <small>[{text(format_number(value['low']))}, {text(format_number(value['high']))}]</small>"


def _cell(value: Any) -> str:
    number = value.get("value") if isinstance(value, Mapping) else value
    if value is None or isinstance(value, Mapping) or isinstance(value, int | float):
        known = isinstance(number, int | float) and not math.isnan(number)
        return f'<td class="n" data-key="{float(number) if known else ""}">{estimate(value)}</td>'
    return f'<td data-key="{text(value)}">{text(value)}</td>'


def table(
    columns: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    caption: str = "",
    chosen: object = None,
) -> str:
    """A sortable table.

    Args:
        columns: key in the rows -> heading.
        rows: values are texts, numbers, None (shown as `–`) or estimates (dicts of value, low, high).
        caption: text above the table.
        chosen: the row whose first column has this value is set in bold.
    """
    first = next(iter(columns))
    numeric = {
        key for key in columns if rows and all(row.get(key) is None or not isinstance(row[key], str) for row in rows)
    }
    heads = "".join(
        f'<th scope="col"{" class=n" if key in numeric else ""}>{text(name)}</th>' for key, name in columns.items()
    )
    lines = []
    for row in rows:
        mark = ' class="chosen"' if chosen is not None and row.get(first) == chosen else ""
        lines.append(f"<tr{mark}>{''.join(_cell(row.get(key)) for key in columns)}</tr>")
    body = "\n".join(lines)
    head = f"<caption>{text(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table class="sortable">{head}<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n"
    )


def pairs(values: Mapping[str, Any]) -> str:
    """A two-column table of names and values; nested dicts become dotted names."""
    lines = "".join(
        f"<tr><td>{text(name)}</td><td>{text(_plain(value))}</td></tr>\n" for name, value in flatten(values)
    )
    return f'<div class="scroll"><table class="pairs"><tbody>\n{lines}</tbody></table></div>\n'


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) for every leaf of nested dicts, in order."""
    leaves: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            leaves += flatten(value, f"{prefix}{name}.")
        else:
            leaves.append((f"{prefix}{name}", value))
    return leaves


def document(title: str, body: str) -> str:
    """The whole page around `body` (already safe HTML)."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )

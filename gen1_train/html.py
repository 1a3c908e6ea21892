"""The building blocks of all generated pages: HTML elements with automatic escaping, tables, numbers, style.

A child that is not `Html` is text and is escaped when it enters an element: no name, caption or reason becomes markup.
"""

import math
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from html import escape

UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
VOID = ("br", "img", "meta", "rect", "line", "path")  # elements without an end tag


class Html(str):
    """Complete and safe markup."""


class Number(str):
    """A number as it is displayed, with its unit; table columns align it to the right."""


Child = str | int | None  # None is left out
NOTHING = Number("—")


def join(*children: Child) -> Html:
    """Concatenates children; those that are not Html are escaped."""
    return Html("".join(child if isinstance(child, Html) else text(child) for child in children if child is not None))


def text(value: object) -> Html:
    """Escapes text, and replaces each character that a page cannot contain by a replacement character."""
    return Html(escape(UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(value)), quote=True))


def element(name: str, /, *children: Child, **attributes: str | float) -> Html:
    """One element; a trailing underscore in an attribute's name is dropped (class_), others become hyphens."""
    pairs = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{pairs}/>")
    return Html(f"<{name}{pairs}>{join(*children)}</{name}>")


def section(title: str, *children: Child) -> Html:
    return element("section", element("h2", title), *children)


def note(*children: Child) -> Html:
    """A paragraph in small print."""
    return element("p", *children, class_="note")


def warning(*children: Child) -> Html:
    """A highlighted paragraph."""
    return element("p", *children, class_="warning")


def tiles(facts: Mapping[str, str]) -> Html:
    """The headline numbers of a page; `facts` maps each label to its value."""
    shown = [element("div", element("b", value), element("span", label)) for label, value in facts.items()]
    return element("div", *shown, class_="facts")


def table(headings: Sequence[str], rows: Iterable[Sequence[Child]]) -> Html:
    """A table; numbers are aligned to the right, as is the heading of a column whose first cell is a number."""
    body = [list(row) for row in rows]
    first = body[0] if body else [None] * len(headings)
    head = [_cell("th", heading, _is_number(below)) for heading, below in zip(headings, first, strict=True)]
    lines = [element("tr", *(_cell("td", cell, _is_number(cell)) for cell in row)) for row in body]
    whole = element("table", element("thead", element("tr", *head)), element("tbody", *lines))
    return element("div", whole, class_="wide")


def _is_number(cell: Child) -> bool:
    return isinstance(cell, int | Number)


def _cell(name: str, content: Child, right: bool) -> Html:
    shown = f"{content:,}" if isinstance(content, int) else content
    return element(name, shown, class_="number") if right else element(name, shown)


def bar(share: float) -> Html:
    """A bar that fills `share` (0..1) of its cell; a share above 0 is always visible."""
    width = f"{max(share * 100, 0.5 if share else 0):.1f}%"
    return element("span", element("span", style=f"width:{width}"), class_="bar")


def number(value: float) -> Number:
    """Formats a number with three significant digits, or with thousands separators: 0.0123, 4.56, 78.9, 1,234."""
    if value == 0 or abs(value) >= 100:
        return Number(f"{value:,.0f}")
    return Number(f"{value:.{2 - math.floor(math.log10(abs(value)))}f}")


def short(count: int) -> str:
    """Formats a count for an axis: 950, 12k, 3.5M."""
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{letter}"
    return str(count)


def size(count: int) -> Number:
    """Formats bytes in powers of 1000: 512 B, 1.23 MB."""
    for exponent, unit in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**exponent:
            return Number(f"{number(count / 10**exponent)} {unit}")
    return Number(f"{count} B")


def duration(seconds: float) -> Number:
    """Formats seconds in a suitable unit: 8.50 s, 12.0 min, 345 h."""
    if seconds < 120:
        return Number(f"{number(seconds)} s")
    return Number(f"{number(seconds / 60)} min" if seconds < 7200 else f"{number(seconds / 3600)} h")


def percent(part: float, whole: float) -> Number:
    return Number(f"{100 * part / whole:.1f} %") if whole else NOTHING


def plural(count: int, name: str) -> str:
    """Formats a count with its noun: 1 clip, 2,345 clips."""
    return f"{count:,} {name}" if count == 1 else f"{count:,} {name}s"


def shorten(value: object, longest: int = 300) -> str:
    """Text from outside, cut if it is too long for a page."""
    whole = str(value)
    return whole if len(whole) <= longest else f"{whole[:longest]}…"


def page(title: str, *children: Child, style: str = "", script: str = "", videos: bool = False) -> bytes:
    """A whole page in UTF-8; its own rules in `style` follow the common STYLE.

    Its content security policy allows no script but `script` and loads nothing, except, with `videos`, the videos
    next to the page.
    """
    policy = ["default-src 'none'", "img-src data:", "style-src 'unsafe-inline'"]
    if videos:
        policy.append("media-src 'self' file:")
    if script:
        policy.append(f"script-src 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content="; ".join(policy)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(STYLE + style)),
    )
    ending = element("script", Html(script)) if script else None
    body = element("body", element("main", *children), ending)
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n".encode()


STYLE = """
:root { --ground: #fff; --ink: #1c1e21; --quiet: #666b73; --hair: #e1e4e8; --fill: #3b6ea8; --soft: #f5f6f8;
  --alarm: #b3500a; --alarm-soft: #fdf3ea; }
@media (prefers-color-scheme: dark) { :root { --ground: #16181b; --ink: #e4e6e9; --quiet: #9aa0a8; --hair: #30343a;
  --fill: #6f9fd6; --soft: #1f2226; --alarm: #f0a35e; --alarm-soft: #2c2219; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .7rem; padding-top: .7rem; border-top: 1px solid var(--hair); }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
p { margin: .4rem 0; max-width: 48rem; }
code, pre { font: .88em/1.45 ui-monospace, monospace; overflow-wrap: anywhere; }
.note, figcaption { color: var(--quiet); font-size: .87rem; }
.warning { border-left: 3px solid var(--alarm); background: var(--alarm-soft); padding: .45rem .8rem; max-width: none;
  margin-top: .8rem; }
.warning span { display: block; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr)); gap: 1rem; margin: 1.2rem 0; }
.facts div { border-top: 2px solid var(--fill); padding-top: .35rem; }
.facts b { display: block; font-size: 1.3rem; line-height: 1.3; font-weight: 600; }
.facts span { color: var(--quiet); font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--hair); }
th { color: var(--quiet); font-weight: 500; white-space: nowrap; }
td { unicode-bidi: isolate; overflow-wrap: break-word; }
td:last-child, th:last-child { padding-right: 0; }
.number { text-align: right; white-space: nowrap; }
td:first-child { white-space: nowrap; }
.path { white-space: normal; overflow-wrap: anywhere; display: inline-block; min-width: 9rem; max-width: 32rem; }
.bar { display: block; min-width: 6.5rem; max-width: 24rem; height: 5px; margin: .2rem 0 .15rem;
  background: var(--soft); }
.bar span { display: block; height: 100%; background: var(--fill); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1.2rem; }
figure { margin: 0; min-width: 0; }
svg { width: 100%; max-width: 30rem; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--quiet); }
.grid { stroke: var(--hair); }
.column { fill: var(--fill); }
summary { cursor: pointer; margin: .6rem 0; }
pre { background: var(--soft); padding: .8rem 1rem; margin: 0; white-space: pre-wrap; }
@media (max-width: 40rem) { th, td { padding-right: .55rem; } .stack thead { display: none; }
  .stack tr { display: block; padding: .4rem 0; border-bottom: 1px solid var(--hair); }
  .stack td { display: block; border: 0; padding: 0; text-align: left; }
  .stack td + td { color: var(--quiet); font-size: .87rem; } }
@media print { :root { --ground: #fff; --ink: #000; --quiet: #444; --hair: #ccc; --fill: #3b6ea8; --soft: #f2f2f2;
    --alarm: #8a3d06; --alarm-soft: #fff; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } h2, h3 { break-after: avoid; }
  figure, tr, .facts, .warning { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

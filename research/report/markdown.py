"""How does a value become Markdown: texts in which nothing acts as markup, numbers with intervals, settings?"""

from collections.abc import Mapping, Sequence
from typing import Any


def text(value: Any) -> str:
    """One line in which nothing acts as markup."""
    plain = " ".join(str(value).split())
    return "".join(f"\\{mark}" if mark in "|*_`<>[]#\\" else mark for mark in plain)


def row(cells: Sequence[str]) -> str:
    """A line of a table; the cells are Markdown already."""
    return "| " + " | ".join(cells) + " |"


def names(values: Sequence[Any]) -> str:
    """Names with commas between them."""
    return ", ".join(map(text, values))


def settings(values: Mapping[str, Any]) -> str:
    """ "rotation 180, scale (0.85, 1.25), dihedral"."""
    found = []
    for key, value in values.items():
        shown = f" ({settings(value)})" if isinstance(value, Mapping) else f" {_value(value)}"
        found.append(text(key.replace("_", " ")) + ("" if value is True else shown))
    return ", ".join(found)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_value, value))})"
    return f"{value:g}" if isinstance(value, float) else text(value)


def number(value: float | None) -> str:
    """Three decimals."""
    return "unknown" if value is None else f"{value:.3f}"


def estimate(value: Any) -> str:
    """ "0.810 [0.781, 0.838]" of {"value", "low", "high"} or a number; a dash for None."""
    if value is None:
        return "–"
    if not isinstance(value, Mapping):
        return number(value)
    interval = f" [{value['low']:.3f}, {value['high']:.3f}]" if value.get("low") is not None else ""
    return number(value["value"]) + interval


def size(count: float) -> str:
    """Bytes in kB or MB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def large(count: float) -> str:
    """ "1.77 million"."""
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:,.0f}"

"""Bar charts as SVG, by hand: a few rectangles and words need no library."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, indent, tostring

_WIDTH, _LABEL_WIDTH, _VALUE_WIDTH = 760, 250, 90
_BAR, _GAP, _TOP, _BOTTOM = 20, 8, 44, 14
_COLOURS = ("#8a8f98", "#1f6feb")
"""Of what is compared with, and of the product."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar. `ours` marks the product's own figures."""

    label: str
    value: float
    ours: bool = True


def bars(title: str, unit: str, of: Sequence[Bar]) -> str:
    """Return a chart of horizontal bars, each with its value."""
    height = _TOP + len(of) * (_BAR + _GAP) + _BOTTOM
    most = max((each.value for each in of), default=0) or 1
    scale = (_WIDTH - _LABEL_WIDTH - _VALUE_WIDTH) / most
    drawing = Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {_WIDTH} {height}",
            "width": str(_WIDTH),
            "height": str(height),
            "role": "img",
            "font-family": "sans-serif",
            "font-size": "13",
            "fill": "#1b1f24",
        },
    )
    SubElement(drawing, "title").text = title
    _rectangle(drawing, left=0, top=0, width=_WIDTH, height=height, fill="#ffffff")
    _text(drawing, f"{title} ({unit})", left=12, baseline=24).set("font-weight", "bold")
    for number, each in enumerate(of):
        top = _TOP + number * (_BAR + _GAP)
        width = max(1.0, each.value * scale)
        baseline = top + _BAR - 5
        label = _text(drawing, each.label, left=_LABEL_WIDTH - 8, baseline=baseline)
        label.set("text-anchor", "end")
        _rectangle(
            drawing, left=_LABEL_WIDTH, top=top, width=width, height=_BAR, fill=_COLOURS[each.ours]
        )
        value = number_text(each.value)
        _text(drawing, value, left=_LABEL_WIDTH + width + 6, baseline=baseline)
    indent(drawing)
    return tostring(drawing, encoding="unicode") + "\n"


def _text(drawing: Element, words: str, *, left: float, baseline: float) -> Element:
    text = SubElement(drawing, "text", {"x": f"{left:g}", "y": f"{baseline:g}"})
    text.text = words
    return text


def _rectangle(
    drawing: Element, *, left: float, top: float, width: float, height: float, fill: str
) -> None:
    given = {"x": left, "y": top, "width": round(width, 1), "height": height}
    SubElement(drawing, "rect", {name: f"{value:g}" for name, value in given.items()}, fill=fill)


def number_text(value: float) -> str:
    """Write a figure with as many digits as it is worth."""
    if value >= 100:  # noqa: PLR2004
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"  # noqa: PLR2004

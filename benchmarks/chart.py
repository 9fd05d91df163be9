"""The chart in the README: horizontal bars, as an SVG for light and dark backgrounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple
from xml.sax.saxutils import escape

from benchmarks.peers import EagerAsync
from benchmarks.report import cost_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WIDTH: Final = 700
_MARGIN: Final = 16
_BARS_FROM: Final = 220  # to the left of it, names
_BARS_TO: Final = 610  # to the right of it, room for values
_LONGEST: Final = 4  # a bar is cut off if it would be so many times as long as the second longest
_ROW: Final = 24
_BAR: Final = 14
_TITLE: Final = 44
_HEADING: Final = 40
_NOTE: Final = 17

_STYLE: Final = """
  text { font: 13px system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif; fill: #1f2328; }
  .title { font-size: 16px; font-weight: 600; }
  .heading { font-weight: 600; }
  .note { font-size: 12px; fill: #59636e; }
  .ours { fill: #0969da; }
  .theirs { fill: #8c959f; }
  .own { font-weight: 600; }
  .cut { stroke: #ffffff; stroke-width: 3; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .note { fill: #9198a1; }
    .ours { fill: #4493f8; }
    .theirs { fill: #656d76; }
    .cut { stroke: #0d1117; }
  }
"""


class Panel(NamedTuple):
    """Bars of one workload, one for each peer."""

    heading: str
    unit: str
    costs: Mapping[str, float]


def draw(title: str, panels: Sequence[Panel], notes: Sequence[str]) -> str:
    """Draw panels one below the other, with the least cost on top of each."""
    parts = [_text(_MARGIN, 28, title, "title")]
    top = _TITLE
    for panel in panels:
        parts += _panel(panel, top)
        top += _HEADING + _ROW * len(panel.costs)
    top += 24
    for note in notes:
        parts.append(_text(_MARGIN, top, note, "note"))
        top += _NOTE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" '
        f'width="{_WIDTH}" height="{top}" role="img">\n'
        f"<title>{escape(title)}</title>\n<desc>{escape(_in_words(panels))}</desc>\n"
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(panel: Panel, top: int) -> list[str]:
    parts = [_text(_MARGIN, top + 26, panel.heading, "heading")]
    costs = sorted(panel.costs.values())
    longest = min(costs[-1], _LONGEST * costs[-2]) if len(costs) > 1 else costs[-1]
    y = top + _HEADING
    for name, cost in sorted(panel.costs.items(), key=lambda item: item[1]):
        is_ours = name == EagerAsync.name
        length = round((_BARS_TO - _BARS_FROM) * min(cost, longest) / longest, 1)
        baseline = y + _BAR - 2.5
        parts += [
            _text(_BARS_FROM - 10, baseline, name, "own" if is_ours else "", 'text-anchor="end"'),
            _bar(y, max(length, 1), "ours" if is_ours else "theirs"),
            _text(_BARS_FROM + length + 8, baseline, cost_text(cost, panel.unit), "own" if is_ours else ""),
        ]
        if cost > longest:
            x = _BARS_TO - 30
            parts.append(f'<path class="cut" d="M{x} {y + _BAR + 2}l8 -{_BAR + 4}"/>')
        y += _ROW
    return parts


def _bar(y: int, length: float, css_class: str) -> str:
    return f'<rect class="{css_class}" x="{_BARS_FROM}" y="{y}" width="{length}" height="{_BAR}" rx="2"/>'


def _in_words(panels: Sequence[Panel]) -> str:
    """What the chart says, for those who can't see it."""
    return " ".join(
        f"{panel.heading}: "
        + ", ".join(
            f"{name} {cost_text(cost, panel.unit)}"
            for name, cost in sorted(panel.costs.items(), key=lambda item: item[1])
        )
        + "."
        for panel in panels
    )


def _text(x: float, y: float, text: str, css_class: str = "", attributes: str = "") -> str:
    classes = f' class="{css_class}"' if css_class else ""
    return f'<text x="{x:g}" y="{y:g}"{classes}{" " if attributes else ""}{attributes}>{escape(text)}</text>'

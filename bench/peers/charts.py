"""Bar charts as SVG, by hand: no library, no fonts, no scripts; readable on light and on dark pages.

One chart is one question. A bar is a subject's median, the thin line on it the lowest and the highest round. Linear
from zero as long as the shortest bar can be seen, logarithmic beyond, which the chart then says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from bench.peers.results import HIGHER, Figure

WIDTH, LABELS, FIGURES, ROW, BAR, TOP = 760, 215, 120, 26, 16, 58
LINEAR_MAX = 100.0  # the longest bar by the shortest, beyond which the scale is logarithmic
COLOURS = {"product": "#1f6feb", "peer": "#9a6700", "floor": "#8c959f"}
WORDS = {"product": "iii_zmq", "peer": "peers", "floor": "bare sockets (floor)"}
INK, PAPER, FAINT = "#1f2328", "#ffffff", "#57606a"


def bars(title: str, figures: Sequence[Figure]) -> str:
    """The chart of one metric in one case and mode, the best first."""
    better = figures[0].better
    ordered = sorted(figures, key=lambda each: each.spread.median, reverse=better == HIGHER)
    scale, note = _scale([each.spread.low for each in ordered], [each.spread.high for each in ordered])
    height = TOP + ROW * len(ordered) + 34
    unit, direction = figures[0].unit, "more is better" if better == HIGHER else "less is better"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' font-family="sans-serif" font-size="13" role="img" aria-label="{escape(title)}">',
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="{PAPER}"/>',
        f'<text x="16" y="24" font-size="15" font-weight="bold" fill="{INK}">{escape(title)}</text>',
        f'<text x="16" y="43" fill="{FAINT}">{escape(f"{unit}, {direction}{note}")}</text>',
    ]
    for number, each in enumerate(ordered):
        lines += _bar(each, TOP + ROW * number, scale)
    lines += _legend(height - 14)
    return "\n".join([*lines, "</svg>", ""])


class _Scale:
    """From a value to pixels."""

    def __init__(self, low: float, high: float, is_log: bool) -> None:
        self._low, self._is_log = low, is_log
        room = WIDTH - LABELS - FIGURES
        self._per = room / (math.log10(high / low) if is_log else high)

    def __call__(self, value: float) -> float:
        return (math.log10(max(value, self._low) / self._low) if self._is_log else value) * self._per


def _scale(lows: list[float], highs: list[float]) -> tuple[_Scale, str]:
    low, high = max(min(lows), 1e-9), max(highs)
    if high / low <= LINEAR_MAX:
        return _Scale(low, high, False), ""
    begin = 10 ** (math.floor(math.log10(low)) - 0.3)  # so that the shortest bar can be seen
    return _Scale(begin, high, True), ", logarithmic"


def _bar(figure: Figure, y: float, scale: _Scale) -> list[str]:
    spread, base = figure.spread, f"{y + BAR / 2 + 4.5:.1f}"
    low, high, end = (LABELS + scale(value) for value in (spread.low, spread.high, spread.median))
    text = f'fill="{INK}"' + (' font-weight="bold"' if figure.kind == "product" else "")
    bar = f'width="{max(1.0, end - LABELS):.1f}" height="{BAR}" rx="2" fill="{COLOURS[figure.kind]}"'
    return [
        f'<text x="{LABELS - 8}" y="{base}" text-anchor="end" {text}>{escape(figure.subject)}</text>',
        f'<rect x="{LABELS}" y="{y}" {bar}/>',
        f'<path d="M{low:.1f} {y + BAR / 2}H{high:.1f}" stroke="{INK}" stroke-width="1.2"/>',
        f'<text x="{max(end, high) + 6:.1f}" y="{base}" {text}>{number(spread.median)}</text>',
    ]


def _legend(y: float) -> list[str]:
    lines, x = [], float(LABELS)
    for kind, word in WORDS.items():
        lines.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{COLOURS[kind]}"/>')
        lines.append(f'<text x="{x + 15}" y="{y}" font-size="12" fill="{FAINT}">{word}</text>')
        x += 40 + 7.5 * len(word)
    return lines


def number(value: float) -> str:
    """Three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"

"""The table's ratios as an SVG: a bar for each, a whisker for its quartiles, a mark for its budget."""

from __future__ import annotations

import html
import math

from .lines import Line

ROW, TEXT, WIDTH, RIGHT = 30, 520, 420, 110
DECADES = (1e-3, 1e2)
KEPT, OVER, PLAIN = "#2a7f62", "#c0392b", "#5b7fa6"


def svg(lines: list[Line]) -> str:
    """Left of 1x ckptd takes less than the peer, right of it more; each grid line is a factor of ten."""
    drawn = [line for line in lines if line.ratio is not None]
    height = ROW * len(drawn) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {TEXT + WIDTH + RIGHT} {height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="100%" height="{height}" fill="white"/>',
        _text(
            TEXT + WIDTH / 2,
            14,
            "ckptd by its peer, less is better; the thick line is the peer, a red mark the budget",
            "middle",
        ),
    ]
    for power in range(round(math.log10(DECADES[0])), round(math.log10(DECADES[1])) + 1):
        x = _x(10.0**power)
        width = 2 if power == 0 else 0.5
        parts.append(f'<path d="M{x:.1f} 36V{height - 8}" stroke="#999" stroke-width="{width}"/>')
        parts.append(_text(x, 30, f"{10.0**power:g}x", "middle"))
    for number, line in enumerate(drawn):
        parts += _row(line, 40 + ROW * number)
    return "\n".join([*parts, "</svg>\n"])


def _row(line: Line, y: int) -> list[str]:
    assert line.ratio is not None
    one, median, low, high = (_x(x) for x in (1.0, line.ratio.median, line.ratio.low, line.ratio.high))
    colour = {None: PLAIN, True: KEPT, False: OVER}[line.kept]
    middle = y + ROW / 2 - 2
    left, width = min(one, median), max(abs(one - median), 1.0)
    parts = [
        _text(TEXT - 8, y + 11, line.what, "end"),
        _text(TEXT - 8, y + 23, f"against {line.peer}", "end", "#777"),
        f'<rect x="{left:.1f}" y="{y + 6}" width="{width:.1f}" height="14" fill="{colour}"/>',
        f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8" stroke="black"/>',
        _text(TEXT + WIDTH + 6, y + 17, f"{line.ratio.median:.3g}x"),
    ]
    if line.at_most is not None:
        x = _x(line.at_most)
        parts.append(f'<path d="M{x:.1f} {y + 2}v22" stroke="{OVER}" stroke-width="2"/>')
    return parts


def _x(ratio: float) -> float:
    low, high = (math.log10(end) for end in DECADES)
    share = (math.log10(max(ratio, DECADES[0])) - low) / (high - low)
    return TEXT + WIDTH * min(share, 1.0)


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "black") -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" fill="{colour}">{html.escape(text)}</text>'

"""Line charts as inline SVG: small, deterministic, themed by the page's CSS variables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup

WIDTH, HEIGHT = 400, 260
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 38
COLOURS = 8


@dataclass(frozen=True)
class Series:
    """A line: ``x`` and ``y`` float64 of equal length; ``style`` is ours, paper or faint."""

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: int
    style: str = "ours"


def thin(x: np.ndarray, y: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbours so that at most ``points`` remain; NaN pairs are dropped."""
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    if len(x) <= points:
        return x, y
    edges = np.linspace(0, len(x), points + 1).astype(int)[:-1]
    counts = np.diff(np.append(edges, len(x)))
    return np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round values within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _label(value: float, step: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k"
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step else 0
    return f"{value:.{digits + (1 if round(step * 10**digits, 6) % 1 else 0)}f}"


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    of: str = "",
) -> Markup:
    """Draw series into one panel with axes, a faint grid and a tooltip for each line.

    ``of``: what it is of, for a reader who hears the page.

    Without ``y_range`` the axis spans the data, cut above its 98th percentile so that the first
    updates do not flatten the rest.
    """
    drawn = [s for s in series if len(s.x)]
    if not drawn:
        return Markup('<p class="absent">no curve yet</p>')
    xs, ys = np.concatenate([s.x for s in drawn]), np.concatenate([s.y for s in drawn])
    x0, x1 = min(0.0, float(xs.min())), float(xs.max())
    if y_range is None:
        y0, y1 = float(ys.min()), float(np.percentile(ys, 98))
        margin = 0.05 * (y1 - y0) or 0.05 * abs(y1) or 1.0
        y_range = (y0 - margin, y1 + margin)
    y0, y1 = y_range
    x1 = x1 if x1 > x0 else x0 + 1
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def across(x: np.ndarray) -> np.ndarray:
        return LEFT + (x - x0) / (x1 - x0) * plot_width

    def down(y: np.ndarray) -> np.ndarray:
        return TOP + (1 - (np.clip(y, y0, y1) - y0) / (y1 - y0)) * plot_height

    named = f"{of}: {y_label} against {x_label}" if of else f"{y_label} against {x_label}"
    heard = escape(f"{named}: {'; '.join(s.name for s in drawn)}")
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{heard}">']
    for values, vertical in ((ticks(x0, x1), True), (ticks(y0, y1), False)):
        step = values[1] - values[0] if len(values) > 1 else 1.0
        for value in values:
            at = float(across(np.array(value)) if vertical else down(np.array(value)))
            text = _label(value, step)
            if vertical:
                parts.append(
                    f'<path class="grid" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
                    f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 14}" '
                    f'text-anchor="middle">{text}</text>'
                )
            else:
                parts.append(
                    f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>'
                    f'<text x="{LEFT - 5}" y="{at + 3.5:.1f}" text-anchor="end">{text}</text>'
                )
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    middle = TOP + plot_height / 2
    parts.append(
        f'<text class="label" x="{LEFT + plot_width / 2:.0f}" y="{HEIGHT - 6}" '
        f'text-anchor="middle">{escape(x_label)}</text>'
        f'<text class="label" transform="translate(11 {middle:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    for s in drawn:
        inside = (s.x >= x0) & (s.x <= x1)
        points = " ".join(
            f"{x:.1f},{y:.1f}" for x, y in zip(across(s.x[inside]), down(s.y[inside]), strict=True)
        )
        dot = ""
        if inside.sum() == 1:
            x, y = across(s.x[inside])[0], down(s.y[inside])[0]
            dot = f'<circle class="c{s.colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'
        parts.append(
            f"<g><title>{escape(s.name)}</title>"
            f'<polyline class="line {s.style} c{s.colour}" points="{points}"/>{dot}</g>'
        )
    parts.append("</svg>")
    return Markup("".join(parts))

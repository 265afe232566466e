"""Series as an SVG: one small panel each, no library."""

from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, GAP, LEFT = 640, 120, 36, 70


def plot(xs: Sequence[float], series: Mapping[str, Sequence[float]]) -> str:
    """Draw one panel for each series, over the same `xs`, each scaled from 0 to its largest value."""
    panels = [_panel(at, name, xs, ys) for at, (name, ys) in enumerate(series.items())]
    height = (HEIGHT + GAP) * len(panels) + GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + LEFT + 20} {height}" font-family="sans-serif">'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *panels, "</svg>", ""])


def _panel(at: int, name: str, xs: Sequence[float], ys: Sequence[float]) -> str:
    top = GAP + at * (HEIGHT + GAP)
    most, last = max([*ys, 1e-9]), max([*xs, 1e-9])
    points = " ".join(
        f"{LEFT + WIDTH * x / last:.1f},{top + HEIGHT * (1 - y / most):.1f}" for x, y in zip(xs, ys, strict=True)
    )
    return "\n".join(
        [
            f'<text x="{LEFT}" y="{top - 6}" font-size="13">{name}</text>',
            f'<text x="{LEFT - 6}" y="{top + 10}" font-size="11" text-anchor="end">{most:.1f}</text>',
            f'<text x="{LEFT - 6}" y="{top + HEIGHT}" font-size="11" text-anchor="end">0</text>',
            f'<text x="{LEFT + WIDTH}" y="{top + HEIGHT + 14}" font-size="11" text-anchor="end">{last:,.0f}</text>',
            f'<path d="M{LEFT} {top}v{HEIGHT}h{WIDTH}" fill="none" stroke="#999"/>',
            f'<polyline points="{points}" fill="none" stroke="#06c" stroke-width="1.5"/>',
        ]
    )

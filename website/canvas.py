"""SVG drawings, colored by the page's style sheet.

The y axis points upwards from the bottom of the drawing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

BOX_WIDTH, BOX_HEIGHT, RADIUS = 112, 22, 10
Point = tuple[float, float]


@dataclass
class Canvas:
    """Lines, boxes and texts; boxes are drawn over lines, and texts over both."""

    lines: list[str] = field(default_factory=list)
    boxes: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def line(
        self,
        *points: Point,
        arrow: bool = False,
        dashed: bool = False,
        kind: str = "branch",
    ) -> None:
        """Draws a line through points, with an arrowhead at its end if `arrow`."""
        path = " ".join(f"{x:g},{-y:g}" for x, y in points)
        self.lines.append(f'<polyline class="line {kind}{" dashed" * dashed}" points="{path}"/>')
        if arrow:
            (x0, y0), (x, y) = points[-2:]
            dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
            back, side = (x - 6 * dx, y - 6 * dy), (3.5 * dy, 3.5 * dx)
            corners = [(x, y), (back[0] + side[0], back[1] + side[1])]
            corners.append((back[0] - side[0], back[1] - side[1]))
            head = " ".join(f"{cx:g},{-cy:g}" for cx, cy in corners)
            self.boxes.append(f'<polygon class="head {kind}" points="{head}"/>')

    def box(self, x: float, y: float, label: str, kind: str, width: float = BOX_WIDTH) -> None:
        """Draws a box with a label, centered at a point."""
        self._rect(x, y - BOX_HEIGHT / 2, width, BOX_HEIGHT, kind)
        self.text(x, y, label, "label")

    def layer(
        self, x: float, y: float, height: float, label: str, notes: list[str], width: float
    ) -> None:
        """Draws a layer with notes below its name; y is its lower edge."""
        self._rect(x, y, width, height, label.lower())
        self.text(x, y + height - 15, label, "title")
        for i, note in enumerate(notes):
            self.text(x, y + height - 31 - 13 * i, note, "label")

    def circle(self, x: float, y: float, label: str, kind: str = "sum") -> None:
        """Draws a circle with a symbol: a sum, or the letter of a factor."""
        self.boxes.append(f'<circle class="box {kind}" cx="{x:g}" cy="{-y:g}" r="{RADIUS}"/>')
        self.text(x, y, label, "label symbol")

    def text(self, x: float, y: float, label: str, kind: str) -> None:
        """Draws a label, centered at a point."""
        self.texts.append(f'<text class="{kind}" x="{x:g}" y="{-y:g}">{escape(label)}</text>')

    def svg(self, width: float, height: float) -> str:
        """Returns the drawing as an SVG element."""
        return (
            f'<svg class="placement" viewBox="0 {-height:g} {width:g} {height:g}" '
            f'width="{width:g}" role="img" aria-label="drawing of the block">'
            f"{''.join([*self.lines, *self.boxes, *self.texts])}</svg>"
        )

    def _rect(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        at = f'x="{x - width / 2:g}" y="{-y - height:g}" width="{width:g}" height="{height:g}"'
        self.boxes.append(f'<rect class="box {kind}" {at} rx="6"/>')

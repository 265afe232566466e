"""Pictures of one to four things on a ground, and plain ones of one colour: what is on them, and how they are drawn.

What a picture shows is decided without pixels; it can be drawn in any size. Knows no question and no model.
"""

import base64
import io
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from PIL import Image, ImageDraw

from training.draw import Draw
from training.sample import is_held_out

Rgb = tuple[int, int, int]

COLORS: Mapping[str, Sequence[Rgb]] = MappingProxyType(
    {
        "red": ((255, 0, 0), (220, 30, 30), (200, 20, 40)),
        "orange": ((255, 165, 0), (245, 130, 20)),
        "yellow": ((255, 255, 0), (250, 220, 30)),
        "green": ((0, 128, 0), (0, 255, 0), (40, 160, 60)),
        "blue": ((0, 0, 255), (40, 80, 220), (30, 130, 240)),
        "purple": ((128, 0, 128), (140, 60, 180), (160, 32, 240)),
        "pink": ((255, 192, 203), (255, 105, 180), (250, 130, 190)),
        "black": ((0, 0, 0), (25, 25, 25)),
    }
)
"""What each colour may look like, before it is varied a little."""
SHAPES = ("circle", "square", "triangle", "star", "cross")
CELLS = (
    *("top left", "top", "top right"),
    *("left", "middle", "right"),
    *("bottom left", "bottom", "bottom right"),
)
"""Thirds of the picture, in reading order."""
_GROUNDS: Sequence[Rgb] = (
    *((255, 255, 255), (255, 255, 255), (235, 235, 235), (200, 200, 200), (128, 128, 128), (60, 60, 60)),
    *((250, 240, 220), (210, 225, 240), (215, 235, 215), (20, 25, 50), (110, 85, 65)),
)
_JITTER = 12
_CONTRAST = 110.0
"""Distance between a thing's colour and its ground's, of 441 at most."""
_SMALLEST, _LARGEST = 0.75, 1.0
"""Of a thing, in thirds of the picture's shorter side."""
_LARGEST_ALONE = 2.4


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One shape. `size` and the offsets from the cell's middle are in thirds of the picture; `turn` is in degrees."""

    color: str
    shape: str
    cell: str
    rgb: Rgb
    size: float
    right: float
    down: float
    turn: float

    @property
    def name(self) -> str:
        """As in `red circle`."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Things in reading order on a ground that goes over from `above` to `below`; no things make it all `plain` colour.

    `speckle` is how far, up to 255, a grain of the ground may be off.
    """

    things: tuple[Thing, ...]
    above: Rgb
    below: Rgb
    speckle: int = 0
    plain: str = ""

    @property
    def key(self) -> str:
        """What it shows: two pictures with one key are one case, however they are drawn."""
        if not self.things:
            return f"plain {self.above}"
        return ", ".join(f"{thing.name} {thing.cell}" for thing in self.things)

    @property
    def is_held_out(self) -> bool:
        """Whether training must never see what it shows."""
        return is_held_out(self.key)


def compose(source: Draw, *, held_out: bool, things: int | None = None) -> Picture:
    """Draw a picture on the asked side of the split, of `things` things; by default 1 to 4, now and then none."""
    while True:
        if things is None and source.chance(0.06):
            picture = _plain(source)
        else:
            picture = _scene(source, source.pick((1, 1, 2, 2, 3, 3, 4)) if things is None else things)
        if picture.is_held_out == held_out:
            return picture


def _plain(source: Draw) -> Picture:
    color = source.pick(tuple(COLORS))
    rgb = _varied(source, source.pick(COLORS[color]))
    return Picture(things=(), above=rgb, below=rgb, plain=color)


def _scene(source: Draw, n: int) -> Picture:
    above = _varied(source, source.pick(_GROUNDS))
    below = _varied(source, source.pick(_GROUNDS)) if source.chance(0.2) else above
    places = sorted(source.some(range(len(CELLS)), n))
    return Picture(
        things=tuple(_thing(source, CELLS[place], alone=n == 1, grounds=(above, below)) for place in places),
        above=above,
        below=below,
        speckle=source.between(4, 24) if source.chance(0.25) else 0,
    )


def _thing(source: Draw, cell: str, *, alone: bool, grounds: tuple[Rgb, Rgb]) -> Thing:
    while True:
        color = source.pick(tuple(COLORS))
        rgb = _varied(source, source.pick(COLORS[color]))
        if min(math.dist(rgb, ground) for ground in grounds) >= _CONTRAST:
            break
    largest = _LARGEST_ALONE if alone and cell == "middle" else _LARGEST
    return Thing(
        color=color,
        shape=source.pick(SHAPES),
        cell=cell,
        rgb=rgb,
        size=_between(source, _SMALLEST, largest),
        right=_between(source, -0.12, 0.12),
        down=_between(source, -0.12, 0.12),
        turn=_between(source, -10, 10),
    )


def _varied(source: Draw, rgb: Rgb) -> Rgb:
    red, green, blue = (min(255, max(0, value + source.between(-_JITTER, _JITTER))) for value in rgb)
    return red, green, blue


def _between(source: Draw, least: float, most: float) -> float:
    return least + (most - least) * source.below(1000) / 999


def size(source: Draw) -> tuple[int, int]:
    """Return width and height in pixels: as often square as not, never twice as long as wide."""
    side = source.between(96, 320)
    if source.chance(0.5):
        return side, side
    other = side * source.between(100, 175) // 100
    return (side, other) if source.chance(0.5) else (other, side)


def drawn(picture: Picture, width: int, height: int) -> Image.Image:
    """Paint the picture in pixels, RGB."""
    image = Image.new("RGB", (width, height), picture.above)
    if picture.below != picture.above:
        slope = Image.linear_gradient("L").resize((width, height))
        image = Image.composite(Image.new("RGB", (width, height), picture.below), image, slope)
    if picture.speckle:
        _grain(image, picture)
    pen = ImageDraw.Draw(image)
    for thing in picture.things:
        _draw(pen, thing, width / 3, height / 3)
    return image


def _grain(image: Image.Image, picture: Picture) -> None:
    """Add speckles that depend on the picture alone."""
    source = Draw(picture.speckle)
    width, height = image.size
    pen = ImageDraw.Draw(image)
    for _ in range(60):
        x, y = source.below(width), source.below(height)
        off = source.between(-picture.speckle, picture.speckle)
        red, green, blue = (min(255, max(0, value + off)) for value in picture.above)
        pen.rectangle((x, y, x + width // 40, y + height // 40), fill=(red, green, blue))


def _draw(pen: ImageDraw.ImageDraw, thing: Thing, third_x: float, third_y: float) -> None:
    row, column = divmod(CELLS.index(thing.cell), 3)
    x, y = (column + 0.5 + thing.right) * third_x, (row + 0.5 + thing.down) * third_y
    radius = thing.size * min(third_x, third_y) / 2
    if thing.shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=thing.rgb)
        return
    turn = math.radians(thing.turn)
    sine, cosine = math.sin(turn) * radius, math.cos(turn) * radius
    outline = [(x + a * cosine - b * sine, y + a * sine + b * cosine) for a, b in _OUTLINES[thing.shape]]
    pen.polygon(outline, fill=thing.rgb)


def _star() -> list[tuple[float, float]]:
    points = []
    for tip in range(10):
        reach, angle = 1.1 if tip % 2 == 0 else 0.45, math.pi * (tip / 5 - 0.5)
        points.append((reach * math.cos(angle), reach * math.sin(angle)))
    return points


_ARM = 0.33
_OUTLINES: Mapping[str, Sequence[tuple[float, float]]] = MappingProxyType(
    {
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "triangle": ((0, -1), (1, 0.85), (-1, 0.85)),
        "star": tuple(_star()),
        "cross": (
            *((-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)),
            *((_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)),
        ),
    }
)
"""Corners around the middle, in radii."""


def in_its_size(picture: Picture) -> Image.Image:
    """Paint the picture in pixels, in a size that depends on what it shows."""
    return drawn(picture, *size(Draw(zlib.crc32(picture.key.encode()))))


def data_url(image: Image.Image) -> str:
    """Return the image as a PNG in a `data:` URL, as clients send it."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

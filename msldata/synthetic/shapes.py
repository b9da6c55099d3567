"""What the drawn scenes are made of: twelve kinds of sea creatures and objects as coloured polygons."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Shape = tuple[np.ndarray, str]
"""Corner points (N, 2) in the sketch's own frame (about -1 to 1, y down), and the name of a tone: ``body``, ``dark``,
``light``, ``accent``, ``white`` or ``black``. Later shapes cover earlier ones."""

_TURN = 2 * np.pi


def _points(*corners: Sequence[float]) -> np.ndarray:
    return np.array(corners, dtype=np.float64)


def _polar(angle: np.ndarray | float, radius: np.ndarray | float = 1.0) -> np.ndarray:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def _oval(x: float, y: float, radius_x: float, radius_y: float | None = None, corners: int = 16) -> np.ndarray:
    angle = np.linspace(0, _TURN, corners, endpoint=False)
    return _polar(angle) * [radius_x, radius_x if radius_y is None else radius_y] + [x, y]


def _between(x: np.ndarray, y_low: np.ndarray, y_high: np.ndarray) -> np.ndarray:
    """The area between two curves over ``x``."""
    return np.concatenate([np.stack([x, y_low], axis=1), np.stack([x, y_high], axis=1)[::-1]])


def _ribbon(path: np.ndarray, half_width: np.ndarray | float) -> np.ndarray:
    """The outline of a stroke along ``path`` (N, 2); its half width is a number or one per point."""
    along = np.gradient(path, axis=0)
    side = np.stack([-along[:, 1], along[:, 0]], axis=1) / (np.hypot(*along.T)[:, None] + 1e-9)
    side *= np.broadcast_to(half_width, len(path))[:, None]
    return np.concatenate([path + side, (path - side)[::-1]])


def _eye(x: float, y: float, radius: float) -> list[Shape]:
    return [(_oval(x, y, radius), "white"), (_oval(x, y, radius / 2, corners=8), "black")]


def _dots(places: Sequence[Sequence[float]] | np.ndarray, radius: float, tone: str = "light") -> list[Shape]:
    return [(_oval(x, y, radius, corners=8), tone) for x, y in places]


def _anchor(rng: np.random.Generator) -> list[Shape]:
    shapes: list[Shape] = [(_oval(0, -0.8, 0.2), "body"), (_oval(0, -0.8, 0.1), "dark")]
    shapes.append((_ribbon(_points((0, -0.64), (0, 0.84)), 0.09), "body"))
    shapes.append((_ribbon(_points((-0.45, -0.42), (0.45, -0.42)), 0.08), "body"))
    arc = _polar(np.linspace(0.12, 0.88, 13) * np.pi) * [0.68, rng.uniform(0.68, 0.76)] + [0, 0.12]
    shapes.append((_ribbon(arc, 0.09), "body"))
    for side in (-1, 1):
        fluke = _points((0.36, 0.38), (0.88, 0.32), (0.68, 0))
        shapes.append((fluke * [side, 1], "body"))
    shapes.append((_ribbon(_points((-0.03, -0.6), (-0.03, 0.7)), 0.03), "light"))
    return shapes


def _barrel(rng: np.random.Generator) -> list[Shape]:
    def bulge(y: np.ndarray) -> np.ndarray:
        return 0.52 + 0.2 * (1 - (y / 0.95) ** 2)

    y = np.linspace(-0.95, 0.95, 11)
    shapes: list[Shape] = [(_between(y, -bulge(y), bulge(y))[:, ::-1], "body")]
    shapes += [(_ribbon(np.stack([at * bulge(y), y], 1), 0.025), "dark") for at in (-0.6, -0.2, 0.2, 0.6)]
    for at in (-0.65, -0.1, 0.45) if rng.random() < 0.5 else (-0.6, 0.6):
        hoop = np.linspace(at - 0.08, at + 0.08, 3)
        shapes.append((_between(hoop, -bulge(hoop) - 0.02, bulge(hoop) + 0.02)[:, ::-1], "accent"))
    shapes.append((_oval(0, -0.95, 0.52, 0.13), "light"))
    return shapes


def _coral(rng: np.random.Generator) -> list[Shape]:
    branches: list[Shape] = []
    tips: list[Shape] = []

    def grow(start: np.ndarray, angle: float, length: float, half_width: float, num_forks: int) -> None:
        end = start + length * _polar(angle)
        x, y = end.tolist()
        branches.append((_ribbon(np.stack([start, end]), np.array([half_width, half_width * 0.8])), "body"))
        branches.append((_oval(x, y, half_width * 0.95, corners=10), "body"))
        tips.append((_oval(x, y, half_width * 0.5, corners=8), "light"))
        if num_forks:
            spread = rng.uniform(0.4, 0.75)
            for side in (-1, 1):
                turned = angle + side * spread + rng.normal(0, 0.12)
                grow(end, turned, length * rng.uniform(0.62, 0.85), half_width * 0.78, num_forks - 1)

    grow(np.array([0.0, 0.95]), -np.pi / 2, 0.6, 0.15, 3)
    return branches + tips


def _crab(rng: np.random.Generator) -> list[Shape]:
    shapes: list[Shape] = []
    for side in (-1, 1):
        for hip in (0.1, 0.28, 0.44):
            knee = (0.72 + 0.1 * hip, hip - 0.22 + rng.normal(0, 0.03))
            leg = _points((0.3, hip), knee, (0.92 - 0.3 * hip, hip + 0.4))
            shapes.append((_ribbon(leg * [side, 1], 0.05), "dark"))
        hand = _points((rng.uniform(0.6, 0.75), rng.uniform(-0.72, -0.5)))
        arm = np.concatenate([_points((0.4, -0.05), (0.78, -0.25)), hand])
        shapes.append((_ribbon(arm * [side, 1], 0.08), "dark"))
        jaw = np.arctan2(-1.0, -0.4) + np.linspace(0.45, _TURN - 0.45, 18)
        shapes.append((np.concatenate([hand + _polar(jaw, 0.25), hand]) * [side, 1], "body"))
        shapes.append((_ribbon(_points((side * 0.16, -0.2), (side * 0.2, -0.46)), 0.035), "dark"))
        shapes += _eye(side * 0.2, -0.48, 0.09)
    shapes.append((_oval(0, 0.12, 0.56, 0.38, corners=24), "body"))
    return shapes + _dots(((-0.28, 0), (0.28, 0), (0, -0.1), (-0.14, 0.14), (0.14, 0.14)), 0.055)


def _fish(rng: np.random.Generator) -> list[Shape]:
    height = rng.uniform(0.36, 0.5)

    def flank(x: np.ndarray) -> np.ndarray:
        return height * np.sqrt(np.clip(1 - x**2, 0, 1)) * (1 - 0.25 * x)

    def slice_of_body(x: np.ndarray, share: float) -> np.ndarray:
        return _between(x * 0.7 - 0.25, -share * flank(x), share * flank(x))

    shapes: list[Shape] = [
        (_points((0.3, 0), (0.98, -0.42), (0.8, 0), (0.98, 0.42)), "accent"),
        (_points((-0.55, -height * 0.7), (-0.1, -height - 0.3), (0.3, -height * 0.45)), "accent"),
        (_points((-0.4, height * 0.7), (-0.1, height + 0.24), (0.12, height * 0.6)), "accent"),
        (slice_of_body(np.linspace(-1, 1, 15), 1.0), "body"),
    ]
    shapes += [(slice_of_body(np.array([at - 0.09, at, at + 0.09]), 0.98), "light") for at in (-0.25, 0.1, 0.45)]
    shapes += _eye(-0.68, -0.1, 0.11)
    side = rng.choice([-1, 1])
    return [(points * [side, 1], tone) for points, tone in shapes]


def _jellyfish(rng: np.random.Generator) -> list[Shape]:
    shapes: list[Shape] = []
    y = np.linspace(-0.1, 0.98, 10)
    for x in np.linspace(-0.5, 0.5, int(rng.integers(4, 7))):
        sway = x * (1 - 0.15 * y) + 0.09 * np.sin(y * rng.uniform(5, 8) + rng.uniform(0, _TURN))
        tentacle = np.stack([sway, y * rng.uniform(0.8, 1)], axis=1)
        shapes.append((_ribbon(tentacle, np.linspace(0.07, 0.025, 10)), "light"))
    hem = np.linspace(0.72, -0.72, 13)
    frill = np.stack([hem, 0.02 + 0.08 * np.abs(np.sin(hem / 0.72 * _TURN))], axis=1)
    shapes.append((np.concatenate([_polar(np.linspace(np.pi, _TURN, 17)) * [0.72, 0.86], frill]), "body"))
    ribs = (-0.45, -0.15, 0.15, 0.45)
    return shapes + [(_ribbon(_points((x * 0.5, -0.72), (x, -0.1)), 0.035), "accent") for x in ribs]


def _octopus(rng: np.random.Generator) -> list[Shape]:
    shapes: list[Shape] = []
    for angle in np.linspace(0.02, np.pi - 0.02, 7):
        direction = angle + rng.choice([-1, 1]) * rng.uniform(0.6, 1.8) * np.linspace(0, 1, 9)
        arm = 0.12 * _polar(angle) + [0, 0.1] + np.cumsum(_polar(direction, rng.uniform(0.85, 1) / 9), axis=0)
        shapes.append((_ribbon(arm, np.linspace(0.13, 0.035, 9)), "body"))
        shapes += _dots(arm[1:-1:2], 0.045)
    shapes.append((_oval(0, -0.35, 0.42, 0.55, corners=24), "body"))
    shapes += _dots(((-0.12, -0.7), (0.16, -0.62), (-0.02, -0.5)), 0.075, "dark")
    return shapes + _eye(-0.17, -0.15, 0.12) + _eye(0.17, -0.15, 0.12)


def _seaweed(rng: np.random.Generator) -> list[Shape]:
    shapes: list[Shape] = []
    y = np.linspace(0.98, -0.98, 16)
    leaf = 0.13 * np.sqrt(np.clip(1 - np.linspace(0.3, 1, 16) ** 3, 0.01, 1)) * (1 + 0.25 * np.cos(y * 16))
    for x in np.linspace(-0.4, 0.4, int(rng.integers(2, 4))):
        sway = x + 0.07 * (1.2 - y) * np.sin(y * rng.uniform(4, 6) + rng.uniform(0, _TURN))
        path = np.stack([sway, 0.98 - (0.98 - y) * rng.uniform(0.7, 1)], axis=1)
        shapes += [(_ribbon(path, leaf), "body"), (_ribbon(path[:-2], 0.025), "light")]
    return shapes


def _shell(rng: np.random.Generator) -> list[Shape]:
    hinge, fan = np.array([0.0, 0.62]), np.array([rng.uniform(0.66, 0.78), 1.0])
    angle = np.linspace(-0.93 * np.pi, -0.07 * np.pi, 33)
    rim = hinge + fan * _polar(angle, 1.25 + 0.05 * np.abs(np.sin(np.linspace(0, 8 * np.pi, 33))))
    shapes: list[Shape] = [(_points((-0.36, 0.78), (0.36, 0.78), (0.16, 0.42), (-0.16, 0.42)), "dark")]
    shapes.append((np.concatenate([rim, hinge[None]]), "body"))
    for end in hinge + fan * _polar(angle[4:-4:4], 1.16):
        shapes.append((_ribbon(np.stack([hinge, end]), np.array([0.01, 0.05])), "dark"))
    shapes.append((_ribbon(hinge + fan * _polar(angle[2:-2], 0.82), 0.05), "light"))
    return shapes


def _starfish(rng: np.random.Generator) -> list[Shape]:
    axes = np.arange(5) * _TURN / 5 - np.pi / 2
    # Four corners an arm: tip, shoulder, armpit, shoulder; the shoulders are pulled to the axis, which rounds the arm.
    angle = axes[:, None] + [0, 0.234, 0.628, 1.022]
    radius = np.broadcast_to([0.95, 0.62, rng.uniform(0.34, 0.42), 0.62], (5, 4))
    shapes: list[Shape] = [(_polar(angle.ravel(), radius.ravel()), "body")]
    for place, size in ((0.24, 0.08), (0.46, 0.065), (0.66, 0.05)):
        shapes += _dots(_polar(axes, place), size)
    return shapes + _dots(((0, 0),), 0.1, "dark")


def _turtle(rng: np.random.Generator) -> list[Shape]:
    shapes: list[Shape] = []
    for side in (-1, 1):
        sweep = rng.uniform(-0.2, 0.2)
        front = _points((0.3, -0.45), (0.95, -0.62 + sweep), (0.98, -0.4 + sweep), (0.4, -0.1))
        back = _points((0.25, 0.4), (0.62, 0.8), (0.46, 0.9), (0.1, 0.6))
        shapes += [(front * [side, 1], "light"), (back * [side, 1], "light")]
    shapes.append((_oval(0, -0.78, 0.18, 0.22), "light"))
    shapes += _dots(((-0.09, -0.85), (0.09, -0.85)), 0.045, "black")
    shapes.append((_oval(0, 0.05, 0.55, 0.66, corners=24), "dark"))
    plates = ((0, -0.32), (0, 0.05), (0, 0.42), (-0.32, -0.14), (-0.32, 0.24), (0.32, -0.14), (0.32, 0.24))
    return shapes + [(_oval(x, y, 0.17, corners=6), "body") for x, y in plates]


def _urchin(rng: np.random.Generator) -> list[Shape]:
    shapes: list[Shape] = []
    for angle in np.arange(22) * _TURN / 22 + rng.normal(0, 0.05, 22):
        root, tip = 0.4 * _polar(angle), rng.uniform(0.8, 1) * _polar(angle)
        across = 0.07 * _polar(angle + np.pi / 2)
        shapes.append((np.stack([root + across, tip, root - across]), "dark"))
    shapes.append((_oval(0, 0, 0.52, corners=24), "body"))
    return shapes + _dots(_polar(np.arange(7) * _TURN / 7, 0.34), 0.06) + _dots(((0, 0),), 0.09)


SHAPES: dict[str, Callable[[np.random.Generator], list[Shape]]] = {
    "anchor": _anchor,
    "barrel": _barrel,
    "coral": _coral,
    "crab": _crab,
    "fish": _fish,
    "jellyfish": _jellyfish,
    "octopus": _octopus,
    "seaweed": _seaweed,
    "shell": _shell,
    "starfish": _starfish,
    "turtle": _turtle,
    "urchin": _urchin,
}
"""Every class, and the function that draws one of its kind."""

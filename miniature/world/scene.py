"""Scenes of one or two moving colored solids, drawn from a seed, and the sentence that describes each scene.

Lengths are in world units, times in seconds; y points up, and the ground is y = 0. A scene is a function of its seed
and split alone: the same seed shows the same scene at every size, and a longer clip begins with the frames of a shorter
one.

There are two styles. A rich scene is the plain one of its seed with more life: soft shadows and highlights, more
textures, grounds and skies of two colors, and a camera that may move to and fro instead of around.

There are three splits. In `held_out`, every solid's pair of color and shape is one of HELD_OUT; in `train`, none is;
`all` draws from both. The estimators are fitted on `all`, since public ones have seen most things. The model sees only
`train`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.12),
    "orange": (0.95, 0.50, 0.10),
    "yellow": (0.95, 0.85, 0.15),
    "green": (0.15, 0.62, 0.20),
    "cyan": (0.20, 0.80, 0.85),
    "blue": (0.15, 0.30, 0.85),
    "purple": (0.50, 0.20, 0.70),
    "pink": (0.95, 0.50, 0.70),
    "white": (0.93, 0.93, 0.93),
    "black": (0.08, 0.08, 0.08),
}
GROUNDS: dict[str, tuple[float, float, float]] = {
    "green": (0.35, 0.60, 0.30),
    "grey": (0.50, 0.50, 0.50),
    "brown": (0.45, 0.31, 0.19),
    "white": (0.85, 0.86, 0.88),
    "blue": (0.35, 0.48, 0.68),
}
SKIES = ((0.60, 0.75, 0.95), (0.85, 0.88, 0.92), (0.95, 0.75, 0.60), (0.30, 0.33, 0.45))
SHAPES = ("ball", "box", "cylinder", "cone", "torus")
TEXTURES = ("plain", "striped", "checkered", "dotted")
PLAIN, RICH = STYLES = ("plain", "rich")
SURROUND = 3.0  # radius of the inner ground, in world units
RICH_TEXTURES = (*TEXTURES, "zigzag", "halved")
TEXTURES_OF = {PLAIN: TEXTURES, RICH: RICH_TEXTURES}
SKIES_ABOVE = ((0.25, 0.45, 0.80), (0.55, 0.62, 0.75), (0.45, 0.40, 0.65), (0.10, 0.12, 0.25))  # for each of SKIES
SPLITS = ("train", "held_out", "all")
# Each color with one shape and each shape with two colors, so that no color and no shape is new on its own.
HELD_OUT = frozenset((color, SHAPES[index % len(SHAPES)]) for index, color in enumerate(COLORS))


@dataclass(frozen=True)
class Solid:
    """A solid that rests or bounces on the ground. `radius` is half its width. A torus is upright, like a wheel."""

    shape: str
    color: str
    radius: float
    height: float
    anchor: tuple[float, float]
    texture: str = "plain"
    sway: tuple[float, float] = (0.0, 0.0)
    rate: float = 0.0
    phase: float = 0.0
    bounce: float = 0.0
    spin: float = 0.0
    gloss: float = 0.0  # brightness of its highlight, 0..1

    def pose(self, time: float) -> tuple[np.ndarray, float]:
        """The center of the base, (3,), and the rotation about the vertical axis in radians."""
        swing = np.sin(self.rate * time + self.phase)
        lift = self.bounce * abs(np.sin(1.5 * self.rate * time + self.phase))
        x, z = (a + s * swing for a, s in zip(self.anchor, self.sway, strict=True))
        return np.array([x, lift, z], np.float32), self.phase + self.spin * time

    @property
    def caption(self) -> str:
        """The solid in words, such as "a striped red ball"."""
        words = ("" if self.texture == "plain" else self.texture + " ") + f"{self.color} {self.shape}"
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True)
class Scene:
    """Solids, ground, sky, light, and a camera that moves around the center of the scene, or to it and back."""

    solids: tuple[Solid, ...]
    ground: str
    relief_scale: float = 2.0
    relief_turn: float = 0.0
    sky: tuple[float, float, float] = SKIES[0]
    light: tuple[float, float, float] = (0.4, 0.8, -0.45)
    ambient: float = 0.45
    camera_distance: float = 7.0
    camera_height: float = 2.4
    camera_turn: float = 0.0
    camera_swing: float = 0.0
    camera_rate: float = 0.0
    camera_push: float = 0.0  # by how much the distance changes, as a share of it
    surround: str | None = None  # the ground farther than SURROUND from the center; structure shows where that is
    sky_above: tuple[float, float, float] | None = None  # the color that the sky takes on from the horizon up
    soft_shadows: bool = False  # the light has a size; otherwise each solid darkens the ground right below it

    def camera(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """The camera's position (3,) and its axes (3, 3), whose rows are right, up and forward."""
        angle = self.camera_turn + self.camera_swing * np.sin(self.camera_rate * time)
        distance = self.camera_distance * (1 + self.camera_push * np.sin(self.camera_rate * time))
        position = np.array([distance * np.sin(angle), self.camera_height, -distance * np.cos(angle)])
        forward = np.array([0.0, 0.7, 0.0]) - position
        forward /= np.linalg.norm(forward)
        right = np.cross([0.0, 1.0, 0.0], forward)
        right /= np.linalg.norm(right)
        axes = np.stack([right, np.cross(forward, right), forward])
        return position.astype(np.float32), axes.astype(np.float32)

    @property
    def caption(self) -> str:
        """The scene in words, from left to right, such as "a striped red ball and a blue box on green ground"."""
        ground = self.ground if self.surround is None else f"{self.ground} and {self.surround}"
        return f"{' and '.join(solid.caption for solid in self.solids)} on {ground} ground"


def sample_solid(rng: np.random.Generator, shape: str, color: str, anchor: tuple[float, float]) -> Solid:
    """Draws a solid of the given shape and color near `anchor` (x, z), with random texture, size and motion."""
    radius = float(rng.uniform(0.65, 0.95))
    height = 2 * radius if shape in ("ball", "torus") else radius * float(rng.uniform(1.5, 2.2))
    sway = float(rng.uniform(0.25, 0.55)), float(rng.uniform(-0.9, 0.9))
    return Solid(
        shape=shape,
        color=color,
        radius=radius,
        height=height,
        anchor=anchor,
        texture=str(rng.choice(TEXTURES)),
        sway=sway,
        rate=float(rng.uniform(1.2, 2.6)),
        phase=float(rng.uniform(0, 2 * np.pi)),
        bounce=float(rng.uniform(0.3, 0.9)) if rng.random() < 0.4 else 0.0,
        spin=float(rng.uniform(-1.5, 1.5)),
    )


def shapes_of(color: str, split: str) -> list[str]:
    """The shapes that a solid of this color may have in a split. Raises ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    return [s for s in SHAPES if split == "all" or ((color, s) in HELD_OUT) == (split == "held_out")]


def sample_scene(seed: int, split: str = "all", style: str = PLAIN) -> Scene:
    """Draws the scene of a seed: one or two solids side by side, whose colors differ from each other and the ground.

    Raises ValueError for an unknown split or style.
    """
    if style not in STYLES:
        raise ValueError(f"style {style!r} is not one of {', '.join(STYLES)}")
    scene = _plain_scene(seed, split)
    return scene if style == PLAIN else _enriched(scene, np.random.default_rng([seed, 1]))


def _enriched(scene: Scene, rng: np.random.Generator) -> Scene:
    """Adds what a rich scene has more than a plain one."""
    solids = tuple(
        replace(solid, texture=str(rng.choice(RICH_TEXTURES)), gloss=max(0.0, float(rng.uniform(-0.4, 0.6))))
        for solid in scene.solids
    )
    grounds = [name for name in GROUNDS if name not in (scene.ground, *(solid.color for solid in solids))]
    surround, pushes = str(rng.choice(grounds)), rng.random() < 0.5
    return replace(
        scene,
        solids=solids,
        surround=surround if rng.random() < 0.5 else None,
        sky_above=SKIES_ABOVE[SKIES.index(scene.sky)],
        soft_shadows=True,
        camera_swing=0.0 if pushes else scene.camera_swing,
        camera_push=float(rng.uniform(0.06, 0.12) * rng.choice([-1, 1])) if pushes else 0.0,
    )


def _plain_scene(seed: int, split: str) -> Scene:
    rng = np.random.default_rng(seed)
    ground = str(rng.choice(list(GROUNDS)))
    colors = [str(name) for name in rng.permutation([name for name in COLORS if name != ground])]
    if rng.random() < 0.5:
        anchors = [(side * float(rng.uniform(1.1, 1.4)), float(rng.uniform(-1.0, 1.0))) for side in (-1, 1)]
    else:
        anchors = [(float(rng.uniform(-0.6, 0.6)), float(rng.uniform(-1.0, 0.5)))]
    solids = [
        sample_solid(rng, str(rng.choice(shapes_of(color, split))), color, anchor)
        for color, anchor in zip(colors, anchors, strict=False)
    ]
    light = np.array([rng.uniform(-0.7, 0.7), 0.9, rng.uniform(-0.8, 0.2)])
    x, y, z = (light / np.linalg.norm(light)).tolist()
    return Scene(
        solids=tuple(solids),
        ground=ground,
        relief_scale=float(rng.uniform(1.2, 2.4)),
        relief_turn=float(rng.uniform(0, np.pi)),
        sky=SKIES[rng.integers(len(SKIES))],
        light=(x, y, z),
        ambient=float(rng.uniform(0.35, 0.55)),
        camera_distance=float(rng.uniform(5.0, 6.0)),
        camera_height=float(rng.uniform(1.7, 3.4)),
        camera_turn=float(rng.uniform(-0.3, 0.3)),
        camera_swing=float(rng.uniform(0.12, 0.35) * rng.choice([-1, 1])),
        camera_rate=float(rng.uniform(0.5, 1.0)),
    )

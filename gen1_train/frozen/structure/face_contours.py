"""The lines of a face: which points of MediaPipe's mesh they connect, and drawing them into a gray plane."""

from itertools import pairwise

import numpy as np

# Chains of points of the mesh of 468, closed ones with their first point at the end. They are the connections of
# MediaPipe's FACEMESH_FACE_OVAL, _LEFT_EYE, _RIGHT_EYE, _LEFT_EYEBROW, _RIGHT_EYEBROW, _LIPS and _NOSE
# (mediapipe/python/solutions/face_mesh_connections.py, Apache-2.0), written by us as chains. Right and left are the
# person's own.
# fmt: off
OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152,
    148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109, 10,
)
# fmt: on
CONTOURS = {
    "oval": OVAL,
    "left eye": (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466, 263),
    "right eye": (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246, 33),
    "left brow, below": (276, 283, 282, 295, 285),
    "left brow, above": (300, 293, 334, 296, 336),
    "right brow, below": (46, 53, 52, 65, 55),
    "right brow, above": (70, 63, 105, 66, 107),
    "lips, outer": (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185, 61),
    "lips, inner": (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191, 78),
    "nose, bridge": (168, 6, 197, 195, 5, 4, 1, 19, 94, 2),
    "nose, tip": (4, 45, 220, 115, 48, 64, 98, 97, 2, 326, 327, 294, 278, 344, 440, 275, 4),
}
SEGMENTS = np.array([pair for chain in CONTOURS.values() for pair in pairwise(chain)])  # (s, 2)


def face_size(points: np.ndarray) -> float:
    """Returns the size of a face in pixels from its mesh (468, 2): the largest distance between points of the oval."""
    oval = points[list(OVAL[:-1])]
    return float(np.linalg.norm(oval[:, None] - oval[None], axis=-1).max())


def draw_face(plane: np.ndarray, points: np.ndarray, line: float) -> None:
    """Draws a face's lines into a plane, float32 (h, w) in [0, 1], where they are brighter than what is there.

    `points` (468, 2) are in pixels, x first; the center of the first pixel is at (0.5, 0.5). `line` is the width of
    the lines as a share of the face's size. A pixel has the value of the part of it that a line covers, so that lines
    narrower than a pixel are dimmer, not broken, and a face that moves by less than a pixel moves in the plane.
    """
    height, width = plane.shape
    thick = line * face_size(points)
    reach = thick / 2 + 0.5
    for start, end in points[SEGMENTS]:
        low = np.floor(np.minimum(start, end) - reach)
        high = np.ceil(np.maximum(start, end) + reach)
        left, top = (int(each) for each in np.clip(low, 0, (width, height)))
        right, bottom = (int(each) for each in np.clip(high, 0, (width, height)))
        if left >= right or top >= bottom:
            continue  # outside of the plane
        x = np.arange(left, right, dtype=np.float32)[None] + 0.5 - start[0]
        y = np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5 - start[1]
        along = end - start
        part = np.clip((x * along[0] + y * along[1]) / max(float(along @ along), 1e-12), 0, 1)
        distance = np.hypot(x - part * along[0], y - part * along[1])
        covered = np.clip(reach - distance, 0, min(1.0, thick))
        target = plane[top:bottom, left:right]
        np.maximum(target, covered, out=target)

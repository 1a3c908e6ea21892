"""MediaPipe's face detectors (BlazeFace, arXiv 1907.05047) and face mesh (arXiv 1907.06724) on single pictures.

The steps and numbers are those of MediaPipe's graphs `face_detection.pbtxt`, `face_detection_front_detection_to_roi
.pbtxt`, `face_landmark_landmarks_to_roi.pbtxt` and `face_landmark_cpu.pbtxt` (mediapipe/modules); the code is ours, and
so are the steps that are marked. Points are in pixels, x first; the center of the first pixel is at (0.5, 0.5).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from gen1_train.frozen.structure.face_models import FaceModel

OVERLAP = 0.3  # intersection over union above which two detections are of one face
SAME = 0.5  # the same for two meshes
MARGIN = 1.5  # the mesh's crop is this many times as large as the face's box
MESH = "face_landmark"
MESH_SIDE = 192  # pixels of its picture
POINTS = 468
EYES = (33, 263)  # points of the mesh: the outer corners of the right and the left eye
PASSES = 2  # ours: the second crop is around the mesh of the first, as in the next frame of a video that is tracked


@dataclass(frozen=True)
class DetectorLayout:
    """What the outputs of a detector mean: its picture is a square, covered by grids of anchors."""

    model: str
    side: int  # pixels of its picture
    grids: tuple[tuple[int, int], ...]  # (cells on a side, anchors in each), in the order of the outputs


# Short range: strides 8, 16, 16, 16 with two anchors each; full range: stride 4 with one anchor. Both run (ours): full
# range finds faces down to a fifth of the frame, short range those that fill it.
DETECTORS = (
    DetectorLayout("face_detection_short_range", 128, ((16, 2), (8, 6))),
    DetectorLayout("face_detection_full_range", 192, ((48, 1),)),
)


class FaceFinder:
    """Finds all faces in a picture, and the mesh of each."""

    def __init__(self, folder: str, score: float, presence: float, recorded: bool = False) -> None:
        """`score`, `presence`: probabilities from which on a detection is a face, and a mesh is one.

        `folder` and `recorded` as in `FaceModel`. Raises UserError if a model cannot be loaded.
        """
        self._detectors = [(layout, FaceModel(folder, layout.model, recorded)) for layout in DETECTORS]
        self._mesh = FaceModel(folder, MESH, recorded)
        self._score = score
        self._presence = presence

    @property
    def sha256(self) -> list[str]:
        """The hashes of the models' files."""
        return [model.sha256 for model in (*(model for _, model in self._detectors), self._mesh)]

    def __call__(self, frame: np.ndarray) -> list[np.ndarray]:
        """uint8 (h, w, 3) -> the mesh of each face, float64 (468, 2) in pixels, the surest detection first."""
        meshes: list[np.ndarray] = []
        boxes = np.empty((0, 2, 2))
        for face in self.detect(frame):
            mesh = self.mesh(frame, face)
            if mesh is None:
                continue
            box = np.stack([mesh.min(axis=0), mesh.max(axis=0)])
            if (overlaps(box, boxes) <= SAME).all():
                meshes.append(mesh)
                boxes = np.concatenate([boxes, box[None]])
        return meshes

    def detect(self, frame: np.ndarray) -> np.ndarray:
        """uint8 (h, w, 3) -> (faces, 8, 2) in pixels: low and high corner of a box, and six points, eyes first."""
        found = [detections(frame, layout, model, self._score) for layout, model in self._detectors]
        return merge(np.concatenate([faces for faces, _ in found]), np.concatenate([scores for _, scores in found]))

    def mesh(self, frame: np.ndarray, face: np.ndarray) -> np.ndarray | None:
        """uint8 (h, w, 3) and a face of `detect` (8, 2) -> its mesh (468, 2) in pixels, or None: it is no face."""
        box, eyes = face[:2], face[2:4]
        points = np.empty((POINTS, 2))
        for _ in range(PASSES):
            transform = crop_transform(box, *eyes)
            outputs = self._mesh(crop(frame, transform).astype(np.float32) / 255)
            if sigmoid(outputs[1]).item() < self._presence:
                return None
            in_crop = outputs[3 * POINTS].reshape(POINTS, 3)[:, :2]  # the third value is depth
            points = in_crop @ transform[:, :2].T + transform[:, 2]
            box, eyes = np.stack([points.min(axis=0), points.max(axis=0)]), points[list(EYES)]
        return points


def detections(
    frame: np.ndarray, layout: DetectorLayout, model: FaceModel, score: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns all detections of one detector from a score on, (m, 8, 2) as in `FaceFinder.detect`, and their scores."""
    picture, scale, corner = letterbox(frame, layout.side)
    outputs = model(picture)
    scores = sigmoid(outputs[1][:, 0])
    kept = scores >= score
    values = outputs[16][kept].reshape(-1, 8, 2).astype(np.float64)  # the box's center and size, and the points
    half = values[:, 1] / 2
    faces = values + anchors(layout)[kept][:, None]
    faces[:, 1] = faces[:, 0] + half
    faces[:, 0] -= half
    return (faces - corner) / scale, scores[kept]


@cache
def anchors(layout: DetectorLayout) -> np.ndarray:
    """Returns the centers of a detector's anchors in pixels of its picture, (boxes, 2)."""
    centers = []
    for cells, count in layout.grids:
        y, x = np.mgrid[:cells, :cells] * (layout.side / cells) + layout.side / cells / 2
        centers.append(np.repeat(np.stack([x, y], axis=-1).reshape(-1, 2), count, axis=0))
    return np.concatenate(centers)


def sigmoid(values: np.ndarray) -> np.ndarray:
    """Returns probabilities as float64; MediaPipe clips the values to -100..100, too."""
    return 1 / (1 + np.exp(-np.clip(values.astype(np.float64), -100, 100)))


def letterbox(frame: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales a frame into the middle of a black square.

    Returns it, float32 (side, side, 3) in [-1, 1], and the scales and the first corner of the frame in it, x first. It
    is shrunk by areas (ours; MediaPipe takes single pixels, so that small faces would flicker).
    """
    import cv2

    height, width = frame.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    square = np.zeros((side, side, 3), np.float32)
    square[top : top + size[1], left : left + size[0]] = resized
    return square / 127.5 - 1, np.array(size) / (width, height), np.array([left, top], np.float64)


def merge(faces: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Merges detections (m, 8, 2) of one face into their mean by scores: MediaPipe's weighted suppression."""
    order = np.argsort(-scores, kind="stable")
    merged = []
    while len(order):
        same = overlaps(faces[order[0], :2], faces[order, :2]) > OVERLAP
        same[0] = True  # also a box without an area
        weights = scores[order[same]]
        merged.append(np.tensordot(weights / weights.sum(), faces[order[same]], 1))
        order = order[~same]
    return np.stack(merged) if merged else faces


def overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns the intersection over union of a box (2, 2) with each of others (m, 2, 2)."""
    sides = np.minimum(box[1], boxes[:, 1]) - np.maximum(box[0], boxes[:, 0])
    inside = np.prod(np.clip(sides, 0, None), axis=-1)
    areas = np.prod(boxes[:, 1] - boxes[:, 0], axis=-1)
    return inside / np.maximum(np.prod(box[1] - box[0]) + areas - inside, 1e-12)


def crop_transform(box: np.ndarray, right_eye: np.ndarray, left_eye: np.ndarray) -> np.ndarray:
    """Returns the affine map (2, 3) from the pixels of the mesh's picture to the frame's.

    The picture is a square around the center of the box, MARGIN times as large as its longer side, and turned so that
    the line from the right eye to the left is level.
    """
    x, y = left_eye - right_eye
    length = float(np.hypot(x, y))
    cos, sin = (x / length, y / length) if length else (1.0, 0.0)
    scale = MARGIN * float((box[1] - box[0]).max()) / MESH_SIDE
    turned = np.array([[cos, -sin], [sin, cos]]) * scale
    center = box.mean(axis=0)
    return np.column_stack([turned, center - turned @ (MESH_SIDE / 2, MESH_SIDE / 2)])


def crop(frame: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Cuts the mesh's picture out of a frame, uint8; outside of the frame, its last pixels continue."""
    import cv2

    shifted = transform.copy()  # to OpenCV, the center of the first pixel is at (0, 0)
    shifted[:, 2] += transform[:, :2] @ (0.5, 0.5) - 0.5
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(frame, shifted, (MESH_SIDE, MESH_SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)

"""Pictures with a face: four frames of the standard test sequence Carphone, of 176x144, in faces.jpg."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

PICTURES = Path(__file__).with_name("faces.jpg")
COUNT = 4


def faces(width: int = 176, height: int = 144) -> np.ndarray:
    """Returns the frames, cropped to this aspect and scaled: uint8 (4, height, width, 3). Each shows one face."""
    frames = np.split(np.asarray(Image.open(PICTURES)), COUNT, axis=1)
    return np.stack([fitted(frame, width, height) for frame in frames])


def fitted(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    scale = max(width / frame.shape[1], height / frame.shape[0])
    size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
    scaled = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return np.ascontiguousarray(scaled[top : top + height, left : left + width])


def moved(frame: np.ndarray, right: float, down: float, degrees: float = 0.0) -> np.ndarray:
    """Shifts a frame by pixels and turns it about its center; what comes into it continues its last pixels."""
    height, width = frame.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    matrix[:, 2] += right, down
    return cv2.warpAffine(frame, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)

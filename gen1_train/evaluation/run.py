"""Makes and measures the edits, in this process or in several that share the work."""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gen1_train import keyed
from gen1_train.errors import UserError
from gen1_train.evaluation import metrics
from gen1_train.evaluation.inputs import read_example, read_frames
from gen1_train.evaluation.methods import INPUT, Editing, SweepConfig, sampling_of
from gen1_train.evaluation.pairs import Pair
from gen1_train.evaluation.results import Unit, write_result
from gen1_train.system.console import progress
from gen1_train.system.files import own_folder, write_atomically
from gen1_train.system.processes import cores, spawn_context, worker_pool
from gen1_train.video.encode import write_video
from gen1_train.video.errors import VideoError

STRIP = 6  # frames of an edit on the page
STRIP_HEIGHT = 112  # pixels

Load = Callable[[int], Editing]  # number of the worker -> its editor; a function that worker processes can import


@dataclass(frozen=True)
class Input:
    """The input that all results of a pair share."""

    pair: Pair
    frames: np.ndarray  # uint8 (n, h, w, 3)
    fps: float
    structure: Tensor  # raw (n, h, w)
    prompt: Tensor  # CLIP text embedding (d,)
    content: dict[str, Any]  # the editor's prompt= or image=


def measured(estimator: Any) -> Any:
    """Returns the estimator by which structure is compared: of several planes, that of depth, or else the first."""
    parts = getattr(estimator, "parts", None)
    return estimator if parts is None else parts.get("depth", next(iter(parts.values())))


class Evaluator:
    """Makes results one at a time, and keeps the input of a pair for its next result."""

    def __init__(self, editor: Editing, sweep: SweepConfig, output: Path, keep_videos: bool) -> None:
        self.editor = editor
        self.sweep = sweep
        self.output = output
        self.keep_videos = keep_videos
        self.estimator = measured(editor.structure_estimator)
        self._input: Input | None = None

    def make(self, unit: Unit) -> None:
        """Makes one result. Raises UserError; the result then does not exist."""
        if self._input is None or self._input.pair != unit.pair:
            self._input = self._read(unit.pair)
        source = self._input
        # all settings of a pair start from the same noise, each pair from its own
        seed = keyed.integer(2**31, self.sweep.seed, "evaluation", unit.pair.line)
        began = time.perf_counter()
        edited = self._edit(unit, source, seed)
        seconds = time.perf_counter() - began
        measured = self._measure(edited, source)
        try:
            if self.keep_videos:
                self._keep(unit, edited, source.fps)
            write_result(self.output, unit, len(edited), measured, 0.0 if unit.setting.method == INPUT else seconds)
        except (VideoError, OSError) as error:
            raise UserError(f"output={self.output} cannot be written: {error}") from error

    def _read(self, pair: Pair) -> Input:
        frames, fps = read_frames(pair, self.editor.buckets)
        structure = self.estimator(torch.from_numpy(frames))
        content = {"prompt": pair.prompt} if pair.image is None else {"image": read_example(pair)}
        return Input(pair, frames, fps, structure, self.editor.clip.texts([pair.prompt])[0], content)

    def _edit(self, unit: Unit, source: Input, seed: int) -> np.ndarray:
        if unit.setting.method == INPUT:
            return source.frames
        sampling = sampling_of(unit.setting, self.sweep, seed, self.editor.highest_level)
        return self.editor(source.frames, **source.content, sampling=sampling)

    def _measure(self, edited: np.ndarray, source: Input) -> dict[str, float | None]:
        embeddings = self.editor.clip.images(edited, own=True)  # comparable, whatever the fit of the content
        structure = self.estimator(torch.from_numpy(edited))
        correlation, error = metrics.structure_fidelity(structure, source.structure)
        return {
            "frame_consistency": metrics.frame_consistency(embeddings),
            "prompt_consistency": metrics.prompt_consistency(embeddings, source.prompt),
            "structure_correlation": correlation,
            "structure_error": error,
            "warp_error": metrics.warp_error(edited, source.frames),
        }

    def _keep(self, unit: Unit, edited: np.ndarray, fps: float) -> None:
        """Writes an edit as a video and as a strip. Both come before the result, which implies that they exist."""
        video = unit.file(self.output, "videos", ".mp4")
        strip = unit.file(self.output, "strips", ".jpg")
        for path in (video, strip):
            own_folder(self.output, path.parent.parent.name, path.parent.name)
        write_video(video, edited, fps)
        chosen = edited[np.linspace(0, len(edited) - 1, min(STRIP, len(edited))).round().astype(int)]
        picture = Image.fromarray(np.concatenate(list(chosen), axis=1))
        picture.thumbnail((picture.width, STRIP_HEIGHT))
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=85)
        write_atomically(strip, data.getvalue())


def run(units: Sequence[Unit], load: Load, make: Callable[[Editing], Evaluator], workers: int) -> None:
    """Makes the results of the units. Raises UserError; finished results stay."""
    with progress(title="results", unit="result", total=len(units)) as bar:
        for _ in _in_this_process(units, load, make) if workers == 1 else _in_workers(units, load, make, workers):
            bar.update()


def _in_this_process(units: Sequence[Unit], load: Load, make: Callable[[Editing], Evaluator]) -> Iterator[None]:
    evaluator = make(load(0))
    for unit in units:
        evaluator.make(unit)
        yield


def _in_workers(
    units: Sequence[Unit], load: Load, make: Callable[[Editing], Evaluator], workers: int
) -> Iterator[None]:
    workers = min(workers, len(units))
    ranks = spawn_context().Queue()
    for rank in range(workers):
        ranks.put(rank)
    remedy = "call it again, finished results are kept; fewer workers need less memory"
    threads = max(1, cores() // workers)
    with worker_pool(_make, units, workers, remedy, _start, ranks, load, make, threads) as futures:
        for future in as_completed(futures):
            future.result()
            yield


_worker: dict[str, Any] = {}  # in a worker process: its rank, and its evaluator once it is loaded


def _start(ranks: Any, load: Load, make: Callable[[Editing], Evaluator], threads: int) -> None:
    torch.set_num_threads(threads)
    _worker.update(rank=ranks.get(), load=load, make=make)


def _make(unit: Unit) -> None:
    if "evaluator" not in _worker:  # not in _start, where any error would be reported as a broken pool
        _worker["evaluator"] = _worker["make"](_worker["load"](_worker["rank"]))
    _worker["evaluator"].make(unit)

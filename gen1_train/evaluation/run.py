"""Edits and measures: in this process, or in several that share what is to do."""

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
from tqdm import tqdm

from gen1_train import keyed
from gen1_train.children import SPAWN, cores, worker_pool
from gen1_train.errors import UserError
from gen1_train.evaluation import metrics
from gen1_train.evaluation.inputs import read_example, read_frames
from gen1_train.evaluation.methods import INPUT, Editing, SweepConfig, edit
from gen1_train.evaluation.pairs import Pair
from gen1_train.evaluation.results import Unit, write_result
from gen1_train.video.encode import write_video
from gen1_train.video.probe import VideoError

STRIP = 6  # frames of an edit on the page
STRIP_HEIGHT = 112  # pixels

Load = Callable[[int], Editing]  # number of the worker -> its editor; it has to have a name that processes can import


@dataclass(frozen=True)
class Input:
    """What all results of a pair share."""

    pair: Pair
    frames: np.ndarray  # uint8 (n, h, w, 3)
    fps: float
    structure: Tensor  # raw (n, h, w)
    prompt: Tensor  # CLIP text embedding (d,)
    content: dict[str, Any]  # the editor's prompt= or image=


class Evaluator:
    """Makes results, one after another; what the results of one pair share is kept for the next."""

    def __init__(self, editor: Editing, sweep: SweepConfig, output: Path, keep_videos: bool) -> None:
        self.editor, self.sweep, self.output, self.keep_videos = editor, sweep, output, keep_videos
        self._input: Input | None = None

    def make(self, unit: Unit) -> None:
        """One result. Raises UserError; it is then not there."""
        given = self._input = self._input if self._input and self._input.pair == unit.pair else self._read(unit.pair)
        # the settings of a pair start from one noise, pairs from their own
        seed = keyed.integer(2**31, self.sweep.seed, "evaluation", unit.pair.line)
        began = time.perf_counter()
        edited = edit(self.editor, unit.setting, self.sweep, given.frames, given.content, seed)
        seconds = time.perf_counter() - began
        measured = self._measure(edited, given)
        try:
            if self.keep_videos:
                self._keep(unit, edited, given.fps)
            write_result(self.output, unit, len(edited), measured, 0.0 if unit.setting.method == INPUT else seconds)
        except (VideoError, OSError) as error:
            raise UserError(f"output={self.output} cannot be written: {error}") from error

    def _read(self, pair: Pair) -> Input:
        frames, fps = read_frames(pair, self.editor.buckets)
        structure = self.editor.structure_estimator(torch.from_numpy(frames))
        content = {"prompt": pair.prompt} if pair.image is None else {"image": read_example(pair)}
        return Input(pair, frames, fps, structure, self.editor.clip.texts([pair.prompt])[0], content)

    def _measure(self, edited: np.ndarray, given: Input) -> dict[str, float | None]:
        embeddings = self.editor.clip.images(edited)
        structure = self.editor.structure_estimator(torch.from_numpy(edited))
        correlation, error = metrics.structure_fidelity(structure, given.structure)
        return {
            "frame_consistency": metrics.frame_consistency(embeddings),
            "prompt_consistency": metrics.prompt_consistency(embeddings, given.prompt),
            "structure_correlation": correlation,
            "structure_error": error,
            "warp_error": metrics.warp_error(edited, given.frames),
        }

    def _keep(self, unit: Unit, edited: np.ndarray, fps: float) -> None:
        video, strip = unit.file(self.output, "videos", ".mp4"), unit.file(self.output, "strips", ".jpg")
        for path in (video, strip):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_video(video, edited, fps)
        chosen = edited[np.linspace(0, len(edited) - 1, min(STRIP, len(edited))).round().astype(int)]
        picture = Image.fromarray(np.concatenate(list(chosen), axis=1))
        picture.thumbnail((picture.width, STRIP_HEIGHT))
        picture.save(strip, quality=85)  # written before the result, which stands for both


def run(todo: Sequence[Unit], load: Load, make: Callable[[Editing], Evaluator], workers: int) -> None:
    """Makes the results that are missing. Raises UserError; those that are finished stay."""
    with tqdm(total=len(todo), desc="results", unit="result", mininterval=0.5) as bar:
        for _ in _here(todo, load, make) if workers == 1 else _in_processes(todo, load, make, workers):
            bar.update()


def _here(todo: Sequence[Unit], load: Load, make: Callable[[Editing], Evaluator]) -> Iterator[None]:
    evaluator = make(load(0))
    for unit in todo:
        evaluator.make(unit)
        yield


def _in_processes(
    todo: Sequence[Unit], load: Load, make: Callable[[Editing], Evaluator], workers: int
) -> Iterator[None]:
    ranks = SPAWN.Queue()
    workers = min(workers, len(todo))
    for rank in range(workers):
        ranks.put(rank)
    mend = "call it again, finished results are kept; fewer workers need less memory"
    started = (ranks, load, make, max(1, cores() // workers))
    with worker_pool(_make, todo, workers, mend, _start, *started) as futures:
        for future in as_completed(futures):
            future.result()
            yield


_worker: dict[str, Any] = {}  # in a worker process: its rank, and its evaluator once it is loaded


def _start(ranks: Any, load: Load, make: Callable[[Editing], Evaluator], threads: int) -> None:
    torch.set_num_threads(threads)
    _worker.update(rank=ranks.get(), load=load, make=make)


def _make(unit: Unit) -> None:
    if "evaluator" not in _worker:  # not in _start, where an error would be said as a broken pool
        _worker["evaluator"] = _worker["make"](_worker["load"](_worker["rank"]))
    _worker["evaluator"].make(unit)

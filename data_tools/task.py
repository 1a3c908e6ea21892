"""One idempotent unit of work: some files of the plan -> one tar a pool, in a folder that appears when all is done.

OUTPUT/.staging/task-00012/video-448x256.tar
OUTPUT/.staging/task-00012/done.json          samples, failures, and the networks that made them
"""

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.estimate import Estimators, one_thread
from data_tools.pack import Write, open_tar
from data_tools.plan import MediaFile, Plan
from data_tools.recipe import RecipeConfig, windows
from data_tools.scan import Failure
from gen1_train.batch import Pool, Sample, SampleError, encode_sample, validate
from gen1_train.data.shards import write_atomically
from gen1_train.errors import UserError
from gen1_train.video.decode import VideoError, read_clips
from gen1_train.video.geometry import enlargement, nearest_bucket, parse_bucket, resize_and_crop
from gen1_train.video.image import read_image

STAGING = ".staging"
DONE = "done.json"


@dataclass
class TaskResult:
    plan: str  # hash of the plan
    estimators: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)  # pool -> number of samples
    failures: list[Failure] = field(default_factory=list)
    readers: dict[str, int] = field(default_factory=dict)  # decoder -> number of clips that it served


def task_folder(output: Path, number: int) -> Path:
    return output / STAGING / f"task-{number:05d}"


def load_result(output: Path, number: int, plan: str) -> TaskResult | None:
    """What a finished task left; None if it is not finished. Raises UserError if it belongs to another plan."""
    try:
        content = json.loads((task_folder(output, number) / DONE).read_bytes())
    except FileNotFoundError:
        return None
    content["failures"] = [Failure(**failure) for failure in content["failures"]]
    result = TaskResult(**content)
    if result.plan != plan:
        raise UserError(f"{task_folder(output, number)} was made by another plan: remove {output / STAGING}")
    return result


def run_task(plan: Plan, number: int, source: Path, output: Path, estimators: Estimators) -> TaskResult:
    """Does one task, unless it is done. A killed run leaves nothing that a later one would take for finished.

    Raises UserError when the output cannot be written.
    """
    plan_hash = plan.hash
    if done := load_result(output, number, plan_hash):
        return done
    folder = task_folder(output, number)
    building = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        result = TaskResult(plan_hash, estimators.description)
        with ExitStack() as stack:
            sink = Sink(building, stack, plan, result)
            stack.enter_context(one_thread())
            for index in plan.tasks[number]:
                process_file(plan.files[index], source, plan.stills, estimators, sink)
        write_atomically(building / DONE, json.dumps(asdict(result), indent=1).encode())
        try:
            os.replace(building, folder)
        except OSError:  # another process finished the same task in the meantime
            if (done := load_result(output, number, plan_hash)) is None:
                raise
            return done
    except OSError as error:
        raise UserError(
            f"task {number} cannot write to output={output} ({error.strerror or error}); what is finished is kept"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return result


class Sink:
    """Takes the samples and failures of a task; opens one tar for each pool that occurs."""

    def __init__(self, folder: Path, stack: ExitStack, plan: Plan, result: TaskResult) -> None:
        self.folder, self.stack, self.result = folder, stack, result
        self.jpeg_quality = int(plan.recipe["jpeg_quality"])
        self._tars: dict[str, Write] = {}

    def write(self, sample: Sample, pool: Pool) -> None:
        """Checks a sample by the contract and stores it. Raises SampleError."""
        validate(sample, pool)
        if pool.name not in self._tars:
            self._tars[pool.name] = self.stack.enter_context(open_tar(self.folder / f"{pool.name}.tar"))
        self._tars[pool.name](sample.key, encode_sample(sample, self.jpeg_quality))
        self.result.samples[pool.name] = self.result.samples.get(pool.name, 0) + 1

    def fail(self, file: MediaFile, reason: str, transient: bool = False, clips: int = 0) -> None:
        self.result.failures.append(Failure(file.path, reason, transient, clips))

    def count_readers(self, served: Counter[str]) -> None:
        self.result.readers = dict(sorted((Counter(self.result.readers) + served).items()))


def process_file(file: MediaFile, source: Path, stills: bool, estimators: Estimators, sink: Sink) -> None:
    """Makes all samples of one file. What goes wrong with the file is recorded; what came before is kept."""
    made = 0
    served: Counter[str] = Counter()
    try:
        text = estimators.text_embedding(file.caption)
        for reader, sample, pool in file_samples(file, source, stills, estimators):
            sample.caption, sample.text_embedding = file.caption, text
            sink.write(sample, pool)
            made += pool.kind == file.kind
            served[reader] += pool.kind == "video"
    except (VideoError, SampleError) as error:
        sink.fail(file, str(error), getattr(error, "transient", False), made)
    sink.count_readers(served)


def file_samples(
    file: MediaFile, source: Path, stills: bool, estimators: Estimators
) -> Iterator[tuple[str, Sample, Pool]]:
    """Yields (decoder, sample, pool) for every clip of a video, or for an image. Raises VideoError."""
    path, recipe = source / file.path, estimators.recipe
    if not path.is_file() or path.stat().st_size != file.bytes:
        raise VideoError("the file is gone or was changed after it was planned", transient=True)
    meta = {"source": file.path, "source_size": [file.width, file.height]}
    if file.kind == "image":
        frames = read_image(path)[None]
        yield "pil", *make(sample_key(file.path), "image", frames, file.bucket, meta, estimators)
        return
    planned = windows(recipe, file.frames)
    for window, (reader, frames) in zip(planned, read_clips(path, planned), strict=True):
        facts = {**meta, "fps": file.fps, "first_frame": window[0], "stride": recipe.stride}
        key = f"{sample_key(file.path)}-{window[0]:06d}"
        yield reader, *make(key, "video", frames, file.bucket, facts, estimators)
        if stills and (bucket := still_bucket(file, recipe)):
            middle = recipe.frames // 2
            facts = {**meta, "fps": file.fps, "first_frame": window[middle]}
            yield reader, *make(f"{key}-still", "image", frames[middle : middle + 1], bucket, facts, estimators)


def make(
    key: str, kind: str, frames: np.ndarray, bucket: str, meta: dict[str, Any], estimators: Estimators
) -> tuple[Sample, Pool]:
    """uint8 frames (n, H, W, 3) of any size -> the sample of its bucket, and its pool."""
    width, height = parse_bucket(bucket)
    sample = estimators.sample(key, resize_and_crop(frames, width, height), {"kind": kind, **meta})
    return sample, Pool(kind, width, height, len(frames))


def still_bucket(file: MediaFile, recipe: RecipeConfig) -> str | None:
    """The image bucket of a video's stills; None if they would have to be enlarged too much."""
    bucket = nearest_bucket(file.width, file.height, recipe.image_buckets)
    factor = enlargement(file.width, file.height, *parse_bucket(bucket))
    return bucket if factor <= recipe.max_enlargement else None


def sample_key(path: str) -> str:
    """A key that is readable, unique for each path, stable, and without the dots that would split it in a tar."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", path.rpartition(".")[0]).strip("-")[-60:] or "file"
    digest = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=5).hexdigest()
    return f"{readable}-{digest}"

"""A full checkpoint: weights, AdamW's moments and an average, from the GPU to the disk of TMPDIR."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.on_gpu.batches import with_structure
from benchmarks.on_gpu.runner import Skip
from benchmarks.on_gpu.scale import Scale
from benchmarks.questions import Row
from benchmarks.training.saving import TimedSaver
from gen1_train.model.unet import SpatioTemporalUNet


def checkpoint_rows(scale: Scale) -> Iterator[Row]:
    """Yields the seconds of a checkpoint: gathered, for which training waits, and written, with the parts of that."""
    with scale.device:
        unet = SpatioTemporalUNet(with_structure(scale.unet))
    with tempfile.TemporaryDirectory() as folder:
        needed = 16 * sum(weight.numel() for weight in unet.parameters())  # weights, two moments, an average
        if shutil.disk_usage(folder).free < 1.1 * needed:
            raise Skip(f"TMPDIR has no {needed / 1e9:.0f} GB")
        saver = TimedSaver(unet, Path(folder))
        seconds = saver.save(step=1)
        yield {"GB": round(saver.gigabytes, 3), **{f"{name}_s": round(value, 2) for name, value in seconds.items()}}

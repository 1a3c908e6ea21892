"""Shard sets for benchmarks in the real format: with natural or random frames, or only a manifest without shards."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from webdataset import TarWriter

from gen1_train.batch import Pool, Sample, encode_sample
from gen1_train.data.index import build_index, index_path, write_index
from gen1_train.data.manifest import Manifest, PoolShards, Shard

FACTOR = 8  # pixels per latent
STRIDE = 4  # frames of the video between two of a clip, as in the paper


def read_video(path: Path, pool: Pool) -> np.ndarray:
    """Reads all frames of a video at a pool's size, uint8 (frames, h, w, 3)."""
    with av.open(str(path)) as container:
        frames = [frame.reformat(pool.width, pool.height, "rgb24").to_ndarray() for frame in container.decode(video=0)]
    return np.stack(frames)


def natural_samples(videos: list[np.ndarray], pool: Pool, count: int, content: int) -> Iterator[Sample]:
    """Yields clips from random positions of videos. Their structure is blurred brightness, as large in PNG as depth.

    `content` is the width of a CLIP embedding.
    """
    rng = np.random.default_rng(0)
    for number in range(count):
        video = videos[number % len(videos)]
        start = rng.integers(len(video) - (pool.frames - 1) * STRIDE)
        frames = video[start::STRIDE][: pool.frames]
        yield random_sample(f"{pool.kind}-{number:06d}", pool, rng, content, frames)


def random_samples(pool: Pool, count: int, content: int) -> Iterator[Sample]:
    """Yields samples of soft blobs with grain, whose JPEGs are about as large as those of footage."""
    rng = np.random.default_rng(0)
    size = (pool.width, pool.height)
    for number in range(count):
        coarse = rng.uniform(0, 255, (pool.frames, 12, 20, 3)).astype(np.float32)
        soft = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in coarse])
        frames = np.clip(soft + rng.normal(0, 4, soft.shape), 0, 255).astype(np.uint8)
        yield random_sample(f"{pool.kind}-{number:06d}", pool, rng, content, frames)


def random_sample(key: str, pool: Pool, rng: np.random.Generator, content: int, frames: np.ndarray) -> Sample:
    """Builds a sample of these frames; its latents and embeddings are noise, as incompressible as real ones."""
    shape = (pool.frames, 4, pool.height // FACTOR, pool.width // FACTOR)
    return Sample(
        key,
        frames=frames,
        structure=np.stack([like_depth(frame) for frame in frames]),
        moments=rng.standard_normal((shape[0], 8, *shape[2:])).astype(np.float16),
        structure_latent=rng.standard_normal(shape).astype(np.float16),
        image_embedding=rng.standard_normal((pool.frames, content)).astype(np.float16),
        text_embedding=rng.standard_normal(content).astype(np.float16),
        caption="a caption of the usual length, of what one sees in the clip",
        meta={"source": f"footage/{key}.mp4", "fps": 25.0, "frames": list(range(0, STRIDE * pool.frames, STRIDE))},
    )


def like_depth(frame: np.ndarray) -> np.ndarray:
    soft = cv2.GaussianBlur(frame.astype(np.float32).mean(axis=-1), (0, 0), 6)
    return ((soft - soft.min()) / (np.ptp(soft) or 1) * 65535).astype(np.uint16)


def write_set(root: Path, pools: Mapping[Pool, Iterable[Sample]], shard_samples: int, pixels: bool = True) -> Path:
    """Writes a frozen set; `pixels=False` omits frames and structure."""
    (root / "shards").mkdir(parents=True)
    written: dict[str, PoolShards] = {}
    content = 0
    for pool, samples in pools.items():
        writer = None
        shards: list[Path] = []
        for number, sample in enumerate(samples):
            if number % shard_samples == 0:
                shards.append(root / "shards" / f"{pool.name}-{len(shards):06d}.tar")
                if writer is not None:
                    writer.close()
                writer = TarWriter(str(shards[-1]), mtime=0, user="gen1", group="gen1", mode=0o644)
            if not pixels:
                sample.frames = sample.structure = None
            assert writer is not None and sample.image_embedding is not None
            content = sample.image_embedding.shape[-1]
            writer.write({"__key__": sample.key, **encode_sample(sample)})
        assert writer is not None
        writer.close()
        written[pool.name] = PoolShards(pool.kind, pool.width, pool.height, pool.frames, tuple(map(freeze, shards)))
    save_manifest(root, written, content)
    return root


def freeze(tar: Path) -> Shard:
    entries = build_index(tar)
    return Shard(tar.name, len(entries), tar.stat().st_size, write_index(tar, entries))


def bytes_per_sample(shards: list[Path]) -> tuple[float, float]:
    """Returns the bytes per sample of the tars and of their indexes."""
    samples = sum(len(build_index(tar)) for tar in shards)
    tar_bytes = sum(tar.stat().st_size for tar in shards)
    index_bytes = sum(index_path(tar).stat().st_size for tar in shards)
    return tar_bytes / samples, index_bytes / samples


def save_manifest(root: Path, pools: dict[str, PoolShards], content: int) -> None:
    """Writes a manifest; `content` is the width of the CLIP embeddings."""
    estimators: dict[str, dict[str, Any]] = {
        "autoencoder": {"config": {"path": "none"}, "fingerprint": "made", "scale": 0.5, "factor": FACTOR},
        "structure": {"kind": "depth", "config": {}, "fingerprint": "made"},
        "clip": {"config": {}, "fingerprint": "made", "width": content},
    }
    Manifest(pools=pools, recipe={}, estimators=estimators, plan="made").save(root)


def paper_pools(samples: dict[Pool, int], shard_samples: dict[Pool, int], shard_bytes: int) -> dict[str, PoolShards]:
    """Describes pools with this many samples in full shards, for a manifest of the paper's scale; writes no shards."""
    pools = {}
    for pool, count in samples.items():
        per_shard = shard_samples[pool]
        sizes = [min(per_shard, count - begin) for begin in range(0, count, per_shard)]
        shards = [
            Shard(f"{pool.name}-{number:06d}.tar", size, shard_bytes * size // per_shard, number * 2654435761 % 2**32)
            for number, size in enumerate(sizes)
        ]
        pools[pool.name] = PoolShards(pool.kind, pool.width, pool.height, pool.frames, tuple(shards))
    return pools

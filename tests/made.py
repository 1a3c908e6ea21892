"""Small random inputs that many tests need: samples, shard sets and Stable Diffusions."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from webdataset import TarWriter

from gen1_train.batch import Pool, Sample, encode_sample
from gen1_train.data.index import build_index, write_index
from gen1_train.data.manifest import Manifest, PoolShards, Shard

WIDTH = 64  # of the CLIP embeddings
FACTOR = 8
ESTIMATORS: dict[str, dict[str, Any]] = {  # of a manifest
    "autoencoder": {"config": {"path": "none"}, "fingerprint": "made", "scale": 0.5, "factor": FACTOR},
    "structure": {"kind": "depth", "config": {}, "fingerprint": "made"},
    "clip": {"config": {}, "fingerprint": "made", "width": WIDTH},
}


def make_sample(key: str, pool: Pool, seed: int) -> Sample:
    """A sample with all members."""
    rng = np.random.default_rng(seed)
    n, h, w = pool.frames, pool.height, pool.width
    latent = (h // FACTOR, w // FACTOR)
    return Sample(
        key=key,
        frames=rng.integers(0, 256, (n, h, w, 3), dtype=np.uint8),
        structure=rng.integers(0, 65536, (n, h, w), dtype=np.uint16),
        moments=rng.standard_normal((n, 8, *latent)).astype(np.float16) - 2,
        structure_latent=rng.standard_normal((n, 4, *latent)).astype(np.float16),
        image_embedding=rng.standard_normal((n, WIDTH)).astype(np.float16),
        text_embedding=rng.standard_normal(WIDTH).astype(np.float16),
        caption=f"made thing {seed}",
        meta={"source": f"made/{key}"},
    )


def make_sample_with_levels(key: str, pool: Pool, seed: int) -> Sample:
    """A sample with all members, and the structure's latents of all levels."""
    sample = make_sample(key, pool, seed)
    rng = np.random.default_rng(seed + 1)
    for level in range(1, 8):
        sample.degraded_latents[level] = rng.standard_normal(sample.structure_latent.shape).astype(np.float16)  # type: ignore[union-attr]
    return sample


def make_shard_set(
    root: Path,
    clips: int = 12,
    images: int = 40,
    width: int = 32,
    height: int = 16,
    frames: int = 4,
    shards: int = 2,
    make: Callable[[str, Pool, int], Sample] = make_sample,
    longer: Mapping[int, int] | None = None,
) -> Path:
    """Writes a frozen set of random samples, one pool of videos and one of images, each in `shards` tars.

    `longer`: frames -> number of clips in a further pool of videos.
    """
    (root / "shards").mkdir(parents=True)
    counts = {Pool("video", width, height, frames): clips, Pool("image", width, height, 1): images}
    counts |= {Pool("video", width, height, each, longer=True): count for each, count in (longer or {}).items()}
    pools = {}
    for pool, count in counts.items():
        written = []
        for number, part in enumerate(np.array_split(np.arange(count), shards)):
            tar = root / "shards" / f"{pool.name}-{number:06d}.tar"
            with TarWriter(str(tar), mtime=0, user="gen1", group="gen1", mode=0o644) as writer:
                for i in part:
                    key = f"{pool.kind}-{i:03d}" + (f"-{pool.frames}f" if pool.longer else "")
                    seed = int(i) + (1000 if pool.kind == "image" else 0)
                    writer.write({"__key__": key, **encode_sample(make(key, pool, seed))})
            entries = build_index(tar)
            written.append(Shard(tar.name, len(entries), tar.stat().st_size, write_index(tar, entries)))
        pools[pool.name] = PoolShards(**asdict(pool), shards=tuple(written))
    Manifest(pools=pools, recipe={}, estimators=deepcopy(ESTIMATORS), plan="made").save(root)
    return root


def make_stable_diffusion(folder: Path) -> None:
    """Writes a random Stable Diffusion that stage 1 of `tests.running.TRAIN` starts from."""
    from miniature.tiny import write_stable_diffusion  # it imports what few tests need

    # Of seeds 0 to 8, the one with most room in the comparison of one rank with two (tests/integration/test_stages.py):
    # the largest difference of a weight is 0.1 of its bound; 0.2 to 0.7 with seeds 1, 2 and 4 to 8; 6 with seed 0.
    write_stable_diffusion(folder, widths=(32, 64), attention=(False, False), layers=1, heads=2, seed=3)

"""Converts a user's folder of images of one subject into a small frozen shard set inside the run folder.

RUN/images/images.json    which images are used, held out and left out, and a digest of their bytes and the networks
RUN/images/train/         a shard set: image pools at the buckets that the model was trained on
RUN/images/held_out/      another one, of every Nth image, which shows over-fitting; absent if none is held out

The folder is written once, completely or not at all, and again when an image was changed, added or removed.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gen1_train.batch import Pool, Sample, SampleError, encode_sample, validate
from gen1_train.data.manifest import Manifest, PoolShards
from gen1_train.data.pack import open_tar, seal
from gen1_train.diffusion.structure import MAX_LEVEL, PIXELS
from gen1_train.errors import UserError
from gen1_train.frozen.levels import with_levels
from gen1_train.frozen.networks import Networks
from gen1_train.system.console import progress
from gen1_train.system.files import sync
from gen1_train.system.records import make_record, read_json
from gen1_train.video.errors import VideoError
from gen1_train.video.formats import IMAGE_SUFFIXES, Content, content_of
from gen1_train.video.geometry import enlargement, kept_share, nearest_bucket, parse_bucket, resize_and_crop
from gen1_train.video.image import read_image

USUAL = (15, 30)  # images of a subject; ours, after DreamBooth and Gen-1
SEEN = 0.6  # share of an image's area: a note is printed when cropping leaves less; ours
VERSION = 1  # of the way in which samples are computed from an image
FOLDER = "images"
RECORD = "images.json"
TRAIN = "train"
HELD_OUT = "held_out"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """The contents of RUN/images."""

    folder: Path
    buckets: list[str]  # sizes that the images were resized to: those of the checkpoint
    used: list[str]  # names of the files to train on
    held_out: list[str]
    left_out: dict[str, str]  # name -> reason why it cannot be used
    digest: str

    @property
    def train(self) -> Path:
        return self.folder / TRAIN

    @property
    def validation(self) -> Path | None:
        return self.folder / HELD_OUT if self.held_out else None


@dataclass(frozen=True)
class _Record:
    """The content of RECORD, see Subject."""

    buckets: list[str]
    used: list[str]
    held_out: list[str]
    left_out: dict[str, str]
    digest: str


@dataclass(frozen=True)
class Picture:
    name: str
    frames: np.ndarray  # uint8 (1, h, w, 3), at its bucket's size
    meta: dict[str, Any]


def find_images(folder: Path) -> dict[str, str]:
    """Returns the image files in a folder, by suffix or by content: name -> sha256 of the bytes, sorted by name.

    Raises UserError when the folder does not exist or has no image in it.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        images = [path for path in paths if is_image_file(path)]
        hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in images}
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"images={folder} is not a folder: give one with 15 to 30 images of the subject") from None
    except OSError as error:
        raise UserError(f"images={folder} cannot be read ({error.strerror}): {error.filename}") from error
    if not hashes:
        raise UserError(
            f"images={folder} has no image in it (JPEG, PNG, WebP, HEIC, AVIF, TIFF, BMP, GIF): put 15 to 30 images of "
            "the subject there"
        )
    return hashes


def is_image_file(path: Path) -> bool:
    """Whether a file should be an image: a damaged one is named when it is read, rather than passed over."""
    return path.suffix.lower() in IMAGE_SUFFIXES or content_of(path) is Content.IMAGE


def subject_digest(
    hashes: Mapping[str, str],
    buckets: Sequence[str],
    estimators: Mapping[str, Any],
    every: int,
    degradation: str = PIXELS,
) -> str:
    """Hashes everything that the contents of the sets depend on."""
    prints = {name: estimators.get(name, {}).get("fingerprint") for name in ("autoencoder", "structure", "clip")}
    parts = [VERSION, list(hashes.items()), list(buckets), prints, every]
    parts += [degradation] if degradation != PIXELS else []  # the only one of older versions
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_subject(run: Path, digest: str) -> Subject | None:
    """Returns the subject that RUN/images holds; None if there is none, or it has another digest."""
    folder = run / FOLDER
    try:
        record = make_record(_Record, read_json(folder / RECORD))
    except (OSError, ValueError):
        return None
    return Subject(folder, **vars(record)) if record.digest == digest else None


def make_subject(
    *,
    run: Path,
    folder: Path,
    hashes: Mapping[str, str],
    buckets: Sequence[str],
    clip_buckets: Sequence[str],
    estimators: Mapping[str, Any],
    source: str,
    every: int,
    degradation: str,
    device: torch.device,
) -> Subject:
    """Writes RUN/images from the files `hashes` in `folder`, with the `estimators` that checkpoint `source` records.

    `buckets`: the sizes of images; `clip_buckets`: those of clips, which the sets record for later checkpoints.
    Every Nth image is held out (`every`; 0: none). Each image that cannot be used, or that is cropped heavily, is
    named. Raises UserError when none can be used.
    """
    pictures, left_out = read_pictures(folder, hashes, buckets)
    if not pictures:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
        raise UserError(f"no image in images={folder} can be used ({reasons}): give 15 to 30 images of the subject")
    held_out = [picture for i, picture in enumerate(pictures) if every and i % every == every - 1]
    used = [picture for picture in pictures if picture not in held_out]
    networks = Networks.recorded(estimators, source, device)
    run.mkdir(parents=True, exist_ok=True)
    for leftover in run.glob(f".{FOLDER}.*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{FOLDER}.", dir=run))
    subject = Subject(
        folder=run / FOLDER,
        buckets=list(buckets),
        used=[picture.name for picture in used],
        held_out=[picture.name for picture in held_out],
        left_out=left_out,
        digest=subject_digest(hashes, buckets, estimators, every, degradation),
    )
    try:
        recipe = {"buckets": list(clip_buckets), "image_buckets": list(buckets)}
        with progress(title="images", unit="image", total=len(pictures), keep=False) as bar:
            freeze(temporary / TRAIN, used, networks, estimators, recipe, degradation, bar.update)
            if held_out:
                freeze(temporary / HELD_OUT, held_out, networks, estimators, recipe, degradation, bar.update)
        record = {name: value for name, value in asdict(subject).items() if name != "folder"}
        (temporary / RECORD).write_text(json.dumps(record, indent=1))
        temporary.chmod(run.stat().st_mode & 0o777)  # mkdtemp gives access to the owner only
        shutil.rmtree(subject.folder, ignore_errors=True)
        os.replace(temporary, subject.folder)
        sync(run)
    except OSError as error:
        raise UserError(f"{run / FOLDER} cannot be written ({error.strerror or error}): free space there") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return subject


def read_pictures(
    folder: Path, hashes: Mapping[str, str], buckets: Sequence[str]
) -> tuple[list[Picture], dict[str, str]]:
    """Reads the images, resized to the nearest bucket; of those that cannot be used returns name -> reason."""
    pictures: list[Picture] = []
    left_out: dict[str, str] = {}
    seen: dict[str, str] = {}  # sha256 -> name
    for name, content in hashes.items():
        if content in seen:
            left_out[name] = f"the same as {seen[content]}"
            continue
        try:
            image = read_image(folder / name)
        except VideoError as error:
            left_out[name] = str(error)
            continue
        seen[content] = name
        h, w = image.shape[:2]
        bucket = nearest_bucket(w, h, buckets)
        width, height = parse_bucket(bucket)
        share = kept_share(w, h, width, height)
        if share < SEEN:
            logger.info(
                f"note: only the center of {name} ({w}x{h}), {share:.0%}, is left in {bucket}: crop it to the subject"
            )
        if (scale := enlargement(w, h, width, height)) > 1:
            logger.info(f"note: {name} ({w}x{h}) is small: it is enlarged {scale:.2g} times, to {bucket}")
        pictures.append(Picture(name, resize_and_crop(image[None], width, height), {"source": name, "bucket": bucket}))
    for name, reason in left_out.items():
        logger.warning(f"{name} is left out: {reason}")
    if not USUAL[0] <= len(pictures) <= USUAL[1]:
        logger.info(f"note: there are {len(pictures)} images of the subject; {USUAL[0]} to {USUAL[1]} are usual")
    return pictures, left_out


def freeze(
    root: Path,
    pictures: Sequence[Picture],
    networks: Networks,
    estimators: Mapping[str, Any],
    recipe: dict[str, Any],
    degradation: str,
    done: Callable[[], object],
) -> None:
    """Writes a shard set with an image pool for each bucket; `done` is called after each image.

    Raises UserError for an image whose structure cannot be estimated, and OSError.
    """
    (root / "shards").mkdir(parents=True)
    pools = {}
    for bucket in sorted({picture.meta["bucket"] for picture in pictures}):
        pool = Pool("image", *parse_bucket(bucket), 1)
        tar = root / "shards" / f"{pool.name}-000000.tar"
        with open_tar(tar) as packer:
            for number, picture in enumerate(pictures):
                if picture.meta["bucket"] == bucket:
                    sample = make_sample(f"subject-{number:04d}", picture, networks, degradation)
                    validate(sample, pool)
                    packer.write(sample.key, encode_sample(sample))
                    done()
        pools[pool.name] = PoolShards("image", pool.width, pool.height, 1, (seal(tar, packer.entries),))
    recorded = {name: dict(estimators[name]) for name in ("autoencoder", "structure", "clip")}
    recorded["autoencoder"] = with_levels({**recorded["autoencoder"], "stored": True}, MAX_LEVEL, degradation)
    Manifest(pools, recipe, estimators=recorded, plan="images of a subject").save(root)


def make_sample(key: str, picture: Picture, networks: Networks, degradation: str) -> Sample:
    """Computes all members that training may read of an image, with and without latents. Raises UserError."""
    clip = picture.frames[None]
    estimate = networks.maps(clip)[0]
    if isinstance(estimate, SampleError):
        raise UserError(f"{picture.name} cannot be trained on: {estimate}; remove it from the folder")
    structure, extent = estimate
    return Sample(
        key,
        frames=picture.frames,
        structure=structure,
        moments=networks.moments(clip)[0],
        structure_latent=networks.structure_latents(structure),
        image_embedding=networks.image_embeddings(clip)[0],
        meta={**picture.meta, "structure": networks.kind, "structure_range": extent},
        degraded_latents={
            level: networks.structure_latents(structure, level, degradation) for level in range(1, MAX_LEVEL + 1)
        },
    )

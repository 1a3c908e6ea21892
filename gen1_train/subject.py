"""Images of a subject, as a user has them in a folder, become a small frozen shard set inside a run.

RUN/images/images.json    what was used, held out and left out, and of which bytes and networks all of it was made
RUN/images/train/         a shard set: image pools at the buckets that the model knows
RUN/images/held_out/      another: every so many-th image, on which over-fitting is seen; if there are any

Made once, whole or not there; made anew when an image was changed, added or taken away.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from gen1_train.batch import Pool, Sample, SampleError, encode_sample, validate
from gen1_train.data.pack import open_tar, seal
from gen1_train.data.shards import Manifest, PoolShards
from gen1_train.errors import UserError
from gen1_train.files import sync
from gen1_train.networks import Networks
from gen1_train.video.geometry import enlargement, nearest_bucket, parse_bucket, resize_and_crop
from gen1_train.video.image import read_image
from gen1_train.video.probe import VideoError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
USUAL = 15, 30  # images of a subject; ours, from DreamBooth's and Gen-1's practice
ALL_SEEN = 0.6  # of an image's area: where less is left after cropping, it is said; ours
VERSION = 1  # of what is made of an image
FOLDER, RECORD, TRAIN, HELD_OUT = "images", "images.json", "train", "held_out"


@dataclass(frozen=True)
class Subject:
    """What RUN/images holds."""

    folder: Path
    buckets: list[str]  # that the images were brought to: those of the checkpoint
    used: list[str]  # names of the files that are trained on
    held_out: list[str]
    left_out: dict[str, str]  # name -> why it cannot be used
    digest: str

    @property
    def train(self) -> Path:
        return self.folder / TRAIN

    @property
    def validation(self) -> Path | None:
        return self.folder / HELD_OUT if self.held_out else None


@dataclass(frozen=True)
class Picture:
    name: str
    frames: np.ndarray  # uint8 (1, h, w, 3), at its bucket's size
    meta: dict[str, Any]


def find_images(folder: Path) -> dict[str, str]:
    """The image files in a folder, by their suffix: name -> sha256 of the bytes, in the order of the names.

    Raises UserError when there is no such folder or no image in it.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        found = [path for path in paths if path.suffix.lower() in SUFFIXES]
        hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"images={folder} is no folder: give one with 15 to 30 images of the subject") from None
    except OSError as error:
        raise UserError(f"images={folder} cannot be read ({error.strerror}): {error.filename}") from error
    if not hashes:
        raise UserError(
            f"images={folder} has no image in it ({', '.join(SUFFIXES)}): put 15 to 30 of the subject there"
        )
    return hashes


def digest_of(hashes: Mapping[str, str], buckets: Sequence[str], made_by: Mapping[str, Any], every: int) -> str:
    """Of all that decides what the sets hold."""
    prints = {name: made_by.get(name, {}).get("fingerprint") for name in ("autoencoder", "structure", "clip")}
    parts = [VERSION, list(hashes.items()), list(buckets), prints, every]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_subject(run: Path, digest: str) -> Subject | None:
    """What is made already; None if that is of other images, or nothing is there."""
    folder = run / FOLDER
    try:
        content = json.loads((folder / RECORD).read_text())
        return Subject(folder, **content) if content["digest"] == digest else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def make_subject(
    run: Path,
    folder: Path,
    hashes: Mapping[str, str],
    buckets: Sequence[str],
    made_by: Mapping[str, Any],
    where: str,
    every: int,
    device: torch.device,
    say: Callable[[str], None],
) -> Subject:
    """Makes RUN/images of the files `hashes` in `folder`, by the networks `made_by` that stand in checkpoint `where`.

    Every image that cannot be used, or of which much is cut away, is named. Raises UserError when none can be used.
    """
    pictures, left_out = read_pictures(folder, hashes, buckets, say)
    if not pictures:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
        raise UserError(f"no image in images={folder} can be used ({reasons}): give 15 to 30 images of the subject")
    held = [picture for i, picture in enumerate(pictures) if every and i % every == every - 1]
    used = [picture for picture in pictures if picture not in held]
    networks = Networks.recorded(made_by, where, device)
    run.mkdir(parents=True, exist_ok=True)
    for killed in run.glob(f".{FOLDER}.*"):
        shutil.rmtree(killed, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{FOLDER}.", dir=run))
    digest = digest_of(hashes, buckets, made_by, every)
    names = [picture.name for picture in used], [picture.name for picture in held]
    subject = Subject(run / FOLDER, list(buckets), *names, left_out, digest)
    try:
        recipe = {"buckets": list(buckets)}
        with tqdm(total=len(pictures), desc="images", unit="image", leave=False) as bar:
            freeze(temporary / TRAIN, used, networks, made_by, recipe, bar.update)
            if held:
                freeze(temporary / HELD_OUT, held, networks, made_by, recipe, bar.update)
        record = {name: value for name, value in asdict(subject).items() if name != "folder"}
        (temporary / RECORD).write_text(json.dumps(record, indent=1))
        temporary.chmod(run.stat().st_mode & 0o777)  # mkdtemp makes it for the owner alone
        shutil.rmtree(subject.folder, ignore_errors=True)
        os.replace(temporary, subject.folder)
        sync(run)
    except OSError as error:
        raise UserError(f"{run / FOLDER} cannot be written ({error.strerror or error}): make room there") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return subject


def read_pictures(
    folder: Path, hashes: Mapping[str, str], buckets: Sequence[str], say: Callable[[str], None]
) -> tuple[list[Picture], dict[str, str]]:
    """All images that can be used, at the size of the nearest bucket, and why the others cannot be."""
    pictures, left_out, seen = [], dict[str, str](), dict[str, str]()
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
        share = width * height / enlargement(w, h, width, height) ** 2 / (w * h)
        if share < ALL_SEEN:
            say(f"note: of {name} ({w}x{h}) only the centre, {share:.0%}, is seen in {bucket}: crop it to the subject")
        if (scale := enlargement(w, h, width, height)) > 1:
            say(f"note: {name} ({w}x{h}) is small: it is enlarged {scale:.2g} times to {bucket}")
        pictures.append(Picture(name, resize_and_crop(image[None], width, height), {"source": name, "bucket": bucket}))
    for name, reason in left_out.items():
        say(f"warning: {name} is left out: {reason}")
    if not USUAL[0] <= len(pictures) <= USUAL[1]:
        say(f"note: {len(pictures)} images of the subject; {USUAL[0]} to {USUAL[1]} are usual")
    return pictures, left_out


def freeze(
    root: Path,
    pictures: Sequence[Picture],
    networks: Networks,
    made_by: Mapping[str, Any],
    recipe: dict[str, Any],
    done: Callable[[], object],
) -> None:
    """Writes a shard set with an image pool for each bucket. Raises UserError for what cannot be estimated, OSError."""
    (root / "shards").mkdir(parents=True)
    pools = {}
    for bucket in sorted({picture.meta["bucket"] for picture in pictures}):
        pool = Pool("image", *parse_bucket(bucket), 1)
        tar = root / "shards" / f"{pool.name}-000000.tar"
        with open_tar(tar) as packer:
            for number, picture in enumerate(pictures):
                if picture.meta["bucket"] == bucket:
                    sample = make_sample(f"subject-{number:04d}", picture, networks)
                    validate(sample, pool)
                    packer.write(sample.key, encode_sample(sample))
                    done()
        pools[pool.name] = PoolShards("image", pool.width, pool.height, 1, (seal(tar, packer.entries),))
    estimators = {name: dict(made_by[name]) for name in ("autoencoder", "structure", "clip")}
    estimators["autoencoder"]["stored"] = True
    Manifest(pools, recipe, estimators=estimators, plan="images of a subject").save(root)


def make_sample(key: str, picture: Picture, networks: Networks) -> Sample:
    """All that training reads of an image, and all that a set without latents is read for. Raises UserError."""
    clip = picture.frames[None]
    found = networks.maps(clip)[0]
    if isinstance(found, SampleError):
        raise UserError(f"{picture.name} cannot be trained on: {found}; take it away")
    structure, extent = found
    return Sample(
        key,
        frames=picture.frames,
        structure=structure,
        moments=networks.moments(clip)[0],
        structure_latent=networks.structure_latents(structure),
        image_embedding=networks.image_embeddings(clip)[0],
        meta={**picture.meta, "structure": networks.kind, "structure_range": extent},
    )

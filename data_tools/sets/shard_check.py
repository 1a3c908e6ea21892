"""Checks one shard against its index, the manifest and the contract: one pass over the tar, one sample in memory."""

import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gen1_train.batch import (
    Pool,
    Sample,
    SampleError,
    decode_member,
    latent_field,
    members_of,
    set_array,
    split_planes,
    validate,
)
from gen1_train.data.index import BLOCK, Entry, index_path, padded, read_index
from gen1_train.data.manifest import Manifest, Shard
from gen1_train.diffusion.planes import kinds_of
from gen1_train.errors import UserError
from gen1_train.system.files import open_regular
from gen1_train.system.names import shown

LISTED = 100  # problems of one shard that are listed: a shard with more must be replaced anyway
CAPTION, TEXT = "caption.txt", "text_embedding.npy"
LATENTS = ("moments", *map(latent_field, range(10)))  # all fields of latents, at any t_s


@dataclass(frozen=True)
class Problem:
    """Something in a set that differs from what was frozen, or breaks the contract."""

    file: str  # path in the set: manifest.json, shards/video-448x256-000000.tar
    reason: str  # one line
    sample: str = ""  # key; empty: the whole file
    member: str = ""  # for example frame00.jpg; empty: the whole sample or file

    def __str__(self) -> str:
        member = ".".join(part for part in (self.sample, self.member) if part)
        return ": ".join(part for part in (self.file, member, self.reason) if part)


@dataclass(frozen=True)
class Rules:
    """Requirements on every sample of a pool."""

    pool: Pool
    required: tuple[str, ...]  # members
    width: int  # of CLIP embeddings
    latent: tuple[int, int]  # height and width of the latents
    planes: int = 1  # of the structure

    @classmethod
    def of(cls, manifest: Manifest, pool: Pool) -> "Rules":
        """Returns the rules that a manifest sets for one of its pools."""
        autoencoder = manifest.estimators["autoencoder"]
        fields = ["frames", "structure", "image_embedding", "meta"]
        if autoencoder.get("stored", True):  # else training encodes the frames itself
            levels = autoencoder.get("levels") or {"highest": 0}
            fields += ["moments", *map(latent_field, range(levels["highest"] + 1))]
        factor = autoencoder["factor"]
        return cls(
            pool,
            tuple(member for name in fields for member in members_of(name, pool.frames)),
            manifest.estimators["clip"]["width"],
            (pool.height // factor, pool.width // factor),
            len(kinds_of(str(manifest.estimators["structure"]["kind"]))),
        )


@dataclass
class ShardReport:
    """The result of the check of one shard."""

    shard: Shard
    problems: list[Problem] = field(default_factory=list)
    unlisted: int = 0  # problems beyond the first LISTED
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))  # key_hash of every sample

    def add(self, reason: str, sample: str = "", member: str = "", file: str = "") -> None:
        """Adds a problem, by default of the tar."""
        if len(self.problems) < LISTED:
            self.problems.append(Problem(f"shards/{file or self.shard.name}", reason, sample, member))
        else:
            self.unlisted += 1


def key_hash(key: str) -> int:
    """Returns a hash of a key in 64 bits: 240 million keys would not fit into memory."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def check_shard(root: Path, shard: Shard, rules: Rules, advance: Callable[[int], Any]) -> ShardReport:
    """Reads a whole shard and lists what is wrong; calls `advance` with the bytes read. Raises nothing."""
    report = ShardReport(shard)
    tar = root / "shards" / shard.name
    entries = read_entries(tar, report)
    report.keys = np.array([key_hash(entry.key) for entry in entries], np.uint64)
    try:
        with open_regular(tar) as stream:
            check_tar(stream, entries, rules, report, advance)
    except FileNotFoundError:
        report.add("the shard is missing")
    except OSError as error:
        report.add(f"it cannot be read ({error.strerror or error})")
    return report


def read_entries(tar: Path, report: ShardReport) -> list[Entry]:
    """Returns the shard's index; empty if it is missing or damaged, since the members then cannot be checked."""
    path, shard = index_path(tar), report.shard
    try:
        entries = read_index(tar, shard.crc32)
    except UserError as error:
        report.add(str(error).removeprefix(f"{path} "), file=path.name)
        return []
    if len(entries) != shard.samples:
        report.add(f"names {len(entries)} samples, the manifest says {shard.samples}", file=path.name)
    return entries


def check_tar(
    stream: BinaryIO, entries: list[Entry], rules: Rules, report: ShardReport, advance: Callable[[int], Any]
) -> None:
    """Checks the tar sample by sample, in the order of the index."""
    size = os.fstat(stream.fileno()).st_size
    if size != report.shard.bytes:
        report.add(f"has {size} bytes, the manifest says {report.shard.bytes}")
    start = 0
    for number, entry in enumerate(entries):
        cut = [name for name, (offset, length, _) in entry.members.items() if offset + length > size]
        if cut:
            rest = len(entries) - number - 1
            report.add(f"the tar ends before the end of this member, and before {rest} more samples", entry.key, cut[0])
            return
        end = max([padded(offset + length) for offset, length, _ in entry.members.values()], default=start)
        part = stream.read(max(0, end - start))
        advance(len(part))
        check_headers(part, start, entry, report)
        check_sample(part, start, entry, rules, report)
        start = max(start, end)
    if entries and size == report.shard.bytes:
        check_end(stream.read(), report)


def check_headers(part: bytes, start: int, entry: Entry, report: ShardReport) -> None:
    """Checks that a reader without the index finds the same members. `part` begins at a header, so it is a tar."""
    headers = {start + info.offset_data: info for info in _headers(part)}
    for name, (offset, size, _) in entry.members.items():
        info = headers.pop(offset, None)
        if info is None:  # the rest of this sample cannot be compared
            report.add("its tar header cannot be read, or is not where the index says", entry.key, name)
            return
        if (info.name, info.size) != (f"{entry.key}.{name}", size) or not info.isreg():
            reason = f"the tar has {_printable(info.name)} with {info.size} bytes there, not {size}"
            report.add(reason, entry.key, name)
    for info in headers.values():
        report.add("is in the tar but not in the index", _printable(info.name))


def _printable(name: str) -> str:
    """A name in a tar, which may hold anything, in a form that a terminal may show."""
    return name if name.isascii() and name.isprintable() and len(name) <= 300 else shown(name)


def _headers(part: bytes) -> list[tarfile.TarInfo]:
    """Returns the members of a part of a tar, as far as their headers can be read."""
    infos: list[tarfile.TarInfo] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(part), mode="r:") as archive:
            for info in archive:
                infos.append(info)
    except Exception:  # tarfile raises more than its own errors: ValueError, RecursionError, OverflowError
        pass  # the comparison with the index reports the missing ones
    return infos


def check_end(tail: bytes, report: ShardReport) -> None:
    """Checks that only the end-of-archive mark, two or more blocks of zeros, follows the last sample."""
    if any(tail):
        report.add("has data after the last sample that the index does not know")
    elif len(tail) < 2 * BLOCK:
        report.add("its end-of-archive mark is missing")


def check_sample(part: bytes, start: int, entry: Entry, rules: Rules, report: ShardReport) -> None:
    """Checks the members of one sample: all present, intact, and according to the contract."""
    names = set(entry.members)
    for name in rules.required:
        if name not in names:
            report.add("is missing", entry.key, name)
    for name, other in ((CAPTION, TEXT), (TEXT, CAPTION)):
        if name not in names and other in names:
            report.add(f"is missing, although there is {other}", entry.key, name)
    for name in sorted(names.difference(rules.required, (CAPTION, TEXT), _optional(rules.pool))):
        report.add("is not a member of the samples of this pool", entry.key, name)
    decoded: dict[str, Any] = {}
    for name, (offset, size, crc32) in entry.members.items():
        position = offset - start
        data = part[position : position + size] if position >= 0 else b""
        if any(part[max(0, position + size) : padded(offset + size) - start]):
            report.add("is not followed by zeros up to the next block", entry.key, name)
        if zlib.crc32(data) != crc32:
            report.add("is damaged (its crc32 differs)", entry.key, name)
            continue
        try:
            decoded[name] = decode_and_validate(entry.key, name, data, rules)
        except SampleError as error:
            reason = str(error).removeprefix(f"{entry.key}: ").removeprefix(f"member {name} ")
            report.add(reason, entry.key, name)
    try:
        validate(sample_of(entry.key, decoded, LATENTS), rules.pool)  # the latents must also fit each other
    except SampleError as error:
        report.add(str(error).removeprefix(f"{entry.key}: "), entry.key)


def sample_of(key: str, decoded: dict[str, Any], fields: Iterable[str]) -> Sample:
    """Returns a sample with these fields, which are arrays, as far as their members were decoded."""
    sample = Sample(key)
    for field_ in fields:
        if (array := decoded.get(f"{field_}.npy")) is not None:
            set_array(sample, field_, array)
    return sample


def decode_and_validate(key: str, name: str, data: bytes, rules: Rules) -> Any:
    """Returns one member, decoded. Raises SampleError if it cannot be decoded or differs from what its pool has."""
    value = decode_member(name, data, rules.pool.width * rules.pool.height)
    stem, _, kind = name.rpartition(".")
    one_frame = replace(rules.pool, frames=1)  # an image is checked as a sample of one frame
    match kind:
        case "jpg":
            validate(Sample(key, frames=value[None]), one_frame)
        case "png":
            structure = split_planes(value[None], rules.pool)
            validate(Sample(key, structure=structure), one_frame)
            if (planes := structure.shape[1] if structure.ndim == 4 else 1) != rules.planes:
                raise SampleError(f"has {planes} planes, by the manifest it must have {rules.planes}", "shape")
        case "npy" if f"{stem}.npy" in (*rules.required, TEXT, *_optional(rules.pool)):
            validate(sample_of(key, {name: value}, (stem,)), rules.pool)
            _check_size(stem, value, rules)
        case "json" if not (isinstance(value, dict) and isinstance(value.get("source"), str) and value["source"]):
            raise SampleError("does not name the origin of the sample: source is missing", "missing")
    return value


def _check_size(name: str, value: np.ndarray, rules: Rules) -> None:
    """Checks what `validate` cannot know: the sizes that the manifest gives."""
    expected: tuple[int, ...] = (rules.width,) if name.endswith("embedding") else rules.latent
    if value.shape[-len(expected) :] != expected:
        size = "x".join(map(str, expected))
        raise SampleError(f"{name} has the shape {value.shape}, by the manifest it must end with {size}", "shape")


def _optional(pool: Pool) -> list[str]:
    return [member for name in LATENTS for member in members_of(name, pool.frames)]

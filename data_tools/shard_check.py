"""One shard against its index, the manifest and the contract: a single pass over the tar, one sample in memory."""

import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gen1_train.batch import KEY, Pool, Sample, SampleError, decode_member, members_of, validate
from gen1_train.data.index import BLOCK, Entry, index_path, padded, read_index
from gen1_train.data.shards import Manifest, Shard
from gen1_train.errors import UserError

LISTED = 100  # problems of one shard that are told one by one: a shard with more has to be replaced anyway
CAPTION, TEXT = "caption.txt", "text_embedding.npy"


@dataclass(frozen=True)
class Problem:
    """Something in a set that is not as it was frozen, or not as the contract says."""

    file: str  # below the set: manifest.json, shards/video-448x256-000000.tar
    reason: str  # one line
    sample: str = ""  # key; empty: the file as a whole
    member: str = ""  # for example frame00.jpg; empty: the sample or the file as a whole

    def __str__(self) -> str:
        place = ".".join(part for part in (self.sample, self.member) if part)
        return ": ".join(part for part in (self.file, place, self.reason) if part)


@dataclass(frozen=True)
class Rules:
    """What every sample of a pool has to be."""

    pool: Pool
    required: tuple[str, ...]  # members
    width: int  # of CLIP embeddings
    latent: tuple[int, int]  # height and width of the latents

    @classmethod
    def of(cls, manifest: Manifest, pool: Pool) -> "Rules":
        """The rules that a manifest sets for one of its pools."""
        autoencoder = manifest.estimators["autoencoder"]
        fields = ["frames", "structure", "image_embedding", "meta"]
        if autoencoder.get("stored", True):  # else training encodes the frames itself
            fields += ["moments", "structure_latent"]
        factor = autoencoder["factor"]
        return cls(
            pool,
            tuple(member for name in fields for member in members_of(name, pool.frames)),
            manifest.estimators["clip"]["width"],
            (pool.height // factor, pool.width // factor),
        )


@dataclass
class ShardReport:
    """What came out of the check of one shard."""

    shard: Shard
    problems: list[Problem] = field(default_factory=list)
    unlisted: int = 0  # problems beyond the first LISTED
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))  # key_hash of every sample

    def add(self, reason: str, sample: str = "", member: str = "", file: str = "") -> None:
        """Notes a problem, of the tar if no other file is named."""
        if len(self.problems) < LISTED:
            self.problems.append(Problem(f"shards/{file or self.shard.name}", reason, sample, member))
        else:
            self.unlisted += 1


def key_hash(key: str) -> int:
    """64 bits that stand for a key: 240 million keys would not fit into the memory."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def check_shard(root: Path, shard: Shard, rules: Rules, advance: Callable[[int], Any]) -> ShardReport:
    """Reads a whole shard and lists what is wrong; `advance` is told how many bytes were read. Raises nothing."""
    report = ShardReport(shard)
    tar = root / "shards" / shard.name
    entries = read_entries(tar, report)
    report.keys = np.array([key_hash(entry.key) for entry in entries], np.uint64)
    try:
        with open(tar, "rb") as stream:
            check_tar(stream, entries, rules, report, advance)
    except FileNotFoundError:
        report.add("the shard is missing")
    except OSError as error:
        report.add(f"it cannot be read ({error.strerror or error})")
    return report


def read_entries(tar: Path, report: ShardReport) -> list[Entry]:
    """The shard's index; none of it if it is missing or damaged: then there is nothing to hold the members against."""
    path, shard = index_path(tar), report.shard
    try:
        entries = read_index(tar, shard.crc32)
    except UserError as error:
        report.add(str(error).removeprefix(f"{path} "), file=path.name)
        return []
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        report.add(f"is no index, though its crc32 is that of the manifest ({error!r})", file=path.name)
        return []
    if len(entries) != shard.samples:
        report.add(f"names {len(entries)} samples, the manifest says {shard.samples}", file=path.name)
    return entries


def check_tar(
    stream: BinaryIO, entries: list[Entry], rules: Rules, report: ShardReport, advance: Callable[[int], Any]
) -> None:
    """Goes through the tar sample by sample, in the order of the index."""
    size = os.fstat(stream.fileno()).st_size
    if size != report.shard.bytes:
        report.add(f"has {size} bytes, the manifest says {report.shard.bytes}")
    start = 0
    for number, entry in enumerate(entries):
        cut = [name for name, (offset, length, _) in entry.members.items() if offset + length > size]
        if cut:
            rest = len(entries) - number - 1
            report.add(f"the tar ends before it does, and before {rest} more samples", entry.key, cut[0])
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
    """Whoever reads the tar without the index has to find the same: a part of a tar at a header is a tar itself."""
    found = {start + info.offset_data: info for info in _headers(part)}
    for name, (offset, size, _) in entry.members.items():
        info = found.pop(offset, None)
        if info is None:  # what follows in this sample cannot be told from it
            report.add("its tar header cannot be read, or does not stand where the index says", entry.key, name)
            return
        if (info.name, info.size) != (f"{entry.key}.{name}", size) or not info.isreg():
            report.add(f"the tar has {info.name} with {info.size} bytes there, not {size}", entry.key, name)
    for info in found.values():
        key, _, name = info.name.partition(".")
        report.add("stands in the tar and not in the index", key, name)


def _headers(part: bytes) -> list[tarfile.TarInfo]:
    """The members of a part of a tar, as far as their headers can be read."""
    infos: list[tarfile.TarInfo] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(part), mode="r:") as archive:
            for info in archive:
                infos.append(info)
    except (tarfile.TarError, ValueError):
        pass  # those that are not there are told by the index
    return infos


def check_end(tail: bytes, report: ShardReport) -> None:
    """After the last sample stands the mark of a tar's end, two blocks of zeros at least, and nothing else."""
    if any(tail):
        report.add("something stands after the last sample that the index does not know")
    elif len(tail) < 2 * BLOCK:
        report.add("the mark of its end is missing")


def check_sample(part: bytes, start: int, entry: Entry, rules: Rules, report: ShardReport) -> None:
    """The members of one sample: all there, whole, and as the contract says."""
    if not KEY.fullmatch(entry.key):
        report.add("is no key: characters outside of A-Z a-z 0-9 _ -, or too long", repr(entry.key))
        return
    names = set(entry.members)
    for name in rules.required:
        if name not in names:
            report.add("is missing", entry.key, name)
    for name, other in ((CAPTION, TEXT), (TEXT, CAPTION)):
        if name not in names and other in names:
            report.add(f"is missing, though there is {other}", entry.key, name)
    for name in sorted(names.difference(rules.required, (CAPTION, TEXT), _optional(rules.pool))):
        report.add("is no member that a sample of this pool has", entry.key, name)
    good: dict[str, Any] = {}
    for name, (offset, size, crc32) in entry.members.items():
        position = offset - start
        data = part[position : position + size] if position >= 0 else b""
        if any(part[max(0, position + size) : padded(offset + size) - start]):
            report.add("is not followed by zeros up to the next block", entry.key, name)
        if zlib.crc32(data) != crc32:
            report.add("is damaged (its crc32 differs)", entry.key, name)
            continue
        try:
            good[name] = checked(entry.key, name, data, rules)
        except SampleError as error:
            reason = str(error).removeprefix(f"{entry.key}: ").removeprefix(f"member {name} ")
            report.add(reason, entry.key, name)
    latents = {name: good.get(f"{name}.npy") for name in ("moments", "structure_latent")}
    try:
        validate(Sample(entry.key, **latents), rules.pool)  # they have to fit each other, too
    except SampleError as error:
        report.add(str(error).removeprefix(f"{entry.key}: "), entry.key)


def checked(key: str, name: str, data: bytes, rules: Rules) -> Any:
    """One member, decoded. Raises SampleError when it cannot be decoded or is not what its pool has."""
    try:
        value = decode_member(name, data)
    except SampleError:
        raise
    except Exception as error:  # whatever a decoder makes of it, the member is at fault and not this program
        raise SampleError(f"cannot be decoded: {error!r}", "decode") from error
    stem, _, kind = name.rpartition(".")
    one = replace(rules.pool, frames=1)  # an image is checked as a sample of one frame
    match kind:
        case "jpg":
            validate(Sample(key, frames=value[None]), one)
        case "png":
            validate(Sample(key, structure=value[None]), one)
        case "npy" if f"{stem}.npy" in (*rules.required, TEXT, *_optional(rules.pool)):
            validate(Sample(key, **{stem: value}), rules.pool)
            _check_size(stem, value, rules)
        case "json" if not (isinstance(value, dict) and isinstance(value.get("source"), str) and value["source"]):
            raise SampleError("does not say where the sample comes from: source is missing", "missing")
    return value


def _check_size(name: str, value: np.ndarray, rules: Rules) -> None:
    """What `validate` cannot know: sizes that the manifest tells."""
    wanted: tuple[int, ...] = (rules.width,) if name.endswith("embedding") else rules.latent
    if value.shape[-len(wanted) :] != wanted:
        want = "x".join(map(str, wanted))
        raise SampleError(f"{name} has the shape {value.shape}, by the manifest it ends with {want}", "shape")


def _optional(pool: Pool) -> list[str]:
    return [member for name in ("moments", "structure_latent") for member in members_of(name, pool.frames)]

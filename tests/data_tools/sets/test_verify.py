"""`gen1-data verify`: an intact set passes, and every kind of damage is one line that names its position."""

import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from webdataset import TarWriter

from data_tools.sets import shard_check
from data_tools.sets.set_check import check_set
from data_tools.sets.shard_check import BLOCK, Problem
from data_tools.sets.verify import SHOWN, VERIFIED, VerifyConfig, run
from gen1_train.batch import Pool, Sample, encode_sample
from gen1_train.data.index import build_index, index_path, read_index, write_index
from gen1_train.data.manifest import MANIFEST, Manifest, Shard
from gen1_train.errors import INCOMPLETE, UserError
from gen1_train.frozen.levels import with_levels
from gen1_train.system.console import console
from tests.made import make_sample, make_shard_set

VIDEO = "video-32x16"
TAR = f"{VIDEO}-000001.tar"  # holds video-002 and video-003
KEY = "video-002"
POOL = Pool("video", 32, 16, 2)

Members = dict[str, bytes]
Check = Callable[..., list[str]]


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shard_set(tmp_path_factory.mktemp("shard_set") / "set", clips=4, images=3, frames=2)


@pytest.fixture
def damaged(shard_set: Path, tmp_path: Path) -> Path:
    """A copy of the set, to be damaged."""
    return Path(shutil.copytree(shard_set, tmp_path / "set"))


def verify(root: Path) -> int | None:
    """Runs `gen1-data verify` on an open console; returns its exit code."""
    with console("gen1-data verify"):
        return run(VerifyConfig(str(root), workers=1))


@pytest.fixture
def check(damaged: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Checks the damaged set and returns its problems as printed, which must equal those in verify.jsonl."""

    def call() -> list[str]:
        assert verify(damaged) == INCOMPLETE
        *lines, summary = capsys.readouterr().out.splitlines()
        stored = [str(Problem(**json.loads(line))) for line in (damaged / VERIFIED).read_text().splitlines()]
        assert (
            lines == stored
            and summary == f"gen1-data verify: {len(lines)} problems in {damaged}, all in {damaged / VERIFIED}"
        )
        return lines

    return call


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def member_range(damaged: Path, member: str, key: str = KEY) -> tuple[int, int]:
    """Returns offset and size of a member in TAR."""
    [entry] = [entry for entry in read_index(damaged / "shards" / TAR) if entry.key == key]
    return entry.members[member][:2]


def refreeze(damaged: Path, samples: list[tuple[str, Members]], name: str = TAR) -> None:
    """Writes a shard with other samples and matching checksums: what a faulty program would have frozen."""
    tar = damaged / "shards" / name
    with TarWriter(str(tar), mtime=0, encoder=False) as writer:
        for key, members in samples:
            writer.write({"__key__": key, **members})
    entries = build_index(tar)
    refreeze_manifest(damaged, Shard(name, len(samples), tar.stat().st_size, write_index(tar, entries)))


def refreeze_manifest(damaged: Path, shard: Shard) -> None:
    manifest = Manifest.load(damaged)
    name = shard.name.rpartition("-")[0]
    shards = tuple(shard if old.name == shard.name else old for old in manifest.pools[name].shards)
    manifest.pools[name] = replace(manifest.pools[name], shards=shards)
    manifest.save(damaged)


def samples(change: Callable[[Sample], None] | None = None, pool: Pool = POOL) -> list[tuple[str, Members]]:
    """Returns the samples of TAR, with KEY changed by `change`."""
    result = []
    for number in (2, 3):
        sample = make_sample(f"video-{number:03d}", pool, number)
        if change is not None and sample.key == KEY:
            change(sample)
        result.append((sample.key, encode_sample(sample)))
    return result


def test_an_intact_set_passes(shard_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in shard_set.rglob("*"))
    assert verify(shard_set) is None
    out = capsys.readouterr().out
    assert out.startswith(f"gen1-data verify: {shard_set} is as it was frozen: image-32x16: 3 samples, video-32x16: 4 ")
    assert out.count("\n") == 1
    assert sorted(path.name for path in shard_set.rglob("*")) == before


def test_several_processes_report_the_same_problems_in_the_same_order(damaged: Path) -> None:
    for name in ("video-32x16-000000", "video-32x16-000001", "image-32x16-000000"):
        entry = read_index(damaged / "shards" / f"{name}.tar")[0]
        flip(damaged / "shards" / f"{name}.tar", entry.members["meta.json"][0])
    manifest = Manifest.load(damaged)
    alone = check_set(damaged, manifest, workers=1)
    assert [problem.file for problem in alone] == [
        f"shards/{name}.tar" for name in ("image-32x16-000000", "video-32x16-000000", "video-32x16-000001")
    ]
    assert check_set(damaged, manifest, workers=2) == alone


@pytest.mark.parametrize("member", ["frame00.jpg", "frame01.jpg", "structure01.png", "moments.npy", "caption.txt"])
@pytest.mark.parametrize("where", [0, -1])
def test_a_flipped_byte_in_a_member_is_reported(damaged: Path, check: Check, member: str, where: int) -> None:
    offset, size = member_range(damaged, member)
    flip(damaged / "shards" / TAR, offset + where % size)
    assert check() == [f"shards/{TAR}: {KEY}.{member}: is damaged (its crc32 differs)"]


def test_a_flipped_byte_in_a_tar_header_is_reported(damaged: Path, check: Check) -> None:
    """The loader would never notice it, but every other reader needs the headers."""
    offset, _ = member_range(damaged, "moments.npy")
    flip(damaged / "shards" / TAR, offset - BLOCK)
    [line] = check()
    assert line.startswith(f"shards/{TAR}: {KEY}.moments.npy: its tar header cannot be read")


def test_a_flipped_byte_after_a_member_is_reported(damaged: Path, check: Check) -> None:
    """It is harmless, but the file differs from the frozen one, and copies are compared by checksums."""
    offset, size = member_range(damaged, "moments.npy")
    assert (offset + size) % BLOCK
    flip(damaged / "shards" / TAR, offset + size)
    assert check() == [f"shards/{TAR}: {KEY}.moments.npy: is not followed by zeros up to the next block"]


def test_a_flipped_byte_after_the_last_sample_is_reported(damaged: Path, check: Check) -> None:
    flip(damaged / "shards" / TAR, -1)
    assert check() == [f"shards/{TAR}: has data after the last sample that the index does not know"]


def test_a_flipped_byte_in_an_index_is_reported(damaged: Path, check: Check) -> None:
    path = index_path(damaged / "shards" / TAR)
    flip(path, 30)
    [line] = check()
    assert line.startswith(f"shards/{path.name}: is not the index that was frozen (its crc32 differs)")


def test_a_flipped_byte_in_the_manifest_is_reported(damaged: Path, check: Check) -> None:
    path = damaged / MANIFEST
    flip(path, path.read_bytes().index(b'"scale": 0.5') + len('"scale": 0.'))
    [line] = check()
    assert line.startswith(f"{MANIFEST}: was changed after it was frozen")


def test_a_truncated_manifest_is_reported(damaged: Path, check: Check) -> None:
    path = damaged / MANIFEST
    path.write_bytes(path.read_bytes()[:-30])
    [line] = check()
    assert line.startswith(f"{MANIFEST}: cannot be read")


def test_swapped_members_are_reported(damaged: Path, check: Check) -> None:
    """Two members are swapped with their headers: the tar is valid, but differs from the frozen one."""
    tar = damaged / "shards" / TAR
    (one, size), (two, other) = (member_range(damaged, "moments.npy", key) for key in (KEY, "video-003"))
    assert size == other
    data = bytearray(tar.read_bytes())
    first, second = slice(one - BLOCK, one + size), slice(two - BLOCK, two + size)
    data[first], data[second] = data[second], data[first]
    tar.write_bytes(data)
    with tarfile.open(tar) as archive:
        assert len(archive.getnames()) == 2 * 10  # nothing complains
    lines = check()
    assert [line for line in lines if "crc32" in line] == [
        f"shards/{TAR}: {key}.moments.npy: is damaged (its crc32 differs)" for key in (KEY, "video-003")
    ]
    names = [line for line in lines if "crc32" not in line]
    assert [f"shards/{TAR}: {KEY}.moments.npy: the tar has video-003.moments.npy" in line for line in names] == [1, 0]
    assert f"shards/{TAR}: video-003.moments.npy: the tar has {KEY}.moments.npy" in names[1]


@pytest.mark.parametrize("member", ["frame00.jpg", "structure_latent.npy", "meta.json"])
def test_a_tar_truncated_within_a_sample_is_reported_once(damaged: Path, check: Check, member: str) -> None:
    tar = damaged / "shards" / TAR
    offset, size = member_range(damaged, member)
    whole, left = tar.stat().st_size, offset + size // 2
    tar.write_bytes(tar.read_bytes()[:left])
    assert check() == [
        f"shards/{TAR}: has {left} bytes, the manifest says {whole}",
        f"shards/{TAR}: {KEY}.{member}: the tar ends before the end of this member, and before 1 more samples",
    ]


def test_a_tar_without_its_end_is_reported(damaged: Path, check: Check) -> None:
    """All samples are there, but readers would call the tar damaged."""
    tar, entries = damaged / "shards" / TAR, read_index(damaged / "shards" / TAR)
    end = max(offset + size for offset, size, _ in entries[-1].members.values())
    tar.write_bytes(tar.read_bytes()[: end + -end % BLOCK + BLOCK])
    shard = Manifest.load(damaged).pools[VIDEO].shards[1]
    refreeze_manifest(damaged, replace(shard, bytes=tar.stat().st_size))
    assert check() == [f"shards/{TAR}: its end-of-archive mark is missing"]


def test_a_sample_missing_from_the_index_is_reported(damaged: Path, check: Check) -> None:
    entries = read_index(damaged / "shards" / TAR)
    crc32 = write_index(damaged / "shards" / TAR, entries[:1])
    refreeze_manifest(damaged, replace(Manifest.load(damaged).pools[VIDEO].shards[1], crc32=crc32))
    assert check() == [
        f"shards/{index_path(Path(TAR))}: names 1 samples, the manifest says 2",
        f"shards/{TAR}: has data after the last sample that the index does not know",
    ]


def test_a_member_missing_from_the_index_is_reported(damaged: Path, check: Check) -> None:
    entries = read_index(damaged / "shards" / TAR)
    del entries[0].members["caption.txt"], entries[0].members["text_embedding.npy"]
    crc32 = write_index(damaged / "shards" / TAR, entries)
    refreeze_manifest(damaged, replace(Manifest.load(damaged).pools[VIDEO].shards[1], crc32=crc32))
    assert check() == [
        f"shards/{TAR}: {KEY}.{member}: is in the tar but not in the index"
        for member in ("caption.txt", "text_embedding.npy")
    ]


@pytest.mark.parametrize("suffix", [".tar", ".index"])
def test_a_missing_file_is_reported(damaged: Path, check: Check, suffix: str) -> None:
    path = (damaged / "shards" / TAR).with_suffix(suffix)
    path.unlink()
    [line] = check()
    assert line.startswith(f"shards/{path.name}: ") and ("is missing" in line or "cannot be read" in line)


def test_an_unreadable_shard_is_reported(damaged: Path, check: Check) -> None:
    tar = damaged / "shards" / TAR
    tar.unlink()
    tar.mkdir()
    assert check() == [f"shards/{TAR}: it cannot be read (Is a directory)"]


def test_missing_shards_are_all_reported(damaged: Path, check: Check) -> None:
    shutil.rmtree(damaged / "shards")
    lines = check()
    assert lines[0] == "shards: cannot be listed (No such file or directory)"
    assert sum("the shard is missing" in line for line in lines) == 4


@pytest.mark.parametrize("name", ["video-32x16-000002.tar", ".video-32x16-000000.tar.77.tmp", "notes"])
def test_a_stray_file_is_reported(damaged: Path, check: Check, name: str) -> None:
    (damaged / "shards" / name).touch()
    assert check() == [f"shards/{name}: is not named by the manifest: remove it"]


def test_a_duplicate_key_is_reported_with_both_shards(damaged: Path, check: Check) -> None:
    refreeze(damaged, [("video-000", encode_sample(make_sample("video-000", POOL, 2))), samples()[1]])
    assert check() == [f"shards/{TAR}: video-000: another sample has the same key, in shards/{VIDEO}-000000.tar"]


def test_different_keys_with_equal_hashes_are_no_problem(
    damaged: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("shard_check", "set_check"):
        monkeypatch.setattr(f"data_tools.sets.{module}.key_hash", lambda key: 7)
    assert verify(damaged) is None


def smaller(sample: Sample) -> None:
    sample.frames = sample.frames[:, :8]


def cut(field: str, *member_range: slice | int) -> Callable[[Sample], None]:
    return lambda sample: setattr(sample, field, getattr(sample, field)[member_range])


def put(field: str, value: object) -> Callable[[Sample], None]:
    return lambda sample: setattr(sample, field, value)


def with_nan(sample: Sample) -> None:
    sample.moments[0, 0, 0, 0] = np.nan


WRONG: dict[str, tuple[Callable[[Sample], None], list[str]]] = {
    "frames of another size": (
        smaller,
        [f"{KEY}.frame0{i}.jpg: frames is uint8 (1, 8, 32, 3), but the pool has uint8 1x16x32x3" for i in (0, 1)],
    ),
    "structure of another size": (
        cut("structure", slice(None), slice(8)),
        [f"{KEY}.structure0{i}.png: structure is uint16 (1, 8, 32), but the pool has uint16 1x16x32" for i in (0, 1)],
    ),
    "a frame too few": (cut("frames", slice(1)), [f"{KEY}.frame01.jpg: is missing"]),
    "structure of 8 bits": (
        lambda sample: setattr(sample, "structure", (sample.structure >> 8).astype(np.uint8)),
        [f"{KEY}.structure0{i}.png: cannot be decoded: its mode is L, not 16-bit gray" for i in (0, 1)],
    ),
    "moments of one frame": (
        cut("moments", slice(1)),
        [f"{KEY}.moments.npy: moments is float16 (1, 8, 2, 4), but the pool has float16 2x*x*x*"],
    ),
    "moments of another map": (
        cut("moments", slice(None), slice(None), slice(1)),
        [f"{KEY}.moments.npy: moments has the shape (2, 8, 1, 4), by the manifest it must end with 2x4"],
    ),
    "moments that do not go with the structure": (
        cut("moments", slice(None), slice(6)),
        [f"{KEY}: moments is float16 (2, 6, 2, 4), but the pool has float16 2x8x2x4"],
    ),
    "moments of 32 bits": (
        lambda sample: setattr(sample, "moments", sample.moments.astype(np.float32)),
        [f"{KEY}.moments.npy: moments is float32 (2, 8, 2, 4), but the pool has float16 2x*x*x*"],
    ),
    "values that are not finite": (with_nan, [f"{KEY}.moments.npy: moments holds values that are not finite"]),
    "embedding of another CLIP": (
        cut("image_embedding", slice(None), slice(32)),
        [f"{KEY}.image_embedding.npy: image_embedding has the shape (2, 32), by the manifest it must end with 64"],
    ),
    "no moments": (put("moments", None), [f"{KEY}.moments.npy: is missing"]),
    "no embedding": (put("image_embedding", None), [f"{KEY}.image_embedding.npy: is missing"]),
    "no caption": (put("caption", None), [f"{KEY}.caption.txt: is missing, although there is text_embedding.npy"]),
    "no text embedding": (
        put("text_embedding", None),
        [f"{KEY}.text_embedding.npy: is missing, although there is caption.txt"],
    ),
    "no meta": (put("meta", None), [f"{KEY}.meta.json: is missing"]),
    "a meta without a source": (
        put("meta", {"fps": 25}),
        [f"{KEY}.meta.json: does not name the origin of the sample: source is missing"],
    ),
    "a meta that is a list": (
        put("meta", ["source"]),
        [f"{KEY}.meta.json: does not name the origin of the sample: source is missing"],
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_sample_that_was_frozen_wrong_is_reported(damaged: Path, check: Check, what: str) -> None:
    change, reasons = WRONG[what]
    refreeze(damaged, samples(change))
    assert check() == [f"shards/{TAR}: {reason}" for reason in reasons]


def frozen_member(name: str, data: bytes) -> list[tuple[str, Members]]:
    changed = samples()
    changed[0][1][name] = data
    return changed


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("frame00.jpg", b"GIF?", "cannot be decoded: cannot identify image file"),
        ("meta.json", b"{", "cannot be decoded: "),
        ("meta.json", b"[" * 100_000, "cannot be decoded: maximum recursion depth exceeded"),
        ("caption.txt", b"\xff", "cannot be decoded: "),
        ("moments.npy", b"PK\x03\x04", "cannot be decoded: "),
        ("depth00.png", b"", "is not a member of the samples of this pool"),
        ("frame02.jpg", samples()[0][1]["frame00.jpg"], "is not a member of the samples of this pool"),
    ],
)
def test_bytes_that_are_not_such_a_member_are_reported(
    damaged: Path, check: Check, name: str, data: bytes, reason: str
) -> None:
    refreeze(damaged, frozen_member(name, data))
    assert check()[0].startswith(f"shards/{TAR}: {KEY}.{name}: {reason}")


def test_a_picture_that_claims_to_be_huge_is_reported(damaged: Path, check: Check) -> None:
    """Pillow raises an error for it that is not an OSError."""
    png = bytearray(samples()[0][1]["structure00.png"])
    png[16:24] = (60_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    refreeze(damaged, frozen_member("structure00.png", bytes(png)))
    [line] = check()
    assert line.startswith(
        f"shards/{TAR}: {KEY}.structure00.png: cannot be decoded: Image size (3600000000 pixels) exceeds"
    )


def test_an_invalid_key_is_reported(damaged: Path, check: Check) -> None:
    refreeze(damaged, [("a b", samples()[0][1]), samples()[1]])
    [line] = check()
    assert "is not the index that was frozen (the key 'a b' is not a plain name: 1 to 200 characters out of" in line


def test_the_levels_that_the_manifest_names_must_be_there(damaged: Path, check: Check) -> None:
    def add_latents(sample: Sample) -> None:
        assert sample.structure_latent is not None
        sample.degraded_latents = {1: sample.structure_latent, 2: sample.structure_latent[:, :3]}

    refreeze(damaged, samples(add_latents))
    manifest = Manifest.load(damaged)
    manifest.estimators["autoencoder"] = with_levels(manifest.estimators["autoencoder"], 3)
    manifest.save(damaged)
    missing, size, *others = (line for line in check() if TAR in line)
    assert others == [f"shards/{TAR}: video-003.structure_latent{level}.npy: is missing" for level in (1, 2, 3)]
    assert missing == f"shards/{TAR}: {KEY}.structure_latent3.npy: is missing"
    assert size.startswith(f"shards/{TAR}: {KEY}: structure_latent2 is float16 (")


def test_a_set_without_latents_is_valid_if_its_manifest_says_so(damaged: Path, check: Check) -> None:
    def without(sample: Sample) -> None:
        sample.moments = sample.structure_latent = None

    refreeze(damaged, samples(without))
    assert [line.rpartition(": ")[0] for line in check()] == [
        f"shards/{TAR}: {KEY}.{name}.npy" for name in ("moments", "structure_latent")
    ]
    manifest = Manifest.load(damaged)
    manifest.estimators["autoencoder"]["stored"] = False
    manifest.save(damaged)
    assert verify(damaged) is None
    assert not (damaged / VERIFIED).exists()  # the list of an earlier check is removed


def test_a_long_list_is_shortened_on_the_terminal_but_not_in_the_file(
    damaged: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(SHOWN + 5):
        (damaged / "shards" / f"stray{number:02d}").touch()
    assert verify(damaged) == INCOMPLETE
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == SHOWN + 2 and lines[-2:] == [
        "and 5 more",
        f"gen1-data verify: 25 problems in {damaged}, all in {damaged / VERIFIED}",
    ]
    assert (damaged / VERIFIED).read_text().count("\n") == SHOWN + 5

    def refused(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("data_tools.sets.verify.write_atomically", refused)
    assert verify(damaged) == INCOMPLETE
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == SHOWN + 6 and lines[-1] == f"gen1-data verify: 25 problems in {damaged}"
    )  # then all are printed


def test_the_problems_of_one_shard_are_limited(damaged: Path, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_check, "LISTED", 3)
    wrong = [(key, {f"x{i}.bin": b"" for i in range(9)} | members) for key, members in samples()]
    refreeze(damaged, wrong)
    lines = check()
    assert len(lines) == 4 and lines[-1] == f"shards/{TAR}: has {2 * 9 * 2 - 3} more problems"


def test_a_missing_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no shard set at .*manifest\.json is missing"):
        run(VerifyConfig(str(tmp_path)))
    with pytest.raises(UserError, match="workers=0 must be above 0"):
        run(VerifyConfig(str(tmp_path), workers=0))
    assert os.listdir(tmp_path) == []

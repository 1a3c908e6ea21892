"""The sample contract between data_tools and training: round trips are exact, and violations are refused by name."""

import io
import struct
import zlib
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gen1_train.batch import (
    BATCH_FIELDS,
    Batch,
    Pool,
    Sample,
    SampleError,
    collate,
    decode_member,
    decode_sample,
    encode_sample,
    latent_field,
    members_of,
    validate,
)
from tests.made import make_sample, make_sample_with_levels

CPU = torch.device("cpu")
VIDEO, IMAGE = Pool("video", 24, 16, 3), Pool("image", 24, 16, 1)
ARRAYS = ("structure", "moments", "structure_latent", "image_embedding", "text_embedding")
FIELDS = ("frames", *ARRAYS, "caption", "meta")


def npy(array: np.ndarray, pickled: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=pickled)
    return stream.getvalue()


@pytest.mark.parametrize("pool", [VIDEO, IMAGE])
def test_arrays_caption_and_meta_round_trip_exactly(pool: Pool) -> None:
    sample = make_sample("clip_1-a", pool, 5)
    decoded = decode_sample("clip_1-a", encode_sample(sample))
    for field in ARRAYS:
        written, read = getattr(sample, field), getattr(decoded, field)
        assert read.dtype == written.dtype and np.array_equal(read, written), field
    assert (decoded.key, decoded.caption, decoded.meta) == (sample.key, sample.caption, sample.meta)
    validate(decoded, pool)


def test_frames_keep_their_colors_in_jpeg() -> None:
    """Neighboring pixels of saturated colors: with subsampled chroma they would be off by more than 100 levels."""
    frames = np.zeros((2, 16, 24, 3), np.uint8)
    frames[0, :, ::2, 0] = frames[0, :, 1::2, 1] = 255  # red, green, red, green ...
    frames[1] = np.linspace(0, 255, 24, dtype=np.uint8)[None, :, None]
    decoded = decode_sample("k", encode_sample(Sample("k", frames=frames))).frames
    assert decoded is not None and decoded.dtype == np.uint8 and decoded.shape == frames.shape
    error = np.abs(decoded.astype(int) - frames)
    assert error.mean() < 4 and error.max() < 40


def test_ten_and_more_frames_keep_their_order() -> None:
    depth = (np.arange(12, dtype=np.uint16) * 5000)[:, None, None].repeat(8, 1).repeat(8, 2)
    frames = (np.arange(12, dtype=np.uint8) * 20)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    members = encode_sample(Sample("k", frames=frames, structure=depth))
    decoded = decode_sample("k", dict(reversed(members.items())))
    assert np.array_equal(decoded.structure, depth)
    assert np.abs(decoded.frames.astype(int) - frames).max() <= 2


def test_members_of_names_what_encode_sample_writes() -> None:
    members = encode_sample(make_sample("k", VIDEO, 0))
    assert list(members) == [name for field in FIELDS for name in members_of(field, 3)]
    assert not any("." in name.rpartition(".")[0] for name in members)  # WebDataset splits names at the first dot
    with pytest.raises(KeyError):
        members_of("color", 3)


def test_absent_fields_stay_none() -> None:
    decoded = decode_sample("k", encode_sample(Sample("k", caption="größe, 大")))
    assert decoded.caption == "größe, 大"
    assert [field for field in FIELDS if getattr(decoded, field) is not None] == ["caption"]
    validate(decoded, VIDEO)


def damaged(field: str, change: str) -> Sample:
    sample = make_sample("k", VIDEO, 0)
    array = getattr(sample, field)
    if change == "shape":
        array = array[..., :-1] if array.ndim == 1 else array[:-1]
    elif change == "rank":
        array = array[None]
    elif change == "dtype":
        array = array.astype(np.float32)
    else:
        array = array.copy()
        array.flat[-1] = {"nan": np.nan, "infinite": -np.inf}[change]
    return replace(sample, **{field: array})


CASES = [(field, change) for field in ("frames", *ARRAYS) for change in ("shape", "rank", "dtype")]
CASES += [(field, change) for field in ARRAYS[1:] for change in ("nan", "infinite")]
CASES.remove(("text_embedding", "shape"))  # the contract does not fix d, and a single embedding cannot contradict it


@pytest.mark.parametrize(("field", "change"), CASES)
def test_validate_names_the_field_that_it_refuses(field: str, change: str) -> None:
    with pytest.raises(SampleError, match=field) as refused:
        validate(damaged(field, change), VIDEO)
    assert refused.value.reason == ("not_finite" if change in ("nan", "infinite") else "shape")
    copied = copy(refused.value)  # rebuilt as pickle does when a worker sends the error
    assert (str(copied), copied.reason) == (str(refused.value), refused.value.reason)


def test_every_float16_is_classified_as_finite_or_not() -> None:
    for bits in range(0x10000):
        half = np.array([bits], np.uint16).view(np.float16)
        embedding = np.concatenate([np.ones(3, np.float16), half, -np.ones(3, np.float16)])
        try:
            validate(Sample("k", text_embedding=embedding), VIDEO)
            assert np.isfinite(half[0])
        except SampleError:
            assert not np.isfinite(half[0])


@pytest.mark.parametrize("field", ["frames", "structure"])
def test_validate_refuses_images_of_another_size(field: str) -> None:
    sample = Sample("k", **{field: getattr(make_sample("k", VIDEO, 0), field)})
    with pytest.raises(SampleError, match=rf"{field} is .* the pool has"):
        validate(sample, replace(VIDEO, width=16, height=24))  # the same number of pixels


def test_validate_refuses_moments_and_structure_latents_that_do_not_match() -> None:
    sample = make_sample("k", VIDEO, 0)
    for structure in (sample.structure_latent[:, :3], sample.structure_latent[..., :-1]):
        with pytest.raises(SampleError, match="moments"):
            validate(replace(sample, structure_latent=structure), VIDEO)


@pytest.mark.parametrize("key", ["a.b", "", "a/b", "a b", "ü", "x" * 201, "a\n"])
def test_validate_refuses_a_key_that_a_tar_reader_would_misread(key: str) -> None:
    with pytest.raises(SampleError, match="key"):
        validate(replace(make_sample("k", VIDEO, 0), key=key), VIDEO)


def test_nothing_is_unpickled() -> None:
    with pytest.raises(SampleError, match=r"moments\.npy"):
        decode_member("moments.npy", npy(np.array([{"a": 1}], dtype=object), pickled=True))


def encode_image(array: np.ndarray, codec: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, codec, **options)
    return stream.getvalue()


def png(array: np.ndarray) -> bytes:
    return encode_image(array, "PNG")


def huge_png(side: int) -> bytes:
    """A file of a few bytes that claims to hold side x side pixels."""
    small = png(np.zeros((1, 1), np.uint16))
    header = b"IHDR" + struct.pack(">II", side, side) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


NOISE = np.random.default_rng(0).integers(0, 65536, (32, 48, 3), np.uint16)
JPEG = encode_image(NOISE.astype(np.uint8), "JPEG")


BROKEN = {
    "truncated npy": ("moments.npy", npy(np.zeros((2, 8, 2, 2), np.float16))[:-4]),
    "empty npy": ("moments.npy", b""),
    "zip archive as npy": ("moments.npy", b"PK\x03\x04" + bytes(40)),
    "npy of a later version": ("moments.npy", b"\x93NUMPY\x02" + npy(np.zeros(3, np.float16))[7:]),
    "npy with too large a shape": ("moments.npy", npy(np.zeros(8, np.float16)).replace(b"(8,)", b"(9,)")),
    "not a png": ("structure00.png", b"not a png"),
    "truncated png": ("structure00.png", png(NOISE[..., 0])[:-60]),
    "color png": ("structure00.png", png(NOISE.astype(np.uint8))),
    "decompression bomb": ("structure00.png", huge_png(60000)),
    "empty jpeg": ("frame00.jpg", b""),
    "truncated jpeg": ("frame00.jpg", JPEG[:-200]),
    "half a jpeg": ("frame00.jpg", JPEG[: len(JPEG) // 2]),
    "not utf-8": ("caption.txt", b"\xff\xfe"),
    "not json": ("meta.json", b"{"),
    "unknown member": ("caption.pickle", b"x"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_member_that_cannot_be_decoded_is_named(case: str) -> None:
    name, data = BROKEN[case]
    with pytest.raises(SampleError, match=name) as refused:
        decode_member(name, data)
    assert refused.value.reason == ("shape" if name == "caption.pickle" else "decode")


def test_eight_bit_structure_is_refused() -> None:
    """Values 0..255 read as 0..65535 would silently give a nearly flat depth map."""
    with pytest.raises(SampleError, match="structure00"):
        decode_member("structure00.png", png(np.arange(64, dtype=np.uint8).reshape(8, 8)))


def test_collate_stacks_samples_and_to_scales_structure_to_0_1() -> None:
    samples = [make_sample(f"k{i}", VIDEO, i) for i in range(2)]
    samples[0].structure[0, 0, :2] = (0, 65535)
    batch = collate("video", 7, [4, 9], samples).to(CPU)
    assert (batch.kind, batch.step, batch.slots, batch.keys) == ("video", 7, [4, 9], ["k0", "k1"])
    assert batch.moments.shape == (2, 3, 8, 2, 3) and batch.embeddings.shape == (2, 3, 64)
    assert batch.structure_latents.shape == (2, 3, 4, 2, 3) and batch.structure.shape == (2, 3, 16, 24)
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    assert all((v.dtype == torch.uint8) == (k == "frames") for k, v in tensors.items())
    assert all(v.dtype == torch.float32 for k, v in tensors.items() if k != "frames")
    np.testing.assert_array_equal(batch.frames[1].numpy(), samples[1].frames)
    assert batch.structure[0, 0, 0, :2].tolist() == [0, 1]
    assert batch.structure.min() >= 0 and batch.structure.max() <= 1
    np.testing.assert_array_equal(batch.moments[1].numpy(), samples[1].moments.astype(np.float32))
    torch.testing.assert_close(
        batch.structure[1], torch.from_numpy(samples[1].structure.astype(np.float64) / 65535).float()
    )


def test_collate_keeps_the_stored_dtypes() -> None:
    """Until `to` widens them, tensors take half the bytes."""
    sample = make_sample("k", VIDEO, 0)
    batch = collate("video", 0, [0], [sample])
    for source, target in BATCH_FIELDS.items():
        np.testing.assert_array_equal(getattr(batch, target)[0].numpy(), getattr(sample, source), strict=True)
    np.testing.assert_array_equal(batch.structure_latents[0].numpy(), sample.structure_latent, strict=True)


def test_each_sample_of_a_batch_may_be_read_at_another_level() -> None:
    samples = [make_sample_with_levels(f"k{level}", VIDEO, level) for level in (0, 3, 7)]
    fields = [latent_field(level) for level in (0, 3, 7)]
    read = []
    for sample, name in zip(samples, fields):
        members = encode_sample(sample)
        assert members_of(name, 3) == [f"{name}.npy"]
        assert list(members)[-7:] == [f"structure_latent{i}.npy" for i in range(1, 8)]
        read.append(decode_sample(sample.key, {f"{name}.npy": members[f"{name}.npy"]}))
        validate(sample, VIDEO)
        validate(read[-1], VIDEO)
    batch = collate("video", 0, [0, 1, 2], read)
    assert batch.structure_levels == [0, 3, 7]
    wanted = [samples[0].structure_latent, samples[1].degraded_latents[3], samples[2].degraded_latents[7]]
    np.testing.assert_array_equal(batch.structure_latents.numpy(), np.stack(wanted))
    assert collate("video", 0, [0], [replace(read[0], structure_latent=None)]).structure_levels is None


def test_validate_refuses_latents_of_levels_that_do_not_match() -> None:
    sample = make_sample_with_levels("k", VIDEO, 0)
    for latent in (sample.structure_latent[:, :3], sample.structure_latent.astype(np.float32)):
        with pytest.raises(SampleError, match="structure_latent5 is"):
            validate(replace(sample, degraded_latents={5: latent}), VIDEO)
    with pytest.raises(SampleError, match="moments is"):
        validate(replace(sample, structure_latent=None, degraded_latents={1: sample.structure_latent[:, :3]}), VIDEO)
    for name in ("structure_latent0", "structure_latent10", "structure_latents"):
        with pytest.raises(KeyError):
            members_of(name, 1)


def test_collate_leaves_unread_fields_none() -> None:
    sample = make_sample("k", IMAGE, 0)
    batch = collate("image", 0, [0], [replace(sample, structure=None, structure_latent=None)])
    assert batch.structure is None and batch.structure_latents is None and batch.moments.shape[1] == 1
    online = collate("image", 0, [0], [replace(sample, moments=None)])
    assert online.moments is None and online.frames.shape == (1, 1, 16, 24, 3)


def test_to_moves_every_tensor_and_nothing_else() -> None:
    batch = collate("video", 1, [0], [make_sample("k", VIDEO, 0)])
    batch.structure = None
    moved = batch.to(torch.device("meta"))
    assert isinstance(moved, Batch) and moved is not batch and batch.moments.device.type == "cpu"
    for name, value in vars(moved).items():
        if isinstance(value, torch.Tensor):
            assert value.device.type == "meta" and value.shape == getattr(batch, name).shape
        else:
            assert value == getattr(batch, name)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("frame00.jpg", "EPS"), ("frame00.jpg", "PNG"), ("frame00.jpg", "TIFF"), ("structure00.png", "EPS")],
)
def test_a_picture_is_opened_only_in_the_format_of_its_name(
    name: str, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow would start Ghostscript for an EPS, whatever its name is."""

    def started(*_: object, **__: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", started)
    stream = io.BytesIO()
    Image.new("RGB", (24, 16)).save(stream, codec)
    with pytest.raises(SampleError, match=rf"member {name} cannot be decoded: cannot identify image") as error:
        decode_member(name, stream.getvalue())
    assert error.value.reason == "decode"


@pytest.mark.parametrize(
    ("name", "codec", "mode", "planes"), [("frame00.jpg", "JPEG", "RGB", 1), ("structure00.png", "PNG", "I;16", 3)]
)
def test_a_picture_larger_than_its_pool_is_not_decoded(name: str, codec: str, mode: str, planes: int) -> None:
    stream = io.BytesIO()
    Image.new(mode, (25, 16 * planes)).save(stream, codec)
    with pytest.raises(SampleError, match=rf"it has 25x{16 * planes} pixels, more than {384 * planes}"):
        decode_sample("k", {name: stream.getvalue()}, VIDEO)
    assert decode_sample("k", {name: stream.getvalue()}).key == "k"


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f2', 'fortran_order': False, 'shape': (" + b"9" * 60 + b",), }",
        b"{'descr': (), 'fortran_order': False, 'shape': (1,), }",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        b"{'descr': '<f2', 'fortran_order': False, 'shape': ((((((",
        b"(" * 3000,
    ],
)
def test_a_hostile_header_of_an_array_is_a_bad_sample(header: bytes) -> None:
    padded = header.ljust(117) + b"\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + bytes(2)
    with pytest.raises(SampleError, match=r"moments\.npy cannot be decoded") as error:
        decode_member("moments.npy", data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "pool"),
    [
        ("video-448x256", Pool("video", 448, 256, 8)),
        ("video-448x256-16f", Pool("video", 448, 256, 16, longer=True)),
        ("image-64x48", Pool("image", 64, 48, 1)),
    ],
)
def test_the_name_of_a_pool_gives_its_kind_size_and_length(name: str, pool: Pool) -> None:
    assert Pool.named(name, frames=8) == pool and pool.name == name


@pytest.mark.parametrize(
    "name",
    ["evil", "video-0x16", "video-32x16-0f", "video-32x16-100f", "video-32x16f", "image-32x16-8f", "video-32x16-"],
)
def test_other_names_are_not_those_of_pools(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a pool"):
        Pool.named(name, frames=8)

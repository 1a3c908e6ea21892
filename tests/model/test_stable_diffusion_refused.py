"""Tests of the inputs that stage 1 refuses, with their one-line messages; nothing is ever unpickled."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.model.diffusers_layout import WEIGHTS_FILE
from gen1_train.model.stable_diffusion import read_stable_diffusion
from gen1_train.model.unet import UNetConfig
from miniature.tiny import write_stable_diffusion
from tests.model.published import SMALL, bare_compvis, checkpoint, folder, image_unet


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_stable_diffusion(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def write_lora(path: Path) -> Path:
    save_file({"lora_unet_down_blocks_0.alpha": torch.zeros(1)}, path / "lora.safetensors")
    return path / "lora.safetensors"


def write_xl(path: Path) -> Path:
    weights = bare_compvis(SMALL, image_unet(SMALL)) | {"label_emb.0.0.weight": torch.zeros(2, 2)}
    save_file({f"model.diffusion_model.{k}": v for k, v in weights.items()}, path / "xl.safetensors")
    return path / "xl.safetensors"


def write_quantized(path: Path) -> Path:
    save_file({k: v.to(torch.int8) for k, v in image_unet(SMALL).state_dict().items()}, path / "int8.safetensors")
    return path / "int8.safetensors"


def write_pickle(path: Path, content: object) -> Path:
    torch.save(content, path / "model.ckpt")
    return path / "model.ckpt"


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


class Harm:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


# name -> (writer of something else than a UNet, expected part of the message)
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing": (lambda path: path / "sd.safetensors", "no such file or folder; give a folder in diffusers'"),
    "empty folder": (lambda path: path, "it has no config.json; give a folder in diffusers' layout"),
    "folder of files": (lambda path: write_lora(path).parent, "give one of its files (lora.safetensors)"),
    "text": (lambda path: write_bytes(path / "a.txt", b"hello"), "has an unsupported format: give a folder"),
    "no safetensors": (lambda path: write_bytes(path / "a.safetensors", b"hello"), "cannot be read as safetensors"),
    "lora": (write_lora, "holds no Stable Diffusion UNet (its first tensor is lora_unet_down_blocks_0.alpha)"),
    "SDXL": (write_xl, "not a Stable Diffusion 1.x or 2.x UNet (1 unknown weights, e.g. label_emb.0.0.weight)"),
    "quantized": (write_quantized, "is int8: give weights that are not quantized"),
    "pickle of diffusers": (
        lambda path: write_bytes(path / "a.bin", b""),
        "is a pickle, which is not read: convert it",
    ),
    "objects": (
        lambda path: write_pickle(path, {"state_dict": {}, "callbacks": {UNetConfig: SMALL}}),
        "holds more than tensors (gen1_train.model.unet.UNetConfig): it is not executed; convert it to .safetensors",
    ),
    "no tensors": (lambda path: write_pickle(path, {"state_dict": {}}), "(it has no tensors)"),
    "odd state_dict": (lambda path: write_pickle(path, {"state_dict": [1]}), "(it has no tensors)"),
    "a list": (lambda path: write_pickle(path, [torch.zeros(1)]), "(it has no tensors)"),
    "empty": (lambda path: write_bytes(path / "a.ckpt", b""), "is damaged or holds more than tensors"),
    "a page": (lambda path: write_bytes(path / "a.ckpt", b"<!DOCTYPE html>"), "is damaged or holds more than tensors"),
    "junk": (lambda path: write_bytes(path / "a.ckpt", b"hello" * 50), "is damaged or holds more than tensors"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_anything_but_a_stable_diffusion_unet_is_refused(name: str, tmp_path: Path) -> None:
    write, message = REFUSED[name]
    path = write(tmp_path)
    line = refusal(path)
    assert message in line and str(path) in line


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_never_executed(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "harm.ckpt"
    trace = tmp_path / "executed"
    pickle.loads(pickle.dumps(Harm(trace)))
    trace.unlink()  # it existed: unpickling does execute
    torch.save({"state_dict": Harm(trace)}, path, _use_new_zipfile_serialization=zipped)
    assert "it is not executed" in refusal(path) and not trace.exists()
    path.write_bytes(pickle.dumps(Harm(trace), protocol=2))
    assert "it is not executed" in refusal(path) and not trace.exists()


def test_a_truncated_ckpt_is_refused(tmp_path: Path) -> None:
    for zipped in (True, False):
        path = checkpoint(bare_compvis, zipped=zipped)(tmp_path, SMALL, image_unet(SMALL))
        path.write_bytes(path.read_bytes()[:-1000])
        assert f"{path} is damaged" in refusal(path)


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    write_stable_diffusion(folder, cross_attention_dim=24)
    return folder


def copied(source: Path, target: Path, omit: str = "") -> Path:
    """Copies the `unet/` of a folder, so that a test can damage it."""
    (target / "unet").mkdir(parents=True)
    for path in (source / "unet").iterdir():
        if path.name != omit:
            (target / "unet" / path.name).write_bytes(path.read_bytes())
    return target / "unet"


@pytest.mark.parametrize("files", [[], ["diffusion_pytorch_model.non_ema.safetensors"]])
def test_missing_weights_in_a_folder_are_named(stable_diffusion: Path, tmp_path: Path, files: list) -> None:
    unet = copied(stable_diffusion, tmp_path, omit=WEIGHTS_FILE)
    for name in files:
        (unet / name).write_bytes((stable_diffusion / "unet" / WEIGHTS_FILE).read_bytes())
    line = refusal(tmp_path)
    assert f"no weights at {unet / WEIGHTS_FILE}" in line
    assert all(name in line and read_stable_diffusion(unet / name).config for name in files)  # the remedy works


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"])
def test_a_folder_of_pickles_is_refused(stable_diffusion: Path, tmp_path: Path, name: str) -> None:
    unet = copied(stable_diffusion, tmp_path, omit=WEIGHTS_FILE)
    (unet / name).write_bytes(b"")
    assert f"{unet / name} is a pickle, which is not read: convert it to .safetensors" in refusal(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "no safetensors", "empty"])
def test_damaged_safetensors_are_refused(stable_diffusion: Path, tmp_path: Path, damage: str) -> None:
    path = copied(stable_diffusion, tmp_path) / WEIGHTS_FILE
    data = path.read_bytes()
    path.write_bytes({"truncated": data[:-100], "no safetensors": b"\x80\x02}q\x00." * 9, "empty": b""}[damage])
    assert f"{path} cannot be read as safetensors" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "", "\xff"])
def test_an_invalid_config_is_refused(stable_diffusion: Path, tmp_path: Path, content: str) -> None:
    path = copied(stable_diffusion, tmp_path) / "config.json"
    path.write_bytes(content.encode("latin-1"))
    assert str(path) in refusal(tmp_path)


def with_config(source: Path, target: Path, **changes: object) -> Path:
    path = copied(source, target) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return target


@pytest.mark.parametrize(
    "changes",
    [
        {"down_block_types": ["AttnDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"]},
        {"up_block_types": ["SimpleCrossAttnUpBlock2D"] * 4},
        {"block_out_channels": None},
        {"down_block_types": []},
    ],
)
def test_other_kinds_of_unet_are_refused(stable_diffusion: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    line = refusal(with_config(stable_diffusion, tmp_path, **changes))
    assert "not a Stable Diffusion 1.x or 2.x UNet" in line


# --- shards

Index = dict[str, str]  # the weight_map: name -> shard


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(shard="2MB")(tmp_path_factory.mktemp("shards"), SMALL, image_unet(SMALL))


def remove_shard(unet: Path, index: Index) -> None:
    (unet / index["conv_in.bias"]).unlink()


def rewrite(unet: Path, shard: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change({k: v.clone() for k, v in load_file(unet / shard).items()}), unet / shard)


def remove_from_shard(unet: Path, index: Index) -> None:
    rewrite(unet, index["conv_in.bias"], lambda w: {k: v for k, v in w.items() if k != "conv_in.bias"})


def add_to_shard(unet: Path, index: Index) -> None:
    rewrite(unet, index["conv_in.bias"], lambda w: {**w, "extra.weight": torch.zeros(1)})


def swap_in_index(unet: Path, index: Index) -> None:
    index["conv_in.bias"] = next(shard for shard in index.values() if shard != index["conv_in.bias"])


def point_outside(unet: Path, index: Index) -> None:
    index["conv_in.bias"] = "../model.safetensors"


# name -> (damage, expected part of the message)
SHARD_DAMAGE: dict[str, tuple[Callable[[Path, Index], None], str]] = {
    "missing": (remove_shard, "lists shards that are missing: diffusion_pytorch_model-0000"),
    "lacks a key": (remove_from_shard, "(missing: conv_in.bias); fetch both again"),
    "has an extra key": (add_to_shard, "(not in the index: extra.weight)"),
    "a key of another shard": (
        swap_in_index,
        "does not match diffusion_pytorch_model.safetensors.index.json (not in the index: conv_in.bias",
    ),
    "a path": (point_outside, "is not an index of shards"),
    "empty": (lambda unet, index: index.clear(), "it has no weight_map of file names"),
}


@pytest.mark.parametrize("name", SHARD_DAMAGE)
def test_shards_that_do_not_match_the_index_are_refused(shards: Path, tmp_path: Path, name: str) -> None:
    damage, message = SHARD_DAMAGE[name]
    unet = copied(shards, tmp_path)
    path = unet / f"{WEIGHTS_FILE}.index.json"
    index = json.loads(path.read_text())
    assert len(set(index["weight_map"].values())) > 1
    damage(unet, index["weight_map"])
    path.write_text(json.dumps(index))
    assert message in refusal(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'])
def test_an_invalid_index_is_refused(shards: Path, tmp_path: Path, content: str) -> None:
    path = copied(shards, tmp_path) / f"{WEIGHTS_FILE}.index.json"
    path.write_text(content)
    assert str(path) in refusal(tmp_path)

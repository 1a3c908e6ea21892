"""Only plain data of a network's folder reaches a library; what only a file names is not fetched."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig
from gen1_train.frozen.clip import ClipConfig, ClipEncoder
from gen1_train.frozen.networks import Networks, recorded_config
from gen1_train.frozen.structure.depth import DepthConfig, DepthEstimator
from tests.frozen.hostile import change_json, hostile_clip, remote_tokenizer
from tests.made_checkpoint import miniature_estimators
from tests.running import WEIGHTS

CPU = torch.device("cpu")


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    """A copy of the miniature's networks."""
    return shutil.copytree(WEIGHTS, tmp_path / "weights")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the hub; any other access than to the cache fails the test. Returns the cache."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("the network was asked"))
    return cache


def cached(cache: Path, repository: str, files: Path, names: dict[str, str]) -> None:
    """Puts files into the hub's cache, as a download does: name in the repository -> name in `files`."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("1" * 40)
    (folder / "snapshots" / ("1" * 40)).mkdir(parents=True)
    for name, file in names.items():
        shutil.copy(files / file, folder / "snapshots" / ("1" * 40) / name)


def load_clip(model: str, pretrained: str | None = None) -> ClipEncoder:
    return ClipEncoder(ClipConfig(model, pretrained), recorded=True)


@pytest.mark.parametrize("recorded", [False, True])
def test_a_tokenizer_with_code_is_refused_and_does_not_run(tmp_path: Path, recorded: bool) -> None:
    folder = hostile_clip(tmp_path / "clip", tmp_path / "marker")
    with pytest.raises(UserError, match=r"'hf_tokenizer_name' in its text_cfg is not a setting that we allow\)$"):
        ClipEncoder(ClipConfig(f"local-dir:{folder}", None), recorded=recorded)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("text_cfg", {"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}}, "'tokenizer_kwargs' in its text_cfg"),
        ("text_cfg", {"hf_model_name": "someone/x"}, "'hf_model_name' in its text_cfg"),
        ("text_cfg", {"pool_type": "../x"}, r"pool_type='\.\./x', which is not a word"),
        ("vision_cfg", {"timm_model_name": "hf-hub:someone/x"}, "timm_model_name='hf-hub:someone/x', which is not"),
        ("vision_cfg", {"timm_model_name": "local-dir:x"}, "timm_model_name='local-dir:x', which is not a word"),
        ("vision_cfg", {"act_kwargs": {"of": "a b"}}, "of='a b', which is not a word"),
        ("vision_cfg", {"else": 1}, "'else' in its vision_cfg is not a setting"),
    ],
)
def test_every_key_and_text_of_open_clips_config_is_checked(
    networks: Path, section: str, values: dict[str, Any], message: str
) -> None:
    change_json(networks / "clip" / "open_clip_config.json", "model_cfg", section, **values)
    with pytest.raises(UserError, match=message):
        ClipEncoder(ClipConfig(f"local-dir:{networks / 'clip'}", None))


@pytest.mark.parametrize("key", ["auto_map", "quantization_config", "trust_remote_code", "custom_pipelines"])
def test_a_config_that_leads_to_code_is_refused(networks: Path, key: str) -> None:
    for kind, load in (("depth", load_depth), ("autoencoder", load_autoencoder)):
        change_json(networks / kind / "config.json", **{key: {"AutoModel": "evil.Evil"}})
        with pytest.raises(UserError, match=f"its config has '{key}', and only plain weights are loaded"):
            load(networks / kind)


def load_depth(folder: Path) -> DepthEstimator:
    return DepthEstimator(DepthConfig(str(folder), 64, 16))


def load_autoencoder(folder: Path) -> Autoencoder:
    return Autoencoder(AutoencoderConfig(str(folder)))


def test_other_keys_and_other_files_do_not_reach_the_libraries(networks: Path) -> None:
    """Published configs have many other keys, which change nothing. An adapter in the folder would be applied."""
    adapter = json.dumps({"base_model_name_or_path": "someone/x", "peft_type": "LORA"})
    for kind, load in (("depth", load_depth), ("autoencoder", load_autoencoder)):
        (networks / kind / "adapter_config.json").write_text(adapter)
        change_json(networks / kind / "config.json", _name_or_path="/some/where", id2label={"0": "a b"}, strange="a/b")
        assert load(networks / kind).fingerprint == load(WEIGHTS / kind).fingerprint


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone": "someone/x"}, "its backbone is someone/x"),
        ({"backbone_config": {"model_type": "timm_backbone"}}, "its backbone is timm_backbone"),
        ({"backbone_config": "x"}, "its backbone_config is not a JSON object"),
        ({"hidden_act": "a/b"}, "hidden_act='a/b', which is not a word"),
    ],
)
def test_a_backbone_is_never_looked_up(networks: Path, no_hub: Path, values: dict[str, Any], message: str) -> None:
    change_json(networks / "depth" / "config.json", **values)
    with pytest.raises(UserError, match=message):
        load_depth(networks / "depth")


def test_another_class_is_refused(networks: Path) -> None:
    change_json(networks / "autoencoder" / "config.json", _class_name=["x", "y"])
    with pytest.raises(UserError, match="not an AutoencoderKL"):
        load_autoencoder(networks / "autoencoder")


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, "null", '{"model_type": "' + "x" * 2**21 + '"}'])
def test_a_config_that_is_no_config_is_refused_in_one_line(networks: Path, text: str) -> None:
    files = {"clip": "open_clip_config.json", "depth": "config.json", "autoencoder": "config.json"}
    for kind, name in files.items():
        (networks / kind / name).write_text(text)
    for load in (lambda: load_clip(f"local-dir:{networks / 'clip'}"), lambda: load_depth(networks / "depth")):
        with pytest.raises(UserError, match=r"cannot be loaded: .*\(its .*config\.json is") as error:
            load()
        assert "\n" not in str(error.value) and len(str(error.value)) < 700
    with pytest.raises(UserError, match=r"its config\.json is"):
        load_autoencoder(networks / "autoencoder")


@pytest.mark.parametrize(
    ("load", "repository"),
    [
        (lambda: load_clip("hf-hub:someone/x"), "someone/x"),
        (lambda: load_clip("ViT-L-14-quickgelu", "openai"), "timm/vit_large_patch14_clip_224.openai"),
        (lambda: Autoencoder(AutoencoderConfig("someone/x"), recorded=True), "someone/x"),
        (lambda: DepthEstimator(DepthConfig("someone/x"), recorded=True), "someone/x"),
    ],
)
def test_what_only_a_file_names_is_not_fetched(no_hub: Path, load: Any, repository: str) -> None:
    with pytest.raises(UserError, match=f"not downloaded: fetch it first with `hf download {repository}`"):
        load()


def test_a_url_of_open_clips_list_is_not_fetched(no_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tag = {"url": "https://example.org/weights.pt", "quick_gelu": False}
    monkeypatch.setattr("open_clip.get_pretrained_cfg", lambda *_: tag)
    with pytest.raises(UserError, match=f"save https://example.org/weights.pt as {tmp_path}/.cache/clip/weights.pt"):
        load_clip("ViT-B-32", "some")


@pytest.mark.parametrize("path", ["../x", "a/../b", "./nowhere", "/nowhere", "http://x/y", "a/b/c", "hf-hub:../../x"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(no_hub: Path, path: str) -> None:
    with pytest.raises(UserError, match=r"there is no such folder|open_clip lists no such model"):
        load_clip(path)
    with pytest.raises(UserError, match="there is no such folder"):
        Autoencoder(AutoencoderConfig(path))


def test_what_the_user_has_fetched_is_used(no_hub: Path) -> None:
    cached(no_hub, "someone/vae", WEIGHTS / "autoencoder", {name: name for name in ("config.json", WEIGHTS_FILE)})
    autoencoder = Autoencoder(AutoencoderConfig("someone/vae"), recorded=True)
    assert autoencoder.fingerprint == miniature_estimators()["autoencoder"]["fingerprint"]
    names = {"open_clip_config.json": "open_clip_config.json", "open_clip_model.safetensors": CLIP_FILE}
    cached(no_hub, "someone/clip", WEIGHTS / "clip", names)
    clip = load_clip("hf-hub:someone/clip")
    assert clip.fingerprint == miniature_estimators()["clip"]["fingerprint"]


WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
CLIP_FILE = "open_clip_model.safetensors"


def test_a_listed_model_of_the_cache_equals_the_one_that_open_clip_downloads(
    no_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = json.loads((WEIGHTS / "clip" / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "tiny-clip.json").write_text(json.dumps(model))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    tag = {"hf_hub": "someone/tiny/", "quick_gelu": False, "mean": (0.1, 0.2, 0.3), "interpolation": "bilinear"}
    for place in ("open_clip.get_pretrained_cfg", "open_clip.factory.get_pretrained_cfg"):
        monkeypatch.setattr(place, lambda _, name: tag if name == "some" else {})
    cached(no_hub, "someone/tiny", WEIGHTS / "clip", {CLIP_FILE: CLIP_FILE})
    offline = load_clip("tiny-clip", "some")
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: str(WEIGHTS / "clip" / CLIP_FILE))
    online = ClipEncoder(ClipConfig("tiny-clip", "some"))
    assert offline.fingerprint == online.fingerprint and "0.2" in repr(offline._preprocess)
    tag["quick_gelu"] = True
    with pytest.raises(UserError, match="QuickGELU mismatch"):
        load_clip("tiny-clip", "some")


def test_listed_models_with_another_tokenizer_are_refused(no_hub: Path) -> None:
    for model in ("ViT-B-16-SigLIP", "roberta-ViT-B-32"):
        with pytest.raises(UserError, match="only models with open_clip's own tokenizer are supported"):
            ClipEncoder(ClipConfig(model, "webli"))


def test_a_file_of_weights_with_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"x\.npz is not a file of weights"):
        load_clip("ViT-B-32", str(tmp_path / "x.npz"))


def test_the_fingerprint_covers_another_tokenizer(networks: Path) -> None:
    """The standard one adds nothing, so that the fingerprints in older files stay valid."""
    clip = ClipEncoder(ClipConfig(f"local-dir:{networks / 'clip'}", None))
    before = clip.fingerprint
    assert before == "6dd0e67838f4c74cdc5c586b7c5eefc2fcc629811c893058f9c3c4ab519838bf"  # of miniature/released
    clip.tokenizer = open_clip.SimpleTokenizer(context_length=32, clean="whitespace")
    assert clip.fingerprint != before


@pytest.mark.parametrize(
    ("kind", "path", "values"),
    [
        ("autoencoder", (), {"norm_num_groups": 4}),
        ("structure", (), {"num_attention_heads": 4}),
        ("structure", (), {"hidden_act": "relu"}),
        ("clip", ("model_cfg", "text_cfg"), {"heads": 4}),
        ("clip", ("model_cfg",), {"quick_gelu": True}),
    ],
)
def test_a_change_of_the_config_that_no_weight_shows_is_found(
    networks: Path, kind: str, path: tuple[str, ...], values: dict[str, Any]
) -> None:
    folder = networks / {"structure": "depth"}.get(kind, kind)
    estimators = json.loads(json.dumps(miniature_estimators()).replace(str(WEIGHTS), str(networks)))
    found = Networks.recorded(estimators, "x", CPU)
    assert Networks.recorded(estimators, "x", CPU)  # without an architecture, as older files
    estimators[kind]["architecture"] = getattr(found, kind).architecture
    assert Networks.recorded(estimators, "x", CPU)
    change_json(folder / ("open_clip_config.json" if kind == "clip" else "config.json"), *path, **values)
    with pytest.raises(UserError, match="is not the one that made the data of x"):
        Networks.recorded(estimators, "x", CPU)


@pytest.mark.parametrize(
    "values", [{"path": 3}, {"path": None}, {"paths": "x"}, {"chunk": True}, {"chunk": "1"}, 7, None]
)
def test_a_recorded_config_of_other_types_is_refused(values: Any) -> None:
    with pytest.raises(UserError, match=r"^x "):
        recorded_config(AutoencoderConfig, {"config": values, "fingerprint": "x"}, "x")


@pytest.mark.parametrize(
    "entry", [7, None, [], {"kind": ["depth"]}, {"kind": "pose", "config": {}, "fingerprint": "x"}]
)
def test_recorded_networks_of_other_types_are_refused(entry: Any) -> None:
    with pytest.raises(UserError):
        Networks.recorded({**miniature_estimators(), "structure": entry}, "x", CPU)


def test_remote_tokenizer_is_what_open_clip_reads() -> None:
    """The hostile folder of these tests uses keys that open_clip has."""
    assert set(remote_tokenizer()) < set(open_clip.CLIPTextCfg.__dataclass_fields__)


@pytest.mark.parametrize(
    ("network", "path", "values"),
    [
        ("clip", ("model_cfg", "vision_cfg"), {"width": 1 << 17}),
        ("clip", ("model_cfg", "text_cfg"), {"vocab_size": 1 << 30}),
        ("clip", ("model_cfg", "vision_cfg"), {"layers": 100_000}),
        ("autoencoder", (), {"block_out_channels": [8, 16, 32, 1 << 16]}),
        ("autoencoder", (), {"layers_per_block": 10**9}),
        ("depth", (), {"hidden_size": 1 << 16}),
        ("depth", (), {"num_hidden_layers": 10**6}),
    ],
)
def test_a_config_of_a_few_bytes_does_not_fill_the_memory(
    networks: Path, network: str, path: tuple[str, ...], values: dict[str, Any]
) -> None:
    file = networks / network / ("open_clip_config.json" if network == "clip" else "config.json")
    change_json(file, *path, **values)
    load: dict[str, Callable[[], object]] = {
        "clip": lambda: ClipEncoder(ClipConfig(f"local-dir:{networks / 'clip'}", None), recorded=True),
        "autoencoder": lambda: Autoencoder(AutoencoderConfig(str(networks / "autoencoder")), recorded=True),
        "depth": lambda: DepthEstimator(DepthConfig(str(networks / "depth")), recorded=True),
    }
    for _ in range(2):
        with pytest.raises(UserError, match="cannot be loaded"):
            load[network]()


@pytest.mark.parametrize("recorded", [False, True])
def test_a_name_of_a_stranger_is_not_printed_by_a_library(recorded: bool, capfd: pytest.CaptureFixture[str]) -> None:
    config = ClipConfig("ViT-B-32", "\x1b[2J/nothing")
    with pytest.raises(UserError, match=r"\\x1b\[2J/nothing is neither a tag of this model nor a file"):
        ClipEncoder(config, recorded=recorded)
    assert "\x1b" not in "".join(capfd.readouterr())

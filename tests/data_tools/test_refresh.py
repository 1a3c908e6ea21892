"""One layer made anew: it is what the new network gives, and nothing else in the set has changed by a byte."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from data_tools import refresh
from data_tools.estimate import Estimators
from data_tools.prepare import run as prepare
from data_tools.recipe import RecipeConfig
from data_tools.refresh import RefreshConfig, run
from data_tools.stats import Stats
from data_tools.verify import VerifyConfig
from data_tools.verify import run as verify
from gen1_train.data.index import read_index
from gen1_train.data.opened import OpenFile
from gen1_train.data.shards import Manifest, ShardSet, read_members
from gen1_train.errors import UserError
from gen1_train.estimators.depth import DepthConfig
from gen1_train.model.autoencoder import AutoencoderConfig
from tests.data_tools.source import WEIGHTS, config, make_source, quick_recipe

POOL = "video-64x48"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of one source: `whole`, and `bare`, which holds no latents."""
    folder = tmp_path_factory.mktemp("sets")
    source = make_source(folder / "source")
    prepare(config(source, folder / "whole"))
    prepare(config(source, folder / "bare", latents=False))
    return folder


def members(root: Path, prefix: str) -> dict[str, bytes]:
    """All members of all samples whose name begins so."""
    found = {}
    for tar in sorted((root / "shards").glob("*.tar")):
        for entry in read_index(tar):
            names = [name for name in entry.members if name.startswith(prefix)]
            with OpenFile(tar) as file:
                found |= {f"{entry.key}.{name}": data for name, data in read_members(file, entry, names).items()}
    return found


def again(sets: Path, output: Path, layer: str, recipe: RecipeConfig, source: str = "whole") -> Path:
    assert run(RefreshConfig(str(sets / source), str(output), layer, recipe)) == 0
    assert verify(VerifyConfig(str(output), workers=1)) in (0, None)
    return output


ALL = ("frame", "structure0", "structure_latent", "moments", "image_embedding", "text_embedding", "caption")


@pytest.mark.parametrize(
    ("layer", "changes", "changed"),
    [
        ("edges", {}, {"structure0", "structure_latent"}),
        ("structure", {"depth": DepthConfig(str(WEIGHTS / "depth"), 64, 16)}, {"structure0", "structure_latent"}),
        ("clip", {}, {"image_embedding"}),
        ("latents", {}, {"moments"}),
    ],
)
def test_only_that_layer_changes(sets: Path, tmp_path: Path, layer: str, changes: dict, changed: set[str]) -> None:
    """CLIP and latents change a little, for they are now made from the JPEGs; captions and structure latents do not."""
    new = again(sets, tmp_path / "new", layer, quick_recipe(**changes))
    for prefix in ALL:
        before, after = members(sets / "whole", prefix), members(new, prefix)
        assert before and before.keys() == after.keys()
        assert (before != after) == (prefix in changed), prefix
    old, made = Manifest.load(sets / "whole"), Manifest.load(new)
    assert made.refreshed == {"structure" if layer == "edges" else layer: old.hash} and made.plan == old.plan
    total = sum(len(data) for data in members(new, "").values())
    assert sum(Stats.load(new).bytes.values()) == total


def test_what_is_made_is_what_the_network_gives_for_the_stored_frames(sets: Path, tmp_path: Path) -> None:
    recipe = quick_recipe(structure="edges")
    new = ShardSet(again(sets, tmp_path / "new", "structure", recipe))
    sample = new.read(POOL, 2, ("frames", "structure", "structure_latent", "meta"))
    assert sample.frames is not None and sample.structure is not None and sample.meta is not None
    estimators = Estimators(recipe, "cpu")
    (found,) = estimators.maps(sample.frames[None])
    assert isinstance(found, tuple)
    np.testing.assert_array_equal(sample.structure, found[0])
    assert set(np.unique(sample.structure)) <= {0, 65535} and sample.structure.any()
    assert sample.meta["structure"] == new.manifest.estimators["structure"]["kind"] == "edges"
    assert sample.meta["normalise"] == new.manifest.estimators["structure"]["normalise"]
    assert sample.meta["source"] in ("a.mp4", "sub/b.c.mkv")


def test_latents_can_be_added_later(sets: Path, tmp_path: Path) -> None:
    assert not members(sets / "bare", "moments") and not members(sets / "bare", "structure_latent")
    assert Manifest.load(sets / "bare").estimators["autoencoder"]["stored"] is False
    new = again(sets, tmp_path / "new", "latents", quick_recipe(), source="bare")
    assert Manifest.load(new).estimators["autoencoder"]["stored"] is True
    # the structure was made from the frames before JPEG in both sets, and its latent from the stored structure
    assert members(new, "structure_latent") == members(sets / "whole", "structure_latent")
    assert members(new, "moments").keys() == members(sets / "whole", "moments").keys()


def test_a_killed_refresh_goes_on_and_a_finished_one_costs_nothing(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, output = quick_recipe(structure="edges"), tmp_path / "new"
    straight = again(sets, tmp_path / "straight", "structure", recipe)
    one = refresh.refresh_shard

    def dies(source: Path, *arguments: object) -> object:
        shard = one(source, *arguments)  # type: ignore[arg-type]
        if len(list((output / "shards").glob("*.index"))) == 1:
            raise KeyboardInterrupt
        return shard

    monkeypatch.setattr(refresh, "refresh_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        again(sets, output, "structure", recipe)
    assert not (output / "manifest.json").exists()
    with pytest.raises(UserError, match="was begun with another set or other weights"):
        run(RefreshConfig(str(sets / "whole"), str(output), "clip", recipe))
    monkeypatch.setattr(refresh, "refresh_shard", one)
    first = next((output / "shards").glob("*.tar"))
    before = first.stat().st_mtime_ns
    again(sets, output, "structure", recipe)
    assert first.stat().st_mtime_ns == before
    assert members(output, "") == members(straight, "")
    monkeypatch.setattr(refresh, "Estimators", lambda *_: pytest.fail("it is finished"))
    again(sets, output, "structure", recipe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "colour"}, "layer=colour is not one of structure, clip, latents, depth, edges"),
        ({"source": "nowhere"}, "no shard set at"),
        ({"layer": "latents", "recipe": replace(quick_recipe(), latents=False)}, "would make nothing"),
        (
            {"recipe": replace(quick_recipe(), depth=DepthConfig("nowhere"))},
            "depth estimator 'nowhere' cannot be loaded",
        ),
        ({"recipe": replace(quick_recipe(), structure="normals")}, "recipe.structure=normals"),
    ],
)
def test_mistakes_are_named(sets: Path, tmp_path: Path, changes: dict, message: str) -> None:
    values = {"source": str(sets / "whole"), "output": str(tmp_path / "new"), "layer": "structure"}
    settings = RefreshConfig(**{**values, "recipe": quick_recipe(), **changes})
    with pytest.raises(UserError, match=message):
        run(settings)
    assert not (tmp_path / "new").exists()


def test_a_set_is_never_changed_in_place(sets: Path) -> None:
    with pytest.raises(UserError, match="a frozen set is never changed"):
        run(RefreshConfig(str(sets / "whole"), str(sets / "whole"), "clip", quick_recipe()))


def test_a_damaged_sample_is_named(sets: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sets / "whole", tmp_path / "copy")
    tar = copy / "shards" / f"{POOL}-000000.tar"
    entry = read_index(tar)[0]
    data = bytearray(tar.read_bytes())
    data[entry.members["frame00.jpg"][0] + 9] ^= 1
    tar.write_bytes(data)
    with pytest.raises(UserError, match=rf"is damaged \({tar.name}: member {entry.key}.frame00.jpg"):
        run(RefreshConfig(str(copy), str(tmp_path / "new"), "clip", quick_recipe()))


def test_structure_needs_the_autoencoder_that_the_set_was_made_with(sets: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(WEIGHTS / "autoencoder", tmp_path / "autoencoder")
    prepare(config(sets / "source", tmp_path / "own", autoencoder=AutoencoderConfig(str(copy))))
    (weights,) = copy.glob("*.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in load_file(weights).items()}, weights)
    settings = RefreshConfig(str(tmp_path / "own"), str(tmp_path / "new"), "structure", quick_recipe())
    with pytest.raises(UserError, match="is not the one that encoded the set"):
        run(settings)
    settings.layer, settings.recipe.autoencoder.path = "latents", str(copy)
    assert run(settings) == 0

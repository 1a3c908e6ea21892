"""A recomputed layer is what the new network gives, and no other byte of the set changes."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from data_tools.estimate import Estimators
from data_tools.prepare import run as prepare
from data_tools.recipe import RecipeConfig
from data_tools.sets import refresh
from data_tools.sets.refresh import RefreshConfig, run
from data_tools.sets.verify import VerifyConfig
from data_tools.sets.verify import run as verify
from data_tools.stats import Stats
from gen1_train.data.index import read_index
from gen1_train.data.manifest import Manifest
from gen1_train.data.open_files import OpenFile
from gen1_train.data.shards import ShardSet, read_members
from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import AutoencoderConfig
from gen1_train.frozen.levels import set_degradation, stored_level
from gen1_train.frozen.structure.depth import DepthConfig
from gen1_train.frozen.structure.kinds import STRUCTURES
from tests.data_tools.small_source import WEIGHTS, config, make_source, quick_recipe

POOL = "video-64x48"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sets of one source: `whole`, `bare` without latents, `flat` with those of the structure at t_s = 0 only."""
    folder = tmp_path_factory.mktemp("sets")
    source = make_source(folder / "source")
    prepare(config(source, folder / "whole"))
    prepare(config(source, folder / "bare", latents=False))
    prepare(config(source, folder / "flat", structure_levels=0))
    return folder


def members(root: Path, prefix: str) -> dict[str, bytes]:
    """Returns all members of all samples whose name begins with `prefix`."""
    result = {}
    for tar in sorted((root / "shards").glob("*.tar")):
        for entry in read_index(tar):
            names = [name for name in entry.members if name.startswith(prefix)]
            with OpenFile(tar) as file:
                result |= {f"{entry.key}.{name}": data for name, data in read_members(file, entry, names).items()}
    return result


def again(sets: Path, output: Path, layer: str, recipe: RecipeConfig, source: str = "whole") -> Path:
    assert run(RefreshConfig(str(sets / source), str(output), layer, recipe)) == 0
    assert verify(VerifyConfig(str(output), workers=1)) in (0, None)
    return output


ALL = ("frame", "structure0", "structure_latent", "moments", "image_embedding", "text_embedding", "caption")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "changes", "changed"),
    [
        ("edges", {}, {"structure0", "structure_latent"}),
        ("soft_edges", {}, {"structure0", "structure_latent"}),
        ("face", {}, {"structure0", "structure_latent"}),
        ("structure", {"depth": DepthConfig(str(WEIGHTS / "depth"), 64, 16)}, {"structure0", "structure_latent"}),
        ("clip", {}, {"image_embedding"}),
        ("latents", {}, {"moments"}),
    ],
)
def test_only_that_layer_changes(sets: Path, tmp_path: Path, layer: str, changes: dict, changed: set[str]) -> None:
    """CLIP and latents change a little, as they are now made from the JPEGs; captions and structure latents do not."""
    new = again(sets, tmp_path / "new", layer, quick_recipe(**changes))
    for prefix in ALL:
        before, after = members(sets / "whole", prefix), members(new, prefix)
        assert before and before.keys() == after.keys()
        assert (before != after) == (prefix in changed), prefix
    old, refreshed = Manifest.load(sets / "whole"), Manifest.load(new)
    assert refreshed.refreshed == {"structure" if layer in STRUCTURES else layer: old.hash}
    assert refreshed.plan == old.plan
    total = sum(len(data) for data in members(new, "").values())
    stats = Stats.load(new)
    assert sum(stats.bytes.values()) == total
    frames = sum(pool.frames * pool.samples for pool in refreshed.pools.values())
    counted = frames if layer == "face" else 0
    assert (stats.structure_frames, stats.empty_frames) == (counted, counted)  # the source is noise without a face


@pytest.mark.slow
def test_the_layer_is_what_the_network_gives_for_the_stored_frames(sets: Path, tmp_path: Path) -> None:
    recipe = quick_recipe(structure="edges")
    new = ShardSet(again(sets, tmp_path / "new", "structure", recipe))
    sample = new.read(POOL, 2, ("frames", "structure", "structure_latent", "meta"))
    assert sample.frames is not None and sample.structure is not None and sample.meta is not None
    estimators = Estimators(recipe, "cpu")
    (result,) = estimators.maps(sample.frames[None])
    assert isinstance(result, tuple)
    np.testing.assert_array_equal(sample.structure, result[0])
    assert set(np.unique(sample.structure)) <= {0, 65535} and sample.structure.any()
    assert sample.meta["structure"] == new.manifest.estimators["structure"]["kind"] == "edges"
    assert sample.meta["normalise"] == new.manifest.estimators["structure"]["normalise"]
    assert sample.meta["source"] in ("a.mp4", "sub/b.c.mkv")


@pytest.mark.slow
def test_levels_can_be_added_and_removed_later(sets: Path, tmp_path: Path) -> None:
    """The manifest of `flat` is like that of an older version, whose recipe has no such setting either."""
    flat = Path(shutil.copytree(sets / "flat", tmp_path / "old"))
    old = Manifest.load(flat)
    assert "levels" not in old.estimators["autoencoder"] and old.recipe.pop("structure_levels") == 0
    old.save(flat)
    assert verify(VerifyConfig(str(flat), workers=1)) in (0, None)
    edges = again(tmp_path, tmp_path / "edges", "edges", quick_recipe(), source="old")
    assert Manifest.load(edges).recipe["structure_levels"] == 0  # a setting of the latents, not of the structure
    assert len(members(edges, "structure_latent")) == 7 and stored_level(autoencoder_of(edges)) == 0
    added = again(tmp_path, tmp_path / "added", "latents", quick_recipe(), source="old")
    assert members(added, "structure_latent") == members(sets / "whole", "structure_latent")
    assert autoencoder_of(added) == autoencoder_of(sets / "whole") and stored_level(autoencoder_of(added)) == 7
    removed = again(tmp_path, tmp_path / "removed", "latents", quick_recipe(structure_levels=2), source="added")
    assert len(members(removed, "structure_latent")) == 3 * 7 and stored_level(autoencoder_of(removed)) == 2


@pytest.mark.slow
def test_levels_can_be_degraded_in_the_other_way(sets: Path, tmp_path: Path) -> None:
    relative = again(
        tmp_path, tmp_path / "relative", "latents", quick_recipe(degradation="relative"), str(sets / "whole")
    )
    before, after = (members(root, "structure_latent") for root in (sets / "whole", relative))
    same = {name for name in before if after[name] == before[name]}
    assert before.keys() == after.keys() and same == {name for name in before if name.endswith("structure_latent.npy")}
    assert set_degradation(autoencoder_of(relative)) == "relative" == Manifest.load(relative).recipe["degradation"]
    assert set_degradation(autoencoder_of(sets / "whole")) == "pixels" and stored_level(autoencoder_of(relative)) == 7
    edges = again(tmp_path, tmp_path / "edges", "edges", quick_recipe(), str(relative))  # they are the latents'
    assert autoencoder_of(edges) == autoencoder_of(relative)


def autoencoder_of(root: Path) -> dict[str, Any]:
    return Manifest.load(root).estimators["autoencoder"]


@pytest.mark.slow
def test_latents_can_be_added_later(sets: Path, tmp_path: Path) -> None:
    assert not members(sets / "bare", "moments") and not members(sets / "bare", "structure_latent")
    assert Manifest.load(sets / "bare").estimators["autoencoder"]["stored"] is False
    new = again(sets, tmp_path / "new", "latents", quick_recipe(), source="bare")
    assert Manifest.load(new).estimators["autoencoder"]["stored"] is True
    # the structure was made from the frames before JPEG in both sets, and its latent from the stored structure
    assert members(new, "structure_latent") == members(sets / "whole", "structure_latent")
    assert members(new, "moments").keys() == members(sets / "whole", "moments").keys()


def test_a_killed_refresh_resumes_and_a_finished_one_returns_at_once(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, output = quick_recipe(structure="edges"), tmp_path / "new"
    straight = again(sets, tmp_path / "straight", "structure", recipe)
    original = refresh.refresh_shard

    def refresh_and_die(source: Path, *arguments: object) -> object:
        shard = original(source, *arguments)  # type: ignore[arg-type]
        if len(list((output / "shards").glob("*.index"))) == 1:
            raise KeyboardInterrupt
        return shard

    monkeypatch.setattr(refresh, "refresh_shard", refresh_and_die)
    with pytest.raises(KeyboardInterrupt):
        again(sets, output, "structure", recipe)
    assert not (output / "manifest.json").exists()
    with pytest.raises(UserError, match="was started with another set or other weights"):
        run(RefreshConfig(str(sets / "whole"), str(output), "clip", recipe))
    monkeypatch.setattr(refresh, "refresh_shard", original)
    first = next((output / "shards").glob("*.tar"))
    before = first.stat().st_mtime_ns
    again(sets, output, "structure", recipe)
    assert first.stat().st_mtime_ns == before
    assert members(output, "") == members(straight, "")
    monkeypatch.setattr(refresh, "Estimators", lambda *_: pytest.fail("the set is already finished"))
    again(sets, output, "structure", recipe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "color"}, "layer=color is not one of structure, clip, latents, caption, depth, edges"),
        ({"source": "nowhere"}, "no shard set at"),
        ({"layer": "latents", "recipe": replace(quick_recipe(), latents=False)}, "makes nothing"),
        (
            {"recipe": replace(quick_recipe(), depth=DepthConfig("./nowhere"))},
            r"depth estimator '\./nowhere' cannot be loaded",
        ),
        ({"recipe": replace(quick_recipe(), structure="normals")}, "recipe.structure=normals"),
    ],
)
def test_mistakes_are_errors_with_one_line(sets: Path, tmp_path: Path, changes: dict, message: str) -> None:
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


@pytest.mark.slow
def test_structure_needs_the_autoencoder_of_the_set(sets: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(WEIGHTS / "autoencoder", tmp_path / "autoencoder")
    prepare(config(sets / "source", tmp_path / "own", autoencoder=AutoencoderConfig(str(copy))))
    (weights,) = copy.glob("*.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in load_file(weights).items()}, weights)
    settings = RefreshConfig(str(tmp_path / "own"), str(tmp_path / "new"), "structure", quick_recipe())
    with pytest.raises(UserError, match="is not the one that encoded the set"):
        run(settings)
    settings.layer = "latents"
    settings.recipe.autoencoder.path = str(copy)
    assert run(settings) == 0


def test_a_set_of_others_leads_to_no_other_file(sets: Path, tmp_path: Path) -> None:
    """A list of failures that is a link would be copied into a set that is handed on."""
    source = Path(shutil.copytree(sets / "whole", tmp_path / "source"))
    (tmp_path / "secret").write_text("hush")
    (source / "failures.jsonl").unlink()
    (source / "failures.jsonl").symlink_to(tmp_path / "secret")
    output = tmp_path / "new"
    for _ in range(2):
        with pytest.raises(UserError, match="is not a list of failures"):
            run(RefreshConfig(str(source), str(output), "structure", quick_recipe(structure="edges")))
    assert not [path for path in output.rglob("*") if path.is_file() and b"hush" in path.read_bytes()]
    shutil.rmtree(output / "shards")
    (output / "shards").symlink_to(sets / "whole" / "shards")
    with pytest.raises(UserError, match="shards is a link"):
        run(RefreshConfig(str(source), str(output), "structure", quick_recipe(structure="edges")))

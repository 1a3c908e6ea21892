"""Captions by a network: in a new set, and added to a frozen one. A given caption is never replaced."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.estimate import Estimators
from data_tools.prepare import run as prepare
from data_tools.sets.refresh import RefreshConfig, run
from data_tools.sets.verify import VerifyConfig
from data_tools.sets.verify import run as verify
from data_tools.stats import CAPTIONED_BY, Stats
from gen1_train.data.manifest import Manifest
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from gen1_train.frozen.captions.blip import BlipConfig
from gen1_train.frozen.captions.coca import CocaConfig
from tests.data_tools.sets.test_refresh import POOL, members
from tests.data_tools.small_source import config, make_source, quick_recipe
from tests.frozen.captions.published import make_blip, make_coca

GIVEN = {"sub-b-c": "a noise that wanders", "photo": "a noise"}  # start of the key -> the caption in the source


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set without captions of a network, and two networks."""
    folder = tmp_path_factory.mktemp("sets")
    make_blip(folder / "blip")
    make_coca(folder / "coca")
    prepare(config(make_source(folder / "source"), folder / "plain", structure="edges", latents=False))
    return folder


def blip(sets: Path) -> dict[str, Any]:
    return {"caption": "blip", "blip": BlipConfig(str(sets / "blip"))}


def again(source: Path, output: Path, layer: str = "caption", **changes: Any) -> Path:
    assert run(RefreshConfig(str(source), str(output), layer, quick_recipe(**changes))) == 0
    assert verify(VerifyConfig(str(output), workers=1)) in (0, None)
    return output


def captions(root: Path) -> dict[str, tuple[str | None, str | None]]:
    """Returns key -> the caption and who made it, of each sample."""
    texts, metas = members(root, "caption"), members(root, "meta")
    keys = [name.removesuffix(".meta.json") for name in metas]
    made_by = {key: json.loads(metas[f"{key}.meta.json"]).get(CAPTIONED_BY) for key in keys}
    found = {key: texts.get(f"{key}.caption.txt") for key in keys}
    return {key: (text.decode() if text else None, made_by[key]) for key, text in found.items()}


def given(key: str) -> str | None:
    return next((caption for start, caption in GIVEN.items() if key.startswith(start)), None)


def test_captions_are_added_and_made_again_but_a_given_one_stays(sets: Path, tmp_path: Path) -> None:
    plain = sets / "plain"
    assert captions(plain) == {key: (given(key), None) for key in captions(plain)}
    made = again(plain, tmp_path / "made", **blip(sets))
    coca: dict[str, Any] = {"caption": "coca", "coca": CocaConfig(f"local-dir:{sets / 'coca'}", None)}
    other = again(made, tmp_path / "other", **coca)
    for root, kind in ((made, "blip"), (other, "coca")):
        found = captions(root)
        for key, (caption, made_by) in found.items():
            assert caption and (caption, made_by) == (given(key) or caption, None if given(key) else kind)
        assert members(root, "text_embedding").keys() == {f"{key}.text_embedding.npy" for key in found}
        stats, description = Stats.load(root), Manifest.load(root).estimators["caption"]
        assert stats.captioned == len(found) and stats.made_captions == sum(not given(key) for key in found) > 0
        assert description["kind"] == kind and len(description["fingerprint"]) == 64
        assert sum(stats.bytes.values()) == sum(len(data) for data in members(root, "").values())
    assert len(set(captions(made).values())) > 3 and captions(made) != captions(other)
    # nothing else has changed: frames, structure, image embeddings, and all members of captioned samples
    for prefix in ("frame", "structure", "image_embedding"):
        assert members(made, prefix) == members(other, prefix) == members(plain, prefix)
    before, after = members(plain, ""), members(other, "")
    assert {name: data for name, data in before.items() if given(name)} == {
        name: data for name, data in after.items() if given(name)
    }
    # and a layer that is refreshed later keeps the captions, without their network
    (sets / "blip" / "vocab.txt").rename(sets / "vocabulary")
    latents = again(made, tmp_path / "latents", "latents", latents=True)
    (sets / "vocabulary").rename(sets / "blip" / "vocab.txt")
    assert captions(latents) == captions(made)
    assert Manifest.load(latents).estimators["caption"] == Manifest.load(made).estimators["caption"]


def test_a_made_caption_is_of_the_middle_frame_with_its_embedding(sets: Path, tmp_path: Path) -> None:
    made = ShardSet(again(sets / "plain", tmp_path / "made", **blip(sets)))
    estimators = Estimators(quick_recipe(**blip(sets)), "cpu")
    assert estimators.captioner is not None
    for index in range(3):
        sample = made.read(POOL, index, ("frames", "meta", "caption", "text_embedding"))
        assert sample.frames is not None and sample.meta is not None and sample.caption is not None
        if CAPTIONED_BY in sample.meta:
            assert [sample.caption] == estimators.captioner(sample.frames[[1]])
        np.testing.assert_array_equal(sample.text_embedding, estimators.text_embedding(sample.caption))


def test_a_new_set_is_captioned_as_an_old_one(sets: Path, tmp_path: Path) -> None:
    assert prepare(config(sets / "source", tmp_path / "new", structure="edges", latents=False, **blip(sets))) == 3
    new, found = tmp_path / "new", captions(tmp_path / "new")
    assert found.keys() == captions(sets / "plain").keys()
    assert all(caption and made_by == (None if given(key) else "blip") for key, (caption, made_by) in found.items())
    stats = Stats.load(new)
    assert (stats.captioned, stats.made_captions) == (len(found), sum(not given(key) for key in found))
    page = (new / "report.html").read_text()
    assert f"{stats.made_captions} of {len(found)} captions were made by blip" in page
    assert page.count("</q> by blip") == stats.made_captions  # on the contact sheet, which shows all samples here
    for prefix in ("frame", "structure", "image_embedding"):
        assert members(new, prefix) == members(sets / "plain", prefix)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "layer=caption needs a network: add recipe.caption=coca or blip"),
        ({"caption": "gpt"}, "recipe.caption=gpt is not one of none, coca, blip"),
        ({"caption": "blip", "blip": BlipConfig("/nowhere")}, "captioner '/nowhere' cannot be loaded"),
    ],
)
def test_mistakes_are_errors_with_one_line(sets: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        again(sets / "plain", tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()


def test_embeddings_need_the_clip_of_the_set(sets: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(sets / "plain", tmp_path / "other"))
    manifest = Manifest.load(other)
    manifest.estimators["clip"]["fingerprint"] = "0" * 64
    manifest.save(other)
    with pytest.raises(UserError, match=r"is not the one that embedded the set .* run layer=clip first"):
        again(other, tmp_path / "new", **blip(sets))

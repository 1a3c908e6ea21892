"""A folder of images becomes a small shard set inside a run: whole or not there, and what cannot be used is named."""

import os
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from gen1_train import subject
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from gen1_train.networks import Networks
from gen1_train.subject import digest_of, find_images, make_subject, read_subject
from gen1_train.video.geometry import resize_and_crop
from gen1_train.video.image import read_image
from tests.made_checkpoint import miniature_estimators

FIELDS = ("frames", "structure", "moments", "structure_latent", "image_embedding", "meta")
CPU = torch.device("cpu")


def picture(path: Path, seed: int, width: int = 112, height: int = 64, **options) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images of several formats and sizes, and files that are none."""
    folder = tmp_path_factory.mktemp("images")
    for number, suffix in enumerate(("png", "jpg", "webp", "JPEG", "png", "png", "png")):
        picture(folder / f"{number}.{suffix}", number)
    picture(folder / "7-portrait.png", 7, width=64, height=112)
    picture(folder / "8-small.png", 8, width=56, height=32)
    (folder / "9-again.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "broken.jpg").write_bytes((folder / "1.jpg").read_bytes()[:200])
    (folder / "text.png").write_text("no image")
    (folder / "readme.txt").write_text("not looked at")
    (folder / ".hidden.png").write_text("not looked at")
    return folder


def make(run: Path, folder: Path, every: int = 5, buckets=("112x64", "64x112"), said: list[str] | None = None):
    said = [] if said is None else said
    made_by = miniature_estimators()
    return make_subject(run, folder, find_images(folder), buckets, made_by, "the checkpoint", every, CPU, said.append)


def test_what_is_made_is_what_the_networks_give(tmp_path, folder):
    said: list[str] = []
    made = make(tmp_path, folder, said=said)
    names = sorted(made.used + made.held_out)
    assert made.held_out == ["4.png"] and names == sorted(
        name for name in find_images(folder) if name not in made.left_out
    )
    assert made.left_out.keys() == {"9-again.png", "broken.jpg", "text.png"}
    assert made.left_out["9-again.png"] == "the same as 0.png"
    shards = ShardSet(made.train)
    assert [(pool.pool.name, pool.samples) for pool in shards.pools("image")] == [
        ("image-112x64", 7),
        ("image-64x112", 1),
    ]
    networks = Networks.recorded(miniature_estimators(), "x", CPU)
    sample = shards.read("image-112x64", 0, FIELDS)
    assert sample.meta is not None and sample.meta["source"] == "0.png"
    frames = resize_and_crop(read_image(folder / "0.png")[None], 112, 64)
    np.testing.assert_array_equal(sample.moments, networks.moments(frames[None])[0])
    np.testing.assert_array_equal(sample.image_embedding, networks.image_embeddings(frames[None])[0])
    found = networks.maps(frames[None])[0]
    assert isinstance(found, tuple)
    np.testing.assert_array_equal(sample.structure, found[0])
    np.testing.assert_array_equal(sample.structure_latent, networks.structure_latents(found[0]))


def test_every_image_with_a_problem_is_named(tmp_path, folder):
    said: list[str] = []
    make(tmp_path, folder, buckets=["112x64"], said=said)
    told = "\n".join(said)
    for name in ("9-again.png", "broken.jpg", "text.png"):
        assert f"warning: {name} is left out: " in told
    assert "note: of 7-portrait.png (64x112) only the centre, 33%, is seen in 112x64" in told
    assert "note: 8-small.png (56x32) is small: it is enlarged 2 times" in told
    assert "note: 9 images of the subject; 15 to 30 are usual" in told


def test_it_is_found_again_until_an_image_changes(tmp_path, folder):
    made_by, buckets = miniature_estimators(), ["112x64", "64x112"]
    made = make(tmp_path, folder)
    hashes = find_images(folder)
    assert read_subject(tmp_path, digest_of(hashes, buckets, made_by, 5)) == made
    others = {**hashes, "0.png": "changed"}, {k: v for k, v in hashes.items() if k != "1.jpg"}
    assert all(read_subject(tmp_path, digest_of(other, buckets, made_by, 5)) is None for other in others)
    for change in (digest_of(hashes, ["112x64"], made_by, 5), digest_of(hashes, buckets, made_by, 4)):
        assert read_subject(tmp_path, change) is None
    again = make(tmp_path, folder, every=0)  # in place of the other
    assert again.held_out == [] and again.validation is None and not (again.folder / "held_out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_it_is_whole_or_not_there(tmp_path, folder):
    (tmp_path / ".images.killed").mkdir()
    with (
        patch.object(subject, "make_sample", side_effect=OSError(28, os.strerror(28))),
        pytest.raises(UserError) as error,
    ):
        make(tmp_path, folder)
    assert "cannot be written (No space left on device)" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no folder: give one with 15 to 30 images"):
        find_images(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is no folder"):
        find_images(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"has no image in it \(\.jpg, .*put 15 to 30"):
        find_images(tmp_path / "empty")


def test_images_of_which_none_can_be_used_are_refused(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(UserError, match=r"no image in images=.* can be used \(a\.png: no image that PIL can read\)"):
        make(tmp_path / "run", tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_huge_image_is_named(tmp_path):
    picture(tmp_path / "a.png", 1)
    Image.new("1", (20000, 20000)).save(tmp_path / "huge.png")  # 400 M pixels in 50 KB
    made = make(tmp_path / "run", tmp_path)
    assert made.used == ["a.png"] and "400000000 pixels" in made.left_out["huge.png"]

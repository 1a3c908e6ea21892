"""A folder of images becomes a small shard set inside a run, atomically; images that cannot be used are named."""

import os
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from gen1_train.batch import latent_field
from gen1_train.data.merged import MergedShards
from gen1_train.data.shards import ShardSet
from gen1_train.diffusion.structure import PIXELS, RELATIVE
from gen1_train.errors import UserError
from gen1_train.frozen.levels import set_degradation, stored_level
from gen1_train.frozen.networks import Networks
from gen1_train.training.customization import subject
from gen1_train.training.customization.subject import (
    Subject,
    find_images,
    make_subject,
    read_pictures,
    read_subject,
    subject_digest,
)
from gen1_train.video.geometry import resize_and_crop
from gen1_train.video.image import read_image
from tests.made_checkpoint import miniature_estimators
from tests.video.files import make_video
from tests.video.files import picture as noise
from tests.video.pictures import write_image

FIELDS = ("frames", "structure", "moments", "structure_latent", "image_embedding", "meta")
CPU = torch.device("cpu")


def picture(path: Path, seed: int, width: int = 112, height: int = 64, **options) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images of several formats and sizes, and files that are not images."""
    folder = tmp_path_factory.mktemp("images")
    for number, suffix in enumerate(("png", "jpg", "webp", "JPEG", "png", "png", "png")):
        picture(folder / f"{number}.{suffix}", number)
    picture(folder / "7-portrait.png", 7, width=64, height=112)
    picture(folder / "8-small.png", 8, width=56, height=32)
    (folder / "9-again.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "broken.jpg").write_bytes((folder / "1.jpg").read_bytes()[:200])
    (folder / "text.png").write_text("no image")
    (folder / "readme.txt").write_text("ignored")
    (folder / ".hidden.png").write_text("ignored")
    return folder


def make(run: Path, folder: Path, every: int = 5, buckets=("112x64", "64x112"), degradation: str = PIXELS) -> Subject:
    return make_subject(
        run=run,
        folder=folder,
        hashes=find_images(folder),
        buckets=buckets,
        clip_buckets=["112x64"],
        estimators=miniature_estimators(),
        source="the checkpoint",
        every=every,
        degradation=degradation,
        device=CPU,
    )


def test_the_samples_are_what_the_networks_compute(tmp_path, folder):
    made = make(tmp_path, folder)
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
    merged = MergedShards(made.train)
    assert (merged.buckets, merged.image_buckets) == (["112x64"], ["112x64", "64x112"])
    networks = Networks.recorded(miniature_estimators(), "x", CPU)
    sample = shards.read("image-112x64", 0, FIELDS)
    assert sample.meta is not None and sample.meta["source"] == "0.png"
    frames = resize_and_crop(read_image(folder / "0.png")[None], 112, 64)
    np.testing.assert_array_equal(sample.moments, networks.moments(frames[None])[0])
    np.testing.assert_array_equal(sample.image_embedding, networks.image_embeddings(frames[None])[0])
    estimate = networks.maps(frames[None])[0]
    assert isinstance(estimate, tuple)
    np.testing.assert_array_equal(sample.structure, estimate[0])
    np.testing.assert_array_equal(sample.structure_latent, networks.structure_latents(estimate[0]))
    assert stored_level(shards.manifest.estimators["autoencoder"]) == 7
    degraded = shards.read("image-112x64", 0, (latent_field(7),)).degraded_latents
    np.testing.assert_array_equal(degraded[7], networks.structure_latents(estimate[0], 7))
    relative = ShardSet(make(tmp_path / "relative", folder, degradation=RELATIVE).train)
    assert set_degradation(relative.manifest.estimators["autoencoder"]) == RELATIVE
    degraded = relative.read("image-112x64", 0, (latent_field(7),)).degraded_latents
    np.testing.assert_array_equal(degraded[7], networks.structure_latents(estimate[0], 7, RELATIVE))


def test_every_image_with_a_problem_is_named(tmp_path, folder, capsys):
    make(tmp_path, folder, buckets=["112x64"])
    output = capsys.readouterr().out
    for name in ("9-again.png", "broken.jpg", "text.png"):
        assert f"warning: {name} is left out: " in output
    assert "note: only the center of 7-portrait.png (64x112), 33%, is left in 112x64: crop it" in output
    assert "note: 8-small.png (56x32) is small: it is enlarged 2 times" in output
    assert "note: there are 9 images of the subject; 15 to 30 are usual" in output


def test_it_is_reused_until_an_image_changes(tmp_path, folder):
    estimators, buckets = miniature_estimators(), ["112x64", "64x112"]
    made = make(tmp_path, folder)
    hashes = find_images(folder)
    assert read_subject(tmp_path, subject_digest(hashes, buckets, estimators, 5)) == made
    others = {**hashes, "0.png": "changed"}, {k: v for k, v in hashes.items() if k != "1.jpg"}
    assert all(read_subject(tmp_path, subject_digest(other, buckets, estimators, 5)) is None for other in others)
    for change in (
        subject_digest(hashes, ["112x64"], estimators, 5),
        subject_digest(hashes, buckets, estimators, 4),
        subject_digest(hashes, buckets, estimators, 5, RELATIVE),
    ):
        assert read_subject(tmp_path, change) is None
    again = make(tmp_path, folder, every=0)  # replaces the other
    assert again.held_out == [] and again.validation is None and not (again.folder / "held_out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_nothing_is_left_of_a_failed_attempt(tmp_path, folder):
    (tmp_path / ".images.killed").mkdir()
    with (
        patch.object(subject, "make_sample", side_effect=OSError(28, os.strerror(28))),
        pytest.raises(UserError) as error,
    ):
        make(tmp_path, folder)
    assert "cannot be written (No space left on device)" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_images_are_found_by_suffix_and_by_content(tmp_path):
    """A photo of a phone as it comes, under another name, and without one."""
    photo = write_image(tmp_path / "0.HEIC.heic", noise(9, 320, 240), 6, tile_size=128).read_bytes()
    (tmp_path / "0.HEIC.heic").rename(tmp_path / "0.HEIC")
    for name in ("1.jpg", "2.mp4", "3"):
        (tmp_path / name).write_bytes(photo + name.encode())
    write_image(tmp_path / "4.avif", noise(9, 320, 240))
    (tmp_path / "notes").write_text("not an image")
    make_video(tmp_path / "video.mp4", 5)
    assert list(find_images(tmp_path)) == ["0.HEIC", "1.jpg", "2.mp4", "3", "4.avif"]
    pictures, left_out = read_pictures(tmp_path, find_images(tmp_path), ["112x64", "64x112"])
    assert not left_out and [picture.meta["bucket"] for picture in pictures] == ["112x64"] * 5
    expected = resize_and_crop(noise(9, 320, 240)[None], 112, 64)
    for picture in pictures:
        assert np.abs(picture.frames.astype(int) - expected).mean() < 2


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a folder: give one with 15 to 30 images"):
        find_images(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        find_images(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"has no image in it \(JPEG, .*put 15 to 30"):
        find_images(tmp_path / "empty")


def test_a_folder_without_a_usable_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(
        UserError, match=r"no image in images=.* can be used \(a\.png: not an image that PIL can read\)"
    ):
        make(tmp_path / "run", tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_huge_image_is_named(tmp_path):
    picture(tmp_path / "a.png", 1)
    Image.new("1", (20000, 20000)).save(tmp_path / "huge.png")  # 400 M pixels in 50 KB
    made = make(tmp_path / "run", tmp_path)
    assert made.used == ["a.png"] and "400000000 pixels" in made.left_out["huge.png"]

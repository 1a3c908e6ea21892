"""The shipped weights load in the real classes and are as good as their report says."""

import json
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from diffusers import AutoencoderKL
from transformers import DPTForDepthEstimation, DPTImageProcessor

from miniature import fit_autoencoder, fit_clip, fit_depth
from miniature.data import HELD_OUT_SEED, rendered_frames
from miniature.fit import WEIGHTS
from miniature.scene import GROUNDS, sample_scene


@pytest.fixture(scope="module")
def report():
    return json.loads((WEIGHTS / "REPORT.json").read_text())


def test_weights_are_small_and_hold_no_pickles():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6
    assert {path.suffix for path in files} == {".json", ".safetensors"}


def test_they_are_good_enough_for_the_world(report):
    """What the experiments need, by the report; the tests below hold the report against the weights."""
    assert report["autoencoder"]["held_out"]["psnr_rendered_112x64"] >= 28
    assert min(report["clip"]["held_out"][f"top1_{way}"] for way in ("image_to_text", "text_to_image")) >= 0.9
    assert report["clip"]["held_out"]["told_from_exchanged"] >= 0.8


def test_autoencoder(report):
    model = AutoencoderKL.from_pretrained(WEIGHTS / "autoencoder").eval()
    assert model.dtype == torch.float32
    frames = rendered_frames(16, HELD_OUT_SEED).pixels
    latents, decoded = fit_autoencoder.reconstruct(model, fit_autoencoder.to_unit(frames))
    assert latents.shape == (16, 4, 8, 14)
    assert float(latents.std()) * model.config.scaling_factor == pytest.approx(1, abs=0.15)
    expected = report["autoencoder"]["held_out"]["psnr_rendered_112x64"]
    assert fit_autoencoder.psnr(frames, decoded) > expected - 1.5


def test_depth(report):
    model = DPTForDepthEstimation.from_pretrained(WEIGHTS / "depth").eval()
    measured, expected = fit_depth.measure(model, 16), report["depth"]["held_out"]
    assert measured["correlation"] > expected["correlation"] - 0.02
    assert measured["relative_error"] < 1.5 * expected["relative_error"]
    processor = DPTImageProcessor.from_pretrained(WEIGHTS / "depth")
    pixels = processor(torch.zeros(3, 256, 448, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 64, 112) and torch.all(pixels == -1)


def test_clip(report):
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{WEIGHTS / 'clip'}")
    measured, expected = fit_clip.measure(model.eval()), report["clip"]["held_out"]
    assert measured["top1_image_to_text"] == pytest.approx(expected["top1_image_to_text"], abs=0.05)
    assert measured["top1_text_to_image"] == pytest.approx(expected["top1_text_to_image"], abs=0.05)
    assert measured["told_from_exchanged"] == pytest.approx(expected["told_from_exchanged"], abs=0.05)


def test_a_confused_caption_is_nearly_the_own_one_and_false():
    rng = np.random.default_rng(0)
    for seed in range(200):
        scene = sample_scene(seed)
        wrong = fit_clip.confused(scene, rng)
        assert wrong.caption != scene.caption and wrong.ground == scene.ground
        changed = {
            name
            for name in ("colour", "shape", "texture")
            if any(getattr(a, name) != getattr(b, name) for a, b in zip(scene.solids, wrong.solids, strict=True))
        }
        assert len(changed) == 1


def test_the_words_of_a_scene_are_those_of_its_caption():
    values = list(fit_clip.WORDS.values())
    for seed in range(100):
        scene = sample_scene(seed)
        *numbers, ground = fit_clip.Words.of(scene)
        solids = [
            [(*choices, None)[number] for choices, number in zip(values, part, strict=True)]
            for part in (numbers[:3], numbers[3:])
        ]
        colour, shape, texture = solids[1]
        assert (colour is None) == (shape is None) == (texture is None) == (len(scene.solids) == 1)
        told = [replace(scene.solids[0], colour=c, shape=s, texture=t) for c, s, t in solids if c is not None]
        again = replace(scene, solids=tuple(told), ground=list(GROUNDS)[ground])
        assert again.caption == scene.caption


def test_every_word_has_a_direction_of_the_same_length():
    torch.manual_seed(0)
    heads, scenes = fit_clip.Words(64), [sample_scene(seed) for seed in range(8)]
    words = torch.tensor([fit_clip.Words.of(scene) for scene in scenes])
    embeddings = torch.nn.functional.normalize(torch.randn(8, 64), dim=1)
    with torch.no_grad():
        logits = heads(embeddings)
        heads.linear.weight *= torch.rand(len(heads.linear.weight), 1) + 0.5
        assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(logits, heads(embeddings), strict=True))
    assert [part.shape for part in logits] == [(8, 11), (8, 6), (8, 5)] * 2 + [(8, 5)]
    by_hand = [torch.log_softmax(part, 1)[range(8), words[:, i]].mean() for i, part in enumerate(logits)]
    torch.testing.assert_close(heads.loss(embeddings, words), -torch.stack(by_hand).mean())


def test_crops_keep_left_and_right():
    """Captions name the solids from left to right."""
    pixels = torch.zeros(4, 3, 64, 112, dtype=torch.uint8)
    pixels[..., :56] = 255
    for seed in range(8):
        cropped = fit_clip.crop(pixels, torch.Generator().manual_seed(seed))
        assert cropped[..., 0].mean() == 1 and cropped[..., -1].mean() == 0

"""The shipped weights load in the real classes and reach the quality in their report."""

import json
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from diffusers import AutoencoderKL
from transformers import DPTForDepthEstimation, DPTImageProcessor

from miniature import WEIGHTS
from miniature.data import HELD_OUT_SEED, rendered_frames
from miniature.fit import autoencoder, clip, depth
from miniature.world.scene import GROUNDS, PLAIN, sample_scene


@pytest.fixture(scope="module")
def report():
    return json.loads((WEIGHTS / "REPORT.json").read_text())


def test_weights_are_small_and_contain_no_pickles():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6
    assert {path.suffix for path in files} == {".json", ".safetensors"}


def test_reported_quality_is_sufficient_for_the_experiments(report):
    """The tests below compare the report with the weights."""
    assert report["autoencoder"]["held_out"]["psnr_rendered_112x64"] >= 28
    assert (
        min(report["clip"]["held_out"][f"top1_{direction}"] for direction in ("image_to_text", "text_to_image")) >= 0.9
    )
    assert report["clip"]["held_out"]["told_from_exchanged"] >= 0.8


def test_the_autoencoder_reaches_its_reported_quality(report):
    model = AutoencoderKL.from_pretrained(WEIGHTS / "autoencoder").eval()
    assert model.dtype == torch.float32
    frames = rendered_frames(16, HELD_OUT_SEED).pixels
    latents, decoded = autoencoder.reconstruct(model, autoencoder.to_unit(frames))
    assert latents.shape == (16, 4, 8, 14)
    assert float(latents.std()) * model.config.scaling_factor == pytest.approx(1, abs=0.15)
    expected = report["autoencoder"]["held_out"]["psnr_rendered_112x64"]
    assert autoencoder.psnr(frames, decoded) > expected - 1.5


def test_the_depth_estimator_reaches_its_reported_quality(report):
    model = DPTForDepthEstimation.from_pretrained(WEIGHTS / "depth").eval()
    measured, expected = depth.measure(model, 16), report["depth"]["held_out"]
    assert measured["correlation"] > expected["correlation"] - 0.02
    assert measured["relative_error"] < 1.5 * expected["relative_error"]
    processor = DPTImageProcessor.from_pretrained(WEIGHTS / "depth")
    pixels = processor(torch.zeros(3, 256, 448, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 64, 112) and torch.all(pixels == -1)


def test_clip_reaches_its_reported_quality(report):
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{WEIGHTS / 'clip'}")
    measured, expected = clip.measure(model.eval()), report["clip"]["held_out"]
    assert measured["top1_image_to_text"] == pytest.approx(expected["top1_image_to_text"], abs=0.05)
    assert measured["top1_text_to_image"] == pytest.approx(expected["top1_text_to_image"], abs=0.05)
    assert measured["told_from_exchanged"] == pytest.approx(expected["told_from_exchanged"], abs=0.05)


def test_a_near_miss_differs_from_the_scene_in_one_attribute():
    rng = np.random.default_rng(0)
    for seed in range(200):
        scene = sample_scene(seed)
        wrong = clip.near_miss(scene, rng)
        assert wrong.caption != scene.caption and wrong.ground == scene.ground
        changed = {
            name
            for name in ("color", "shape", "texture")
            if any(getattr(a, name) != getattr(b, name) for a, b in zip(scene.solids, wrong.solids, strict=True))
        }
        assert len(changed) == 1


def test_the_labels_of_a_scene_are_the_words_of_its_caption():
    values = list(clip.WORDS[PLAIN].values())
    for seed in range(100):
        scene = sample_scene(seed)
        *labels, ground = clip.WordClassifiers.labels(scene)
        solids = [
            [(*choices, None)[label] for choices, label in zip(values, part, strict=True)]
            for part in (labels[:3], labels[3:])
        ]
        color, shape, texture = solids[1]
        assert (color is None) == (shape is None) == (texture is None) == (len(scene.solids) == 1)
        decoded = [replace(scene.solids[0], color=c, shape=s, texture=t) for c, s, t in solids if c is not None]
        rebuilt = replace(scene, solids=tuple(decoded), ground=list(GROUNDS)[ground])
        assert rebuilt.caption == scene.caption


def test_word_classifiers_have_directions_of_the_same_length():
    torch.manual_seed(0)
    classifiers = clip.WordClassifiers(64)
    scenes = [sample_scene(seed) for seed in range(8)]
    labels = torch.tensor([clip.WordClassifiers.labels(scene) for scene in scenes])
    embeddings = torch.nn.functional.normalize(torch.randn(8, 64), dim=1)
    with torch.no_grad():
        logits = classifiers(embeddings)
        weight = classifiers.linear.weight
        weight *= torch.rand(len(weight), 1) + 0.5
        scaled = classifiers(embeddings)
        assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(logits, scaled, strict=True))
    assert [part.shape for part in logits] == [(8, 11), (8, 6), (8, 5)] * 2 + [(8, 5)]
    by_hand = [torch.log_softmax(part, 1)[range(8), labels[:, i]].mean() for i, part in enumerate(logits)]
    torch.testing.assert_close(classifiers.loss(embeddings, labels), -torch.stack(by_hand).mean())


def test_crops_are_never_flipped():
    """Captions name the solids from left to right."""
    pixels = torch.zeros(4, 3, 64, 112, dtype=torch.uint8)
    pixels[..., :56] = 255
    for seed in range(8):
        cropped = clip.crop(pixels, torch.Generator().manual_seed(seed))
        assert cropped[..., 0].mean() == 1 and cropped[..., -1].mean() == 0

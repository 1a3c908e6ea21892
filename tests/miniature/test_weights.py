"""The shipped weights load in the real classes and are as good as their report says."""

import json

import open_clip
import pytest
import torch
from diffusers import AutoencoderKL
from transformers import DPTForDepthEstimation, DPTImageProcessor

from miniature import fit_autoencoder, fit_clip, fit_depth
from miniature.data import HELD_OUT_SEED, rendered_frames
from miniature.fit import WEIGHTS


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

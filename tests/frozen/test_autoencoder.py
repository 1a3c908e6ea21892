"""Tests of the frozen autoencoder and its scale against diffusers' own calls."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from gen1_train.errors import UserError
from gen1_train.frozen import autoencoder as loaded
from gen1_train.frozen.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    as_pictures,
    sample_latents,
    to_pixels,
    to_signed,
)

SCALE = 0.4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder with random weights, 4 latent channels and factor 4."""
    torch.manual_seed(0)
    kl = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 8, 8),
        norm_num_groups=2,
        scaling_factor=SCALE,
    )
    path = tmp_path_factory.mktemp("autoencoder")
    kl.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def autoencoder(folder: Path) -> Autoencoder:
    return Autoencoder(AutoencoderConfig(str(folder)))


@pytest.fixture
def frames() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(2, 3, 3, 16, 24) * 2 - 1  # b n 3 h w


def test_properties_are_read_from_the_config_and_weights_are_frozen(autoencoder: Autoencoder) -> None:
    assert (autoencoder.scale, autoencoder.channels, autoencoder.factor) == (SCALE, 4, 4)
    assert not autoencoder.kl.training and not any(p.requires_grad for p in autoencoder.parameters())


def test_moments_equal_those_of_diffusers_frame_by_frame(autoencoder: Autoencoder, frames: torch.Tensor) -> None:
    moments = autoencoder.encode_moments(frames)
    assert moments.shape == (2, 3, 8, 4, 6)
    for b in range(2):
        for n in range(3):
            posterior = autoencoder.kl.encode(frames[b, n][None]).latent_dist
            expected = torch.cat([posterior.mean, posterior.logvar], dim=1)[0]
            torch.testing.assert_close(moments[b, n], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(autoencoder.encode_moments(frames[0]), moments[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 6])
def test_the_chunk_size_changes_no_value(folder: Path, frames: torch.Tensor, chunk: int) -> None:
    whole, parts = (Autoencoder(AutoencoderConfig(str(folder), chunk=size)) for size in (64, chunk))
    moments = whole.encode_moments(frames)
    torch.testing.assert_close(parts.encode_moments(frames), moments, rtol=1e-4, atol=1e-5)
    latents = moments[:, :, :4]
    torch.testing.assert_close(parts.decode(latents), whole.decode(latents), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("limit", "calls"), [(2 * 8 * 16 * 24, [2, 2, 2]), (8 * 16 * 24 - 1, [1] * 6)])
def test_no_call_has_a_map_beyond_what_kernels_can_index(
    folder: Path, frames: torch.Tensor, monkeypatch: pytest.MonkeyPatch, limit: int, calls: list[int]
) -> None:
    """The largest map is in the decoder: its last but one block's channels at the size of the frames."""
    autoencoder = Autoencoder(AutoencoderConfig(str(folder)))
    seen: dict[str, list[int]] = {"encoder": [], "decoder": []}
    sizes: list[float] = []
    for name, found in seen.items():
        part = getattr(autoencoder.kl, name)
        part.register_forward_pre_hook(lambda _, inputs, found=found: found.append(len(inputs[0])))
        for layer in part.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(lambda _, x, y: sizes.extend([x[0].numel() / len(x[0]), y[0].numel()]))
    monkeypatch.setattr(loaded, "MAX_MAP", limit)
    autoencoder.decode(autoencoder.encode_moments(frames)[:, :, :4])
    assert seen == {"encoder": calls, "decoder": calls}
    assert max(sizes) == 8 * 16 * 24


def test_an_autoencoder_that_overflows_in_fp16_is_noticed(folder: Path) -> None:
    autoencoder = Autoencoder(AutoencoderConfig(str(folder)))
    state = torch.get_rng_state()
    with torch.autocast("cpu", torch.float16):
        assert not autoencoder.overflows()
        autoencoder.kl.encoder.conv_in.weight.mul_(1e6)
        assert autoencoder.overflows()
        frames = torch.ones(1, 3, 16, 24)
        assert not autoencoder.encode_moments(frames, check=False).isfinite().all()
        assert autoencoder.encode_moments(frames).isfinite().all()  # again in fp32
    assert not autoencoder.overflows() and torch.equal(torch.get_rng_state(), state)


def test_latents_without_noise_are_the_scaled_mean() -> None:
    moments = torch.randn(2, 3, 8, 4, 6)
    assert torch.equal(sample_latents(moments, torch.zeros(2, 3, 4, 4, 6), SCALE), moments[:, :, :4] * SCALE)


def test_latents_with_noise_equal_samples_of_diffusers_posterior(
    autoencoder: Autoencoder, frames: torch.Tensor
) -> None:
    posterior = autoencoder.kl.encode(frames[0]).latent_dist
    torch.manual_seed(5)
    expected = posterior.sample() * SCALE
    torch.manual_seed(5)
    noise = torch.randn(expected.shape)
    torch.testing.assert_close(sample_latents(posterior.parameters, noise, SCALE), expected)


def test_an_extreme_log_variance_gives_finite_latents() -> None:
    moments = torch.cat([torch.zeros(1, 4, 2, 2), torch.full((1, 4, 2, 2), 1e4)], dim=1)
    assert sample_latents(moments, torch.ones(1, 4, 2, 2), 1.0).isfinite().all()


def test_structure_is_encoded_as_a_gray_frame(autoencoder: Autoencoder) -> None:
    torch.manual_seed(2)
    depth = torch.rand(2, 3, 16, 24)
    gray = torch.stack([depth, depth, depth], dim=2) * 2 - 1
    expected = autoencoder.encode_moments(gray)[:, :, :4] * SCALE
    torch.testing.assert_close(autoencoder.encode_structure(depth), expected)
    torch.testing.assert_close(autoencoder.encode_structure(depth[0]), expected[0], rtol=1e-4, atol=1e-5)


def test_planes_of_a_structure_are_encoded_as_one_colored_frame(autoencoder: Autoencoder) -> None:
    """Of two planes, the third channel is as of an absent plane: 0."""
    torch.manual_seed(2)
    planes = torch.rand(2, 3, 16, 24)  # n p h w
    expected = autoencoder.encode_moments(planes * 2 - 1)[:, :4] * SCALE
    assert torch.equal(autoencoder.encode_structure(planes, several=True), expected)
    absent = planes.clone()
    absent[:, 2] = 0
    two = autoencoder.encode_structure(planes[:, :2], several=True)
    assert torch.equal(two, autoencoder.encode_structure(absent, several=True)) and not torch.equal(two, expected)
    assert torch.equal(as_pictures(planes[:, :2], several=True), absent)
    assert torch.equal(as_pictures(planes[:, 0], several=False), planes[:, :1].expand(-1, 3, -1, -1))


def test_decoding_reverts_the_scale_and_stays_in_range(autoencoder: Autoencoder, frames: torch.Tensor) -> None:
    mean = autoencoder.encode_moments(frames)[:, :, :4]
    expected = autoencoder.kl.decode(mean[0]).sample.clamp(-1, 1)
    torch.testing.assert_close(autoencoder.decode(mean[0] * SCALE), expected, rtol=1e-4, atol=1e-5)
    far = autoencoder.decode(mean * 1e4)
    assert far.shape == frames.shape and far.min() >= -1 and far.max() <= 1 and far.abs().max() == 1


def test_the_fingerprint_covers_weights_and_scale(folder: Path, autoencoder: Autoencoder) -> None:
    again = Autoencoder(AutoencoderConfig(str(folder), chunk=1))
    first = autoencoder.fingerprint
    assert again.fingerprint == first  # the chunk size changes no value
    again.scale *= 2
    assert again.fingerprint != first
    again.scale = SCALE
    with torch.no_grad():
        next(again.kl.parameters()).view(-1)[0] += 1e-3
    assert again.fingerprint != first


@pytest.mark.parametrize("damage", ["missing", "no weights", "truncated", "some weights", "no config", "another model"])
def test_a_folder_that_cannot_be_loaded_gives_a_one_line_error(folder: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "vae"
    if damage != "missing":
        path.mkdir()
        for file in folder.iterdir():
            (path / file.name).write_bytes(file.read_bytes())
    weights = path / "diffusion_pytorch_model.safetensors"
    if damage == "no weights":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "some weights":  # the others would be random
        kept = {name: tensor for name, tensor in load_file(weights).items() if not name.startswith("quant_conv.")}
        save_file(kept, weights, metadata={"format": "pt"})
    elif damage == "no config":
        (path / "config.json").unlink()
    elif damage == "another model":
        config = path / "config.json"
        config.write_text(config.read_text().replace('"latent_channels": 4', '"latent_channels": 6'))
    with pytest.raises(UserError) as error:
        Autoencoder(AutoencoderConfig(str(path)))
    assert "\n" not in str(error.value) and str(error.value).startswith(f"autoencoder '{path}' cannot be loaded: give")


def test_pixels_survive_the_conversion_to_signed_and_back() -> None:
    pixels = torch.from_numpy(np.arange(256 * 3, dtype=np.uint8).reshape(2, 16, 8, 3))
    signed = to_signed(pixels)
    assert signed.shape == (2, 3, 16, 8) and signed.dtype == torch.float32
    assert signed.min() == -1 and signed.max() == 1
    assert torch.equal(to_pixels(signed), pixels)
    assert to_pixels(torch.tensor([-3.0, 0.0, 3.0]).view(3, 1, 1)).flatten().tolist() == [0, 128, 255]

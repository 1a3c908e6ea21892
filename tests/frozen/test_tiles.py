"""Large frames through the autoencoder in tiles: exact after enough passes, close after few, and never whole."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gen1_train.frozen import tiles
from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig, to_signed
from miniature.world.render import render_clip
from tests.running import WEIGHTS

HEIGHT, WIDTH = 104, 168
MOST = 64 * 64  # pixels
ENOUGH = 20  # passes: one more than there are group norms


@pytest.fixture(scope="module")
def kl() -> Any:
    return Autoencoder(AutoencoderConfig(str(WEIGHTS / "autoencoder"))).kl


@pytest.fixture(scope="module")
def frame() -> Tensor:
    return to_signed(torch.from_numpy(render_clip(3, 1, HEIGHT, WIDTH).frames))


@torch.no_grad()
def test_tiles_are_exact_after_enough_passes_and_close_after_few(kl: Any, frame: Tensor) -> None:
    moments = kl.encode(frame).latent_dist.parameters
    latents = moments.chunk(2, dim=1)[0]
    decoded = kl.decode(latents).sample
    for tiled, values, expected in ((tiles.encode, frame, moments), (tiles.decode, latents, decoded)):
        torch.testing.assert_close(tiled(kl, values, MOST, ENOUGH), expected, rtol=1e-3, atol=1e-4)
        errors = [(tiled(kl, values, MOST, n) - expected).square().mean().sqrt() for n in (1, tiles.PASSES)]
        assert errors[1] < errors[0] / 2 and errors[1] < 0.02 * expected.std(), errors
        assert torch.equal(tiled(kl, values, HEIGHT * WIDTH * 2, 1), expected) is False  # sums, not torch's group norm
        torch.testing.assert_close(tiled(kl, values, 4 * HEIGHT * WIDTH, 1), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(kl.decode(latents).sample, decoded)  # the norms are torch's again


@torch.no_grad()
def test_no_layer_sees_more_than_a_tile(kl: Any) -> None:
    """Whatever the size of the frame: the memory of the layers with the large maps is bounded."""
    largest: list[int] = []
    layers = [module for module in (kl.encoder.down_blocks, kl.decoder.up_blocks) for module in module.modules()]
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: largest.append(output[0, 0].numel()))
        for module in layers
        if isinstance(module, nn.Conv2d)
    ]
    peaks = []
    for height, width in ((320, 320), (640, 320)):
        largest.clear()
        moments = tiles.encode(kl, torch.zeros(1, 3, height, width), MOST, 1)
        assert moments.shape[2:] == (height // 8, width // 8)
        assert tiles.decode(kl, moments[:, : moments.shape[1] // 2], MOST, 1).shape[2:] == (height, width)
        peaks.append(max(largest))
    for hook in hooks:
        hook.remove()
    assert peaks[0] == peaks[1] < 320 * 320 / 2


def test_tiles_cover_the_frame_once() -> None:
    covered = torch.zeros(13, 21)
    for tile in tiles.tiles(13, 21, 30, 3):
        covered[tile.inner] += 1
        made = torch.zeros(covered[tile.outer].shape)
        tile.inside(made, made.shape[0]).add_(1)
        assert made.sum() == covered[tile.inner].numel() and made.shape[0] <= 5 + 6
        doubled = made.repeat_interleave(2, 0).repeat_interleave(2, 1)
        assert tile.inside(doubled, made.shape[0]).sum() == doubled.sum()
    assert (covered == 1).all()
    assert len(tiles.tiles(3, 4, 0, 1)) == 12

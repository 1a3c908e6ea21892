"""Test of the identity with diffusers at full size: the UNets of Stable Diffusion 1.5 and 2.1 with random weights."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from tests.model.reference import diffusers_unet, frame_by_frame, inputs

pytestmark = pytest.mark.slow
CONFIGS = {
    "SD 1.5": (UNetConfig(), 859_520_964),
    "SD 2.1": (
        UNetConfig(heads=[5, 10, 20, 20], linear_projection=True, context_dim=1024, content_dim=1024),
        865_910_724,
    ),
}
CASES = {"square": ((8, 8), 1), "wide, with several tokens": ((8, 16), 3), "odd": ((9, 7), 1)}  # size, content tokens
OUTPUTS = (".temporal_conv1.", ".temporal_conv2.", ".attn.to_out.", ".temporal_transformer_blocks.0.ff.net.2.")


def filled(config: UNetConfig) -> SpatioTemporalUNet:
    """Builds a newly inflated UNet: random weights that preserve the scale of activations, and zero temporal outputs.

    Drawing this many numbers takes long, so all come from one pool, of prime length so that no row of a weight recurs.
    """
    with torch.device("meta"):
        unet = SpatioTemporalUNet(config)
    unet = unet.to_empty(device="cpu").requires_grad_(False)
    torch.manual_seed(0)
    pool = torch.randn(1_048_573)
    start = 0
    for name, parameter in unet.named_parameters():
        for part in parameter.view(-1).split(len(pool)):
            part.copy_(pool.roll(-start)[: len(part)])
            start += len(part)
        if parameter.dim() > 1:
            parameter *= parameter[0].numel() ** -0.5
        else:
            parameter *= 0.1
            if ".norm" in name or name.startswith("conv_norm_out"):
                parameter += float(name.endswith(".weight"))
        if any(output in name for output in OUTPUTS):
            parameter.zero_()
    return unet


def deflated(unet: SpatioTemporalUNet) -> UNet2DConditionModel:
    """Builds diffusers' UNet, which shares the memory of the spatial weights."""
    with torch.device("meta"):
        image_unet = diffusers_unet(unet.config)
    spatial = {name: weight for name, weight in unet.state_dict().items() if ".temporal_" not in name}
    image_unet.load_state_dict(spatial, assign=True)
    assert not any(tensor.is_meta for tensor in (*image_unet.parameters(), *image_unet.buffers()))
    return image_unet.eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_inflated_equals_diffusers_frame_by_frame_at_full_size(name: str) -> None:
    config, parameters = CONFIGS[name]
    unet = filled(config)
    image_unet = deflated(unet)
    assert sum(p.numel() for p in image_unet.parameters()) == parameters
    for case, (size, tokens) in CASES.items():
        latents, timesteps, content = inputs(config, b=1, n=2, size=size, tokens=tokens)
        example = latents.float(), timesteps, content.float()
        with torch.no_grad():
            expected, actual = frame_by_frame(image_unet, *example), unet(*example)
        assert 0.05 < expected.std() < 20, f"{case}: {expected.std()}"  # neither dead nor exploded
        assert (expected[0, 0] - expected[0, 1]).abs().max() > 0.1  # the output depends on the frame
        error = (actual - expected).abs().max() / expected.abs().max()
        assert error < 1e-5, f"{case}: {error:.1e}"

"""Windows in space: the same as whole frames where the network does not look around, and never more than an area."""

import pytest
import torch
from torch import Tensor

from gen1_train.diffusion.editing import Scene, frames_per_step, sample_video, shared_noise
from gen1_train.diffusion.guidance import GuidanceConfig
from gen1_train.diffusion.sampling import SamplingConfig
from gen1_train.diffusion.schedule import NoiseConfig, NoiseSchedule
from gen1_train.errors import UserError

SCHEDULE = NoiseSchedule(NoiseConfig())
WINDOW = 4
SHAPE = (4, 9, 14)  # c h w of a latent
AREA = (4, 6)
CONTENT = torch.randn(1, 6, generator=torch.Generator().manual_seed(1))


class Network:
    """A stand-in for the UNet that looks at each place alone, or with `sees`, at the mean of what it gets."""

    def __init__(self, sees: bool = False) -> None:
        self.sees = sees
        self.sizes: list[tuple[int, int]] = []
        self.frames = 0

    def __call__(self, latents: Tensor, times: Tensor, content: Tensor, temporal: bool) -> Tensor:
        self.sizes.append((latents.shape[3], latents.shape[4]))
        self.frames += latents.shape[0] * latents.shape[1]
        z, structure = latents[:, :, :4], latents[:, :, 4:8]
        if temporal:
            z = z + 0.3 * z.mean(1, keepdim=True)
        if self.sees:
            z = z - 0.5 * z.mean((3, 4), keepdim=True)
        shift = content.square().mean((1, 2)) + times / 1000
        return torch.tanh(z) + 0.2 * structure + shift.view(-1, 1, 1, 1, 1)


def scene(n: int = 9, **parts: Tensor) -> Scene:
    structure = torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(2))
    return Scene(shared_noise(n, WINDOW, SHAPE, 0, 0.3), structure, **parts)


def edit(
    area: tuple[int, int] | None, network: Network | None = None, parts: Scene | None = None, **settings: object
) -> Tensor:
    config = SamplingConfig(steps=3, guidance=GuidanceConfig(3.0, 1.4, 0.5), **settings)  # type: ignore[arg-type]
    return sample_video(network or Network(), parts or scene(), CONTENT, SCHEDULE, config, WINDOW, area=area)


@pytest.mark.parametrize("area", [SHAPE[1:], (40, 14), (100, 100)])
def test_one_window_has_the_bits_of_the_whole_frame(area: tuple[int, int]) -> None:
    assert torch.equal(edit(area, Network(sees=True)), edit(None, Network(sees=True)))


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
@pytest.mark.parametrize(("space_overlap", "batch"), [(0.0, 1), (0.25, 4), (0.5, 3), (0.75, 50)])
def test_windows_have_a_view_of_the_noise_and_are_blended_to_the_whole(
    space_overlap: float, batch: int, solver: str
) -> None:
    latents = torch.randn(9, *SHAPE, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(9, 1, *SHAPE[1:])
    mask[..., 3:] = 1
    for parts in (scene(), scene(latents=latents, mask=mask)):
        windowed = edit(AREA, parts=parts, space_overlap=space_overlap, batch=batch, solver=solver)
        torch.testing.assert_close(windowed, edit(None, parts=parts, solver=solver), rtol=1e-3, atol=1e-4)


def test_the_network_never_sees_more_than_an_area_and_its_frames_are_counted() -> None:
    for config in (SamplingConfig(steps=3, guidance=GuidanceConfig(3.0, 1.4)), SamplingConfig(steps=3)):
        network = Network()
        sample_video(network, scene(), CONTENT, SCHEDULE, config, WINDOW, area=AREA)
        assert set(network.sizes) == {AREA}
        assert network.frames == 3 * frames_per_step((9, *SHAPE[1:]), 1, config, WINDOW, AREA)
        whole = frames_per_step((9, *SHAPE[1:]), 1, config, WINDOW)
        assert network.frames == 3 * whole * 4 * 4  # 9 rows: 0, 2, 4, 5; 14 columns: 0, 3, 6, 8


def test_a_plain_scene_has_no_seams() -> None:
    plain = Scene(torch.ones(9, *SHAPE), torch.ones(9, *SHAPE))
    video = edit(AREA, Network(sees=True), plain)
    torch.testing.assert_close(video, video[..., :1, :1].expand_as(video))


def test_windows_that_hardly_move_are_refused() -> None:
    for share in (-0.1, 0.9, float("nan")):
        with pytest.raises(UserError, match=r"space_overlap=.* is out of range: give a share from 0 to 0\.75"):
            SamplingConfig(space_overlap=share).check()

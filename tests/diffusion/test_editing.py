"""Sampling whole videos: Eq. 8 through a network that tells its terms apart, windows, masks, starts in the input."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gen1_train.diffusion.content import content_tokens
from gen1_train.diffusion.editing import Passes, SamplingConfig, Scene, sample_video, shared_noise
from gen1_train.diffusion.guidance import GuidanceConfig
from gen1_train.diffusion.sampler import ddim, timesteps
from gen1_train.diffusion.schedule import NoiseConfig, NoiseSchedule

SCHEDULE = NoiseSchedule(NoiseConfig())
WINDOW, SHAPE, WIDTH = 8, (4, 3, 5), 6
CONTENTS = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))


class Network:
    """Stands for the UNet: another function of content and of neighbours; counts the clips and frames it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, bool]] = []  # clips, frames in each, temporal

    def __call__(self, latents: Tensor, times: Tensor, content: Tensor, temporal: bool) -> Tensor:
        b, n, c, _, _ = latents.shape
        assert c == 12 and times.shape == (b,) and content.shape == (b, 1, WIDTH)
        self.calls.append((b, n, temporal))
        z, structure = latents[:, :, :4], latents[:, :, 4:8]
        if temporal:
            z = z + 0.3 * z.mean(1, keepdim=True)
        shift = content.square().mean((1, 2)).sqrt() * 0.1 + content[:, 0, 0] * 0.5
        return torch.tanh(z) + 0.2 * structure + shift.view(b, 1, 1, 1, 1) + times.view(b, 1, 1, 1, 1) / 1000


def scene(n: int, **parts: Tensor) -> Scene:
    noise = shared_noise(n, WINDOW, SHAPE, seed=0)
    return Scene(noise, structure=torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(2)), **parts)


def config(omega: float = 3.0, omega_t: float = 1.0, **settings: object) -> SamplingConfig:
    return SamplingConfig(steps=4, guidance=GuidanceConfig(omega, omega_t), **settings)  # type: ignore[arg-type]


def edit(n: int, settings: SamplingConfig, contents: Tensor = CONTENTS[:1], **parts: Tensor) -> Tensor:
    return sample_video(Network(), scene(n, **parts), contents, SCHEDULE, settings, WINDOW)


@pytest.mark.parametrize("omega_t", [0.0, 0.5, 1.0, 1.5])
def test_a_window_is_equation_8_by_hand(omega_t: float) -> None:
    given, network, omega = scene(WINDOW), Network(), 3.0
    tokens = {True: content_tokens(CONTENTS[:1]), False: torch.zeros(1, 1, WIDTH)}

    def denoise(z: Tensor, times: Tensor) -> Tensor:
        passes = Passes(network, given, CONTENTS[:1], config(), WINDOW)
        assert passes.extra is not None
        inputs = torch.cat([z, passes.extra[None]], dim=2)
        full, empty = (network(inputs, times, tokens[flag], True) for flag in (True, False))
        alone = network(inputs, times, tokens[False], False)
        return alone + omega_t * (empty - alone) + omega * (full - empty)

    expected = ddim(denoise, given.noise[None], SCHEDULE, timesteps(SCHEDULE, 4))
    torch.testing.assert_close(edit(WINDOW, config(omega, omega_t)), expected)


def test_omega_t_of_one_is_plain_guidance_and_of_zero_without_omega_is_each_frame_alone() -> None:
    alone = edit(20, config(omega=0.0, temporal=False))
    torch.testing.assert_close(edit(20, config(omega=0.0, omega_t=0.0)), alone)
    one_by_one = torch.cat(
        [
            sample_video(
                *(Network(), Scene(*(part[i : i + 1] for part in (whole.noise, whole.structure)))),  # type: ignore[index]
                *(CONTENTS[:1], SCHEDULE, config(omega=0.0), WINDOW),
            )
            for whole in (scene(20),)
            for i in range(20)
        ],
        dim=1,
    )
    torch.testing.assert_close(alone, one_by_one)


@pytest.mark.parametrize("omega_t", [1.0, 1.4])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_batch_and_the_other_prompts_change_no_picture(batch: int, omega_t: float) -> None:
    together = edit(20, config(omega_t=omega_t, batch=batch), CONTENTS)
    apart = torch.cat([edit(20, config(omega_t=omega_t, batch=2), CONTENTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, apart)


def test_a_longer_video_begins_with_the_same_noise_and_every_window_holds_each_draw_once() -> None:
    noise = shared_noise(21, WINDOW, SHAPE, seed=5)
    assert torch.equal(noise[:3], shared_noise(3, WINDOW, SHAPE, seed=5))
    for start in range(21 - WINDOW):
        assert len(noise[start : start + WINDOW].unique(dim=0)) == WINDOW
    assert not torch.equal(noise, shared_noise(21, WINDOW, SHAPE, seed=6))


@pytest.mark.parametrize(("n", "most"), [(9, 2.6), (12, 2.6), (20, 2.6), (80, 2.45)])
def test_the_frames_alone_go_through_once_whatever_the_windows(n: int, most: float) -> None:
    """A pass without temporal layers costs 0.794 of one with them (Stable Diffusion 1.5's widths, in FLOPs)."""
    passes = Passes(Network(), scene(n), CONTENTS[:1], config(omega_t=1.5), WINDOW)
    passes(scene(n).noise[None], torch.tensor([500]))
    assert passes.frames[False] == n
    one_pass = passes.frames[True] / 2
    assert (passes.frames[True] + 0.794 * passes.frames[False]) / one_pass <= most


@pytest.mark.parametrize(("omega", "omega_t", "count"), [(1.0, 1.0, 1), (7.5, 1.0, 2), (7.5, 1.5, 3)])
def test_passes_are_as_many_as_the_terms(omega: float, omega_t: float, count: int) -> None:
    network = Network()
    sample_video(network, scene(WINDOW), CONTENTS[:1], SCHEDULE, config(omega, omega_t), WINDOW)
    assert sum(clips * frames for clips, frames, _ in network.calls) == 4 * count * WINDOW


def test_a_still_scene_has_no_seams() -> None:
    """Windows agree where their frames do: the same in every frame gives the same in every frame."""
    still = Scene(torch.ones(20, *SHAPE), structure=torch.ones(20, *SHAPE))
    made = sample_video(Network(), still, CONTENTS[:1], SCHEDULE, config(), WINDOW)
    torch.testing.assert_close(made, made[:, :1].expand_as(made))


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_the_masked_part_is_the_input_and_the_rest_is_not(solver: str) -> None:
    latents, mask = torch.randn(12, *SHAPE), torch.zeros(12, 1, *SHAPE[1:])
    mask[..., 2:] = 1
    made = edit(12, config(solver=solver), latents=latents, mask=mask)
    torch.testing.assert_close(made[0, ..., :2], latents[..., :2])
    assert (made[0, ..., 2:] - latents[..., 2:]).abs().mean() > 0.1


def test_a_mask_of_ones_is_none() -> None:
    latents, ones = torch.randn(12, *SHAPE), torch.ones(12, 1, *SHAPE[1:])
    torch.testing.assert_close(edit(12, config(), latents=latents, mask=ones), edit(12, config()))


def test_the_weaker_the_start_the_nearer_the_input() -> None:
    latents = torch.randn(12, *SHAPE)
    made = [edit(12, config(init_strength=strength), latents=latents) for strength in (0.25, 0.5, 1.0)]
    distances = [float((video[0] - latents).abs().mean()) for video in made]
    assert distances[0] < distances[1] < distances[2]
    assert torch.equal(made[2], edit(12, config()))  # from pure noise: the input has no part in it


def test_a_negative_prompt_stands_for_no_content() -> None:
    plain = edit(12, config())
    negative = sample_video(Network(), scene(12), CONTENTS[:1], SCHEDULE, config(), WINDOW, negative=CONTENTS[1])
    assert (plain - negative).abs().mean() > 0.01
    itself = sample_video(Network(), scene(12), CONTENTS[:1], SCHEDULE, config(), WINDOW, negative=CONTENTS[0])
    torch.testing.assert_close(itself, edit(12, config(omega=1.0)))  # the difference that omega scales is zero


def test_an_image_is_a_frame_alone() -> None:
    network = Network()
    sample_video(network, scene(1), CONTENTS[:1], SCHEDULE, config(), WINDOW)
    assert {temporal for _, _, temporal in network.calls} == {False}


def test_progress_is_told_step_by_step() -> None:
    told: list[Callable[[], object] | int] = []
    settings = replace(config(), init_strength=0.5)
    given = scene(12, latents=torch.zeros(12, *SHAPE))
    sample_video(Network(), given, CONTENTS, SCHEDULE, settings, WINDOW, on_step=lambda: told.append(1))
    assert len(told) == 2

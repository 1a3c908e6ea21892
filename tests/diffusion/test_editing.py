"""Tests of sampling whole videos: Eq. 8 with a network that distinguishes its terms, windows, masks, init_strength."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gen1_train.diffusion.content import content_tokens
from gen1_train.diffusion.editing import GuidedPrediction, Scene, sample_video, shared_noise
from gen1_train.diffusion.guidance import GuidanceConfig
from gen1_train.diffusion.prediction import noise_from_v, target, x_from_v
from gen1_train.diffusion.sampler import ddim, timesteps
from gen1_train.diffusion.sampling import SamplingConfig
from gen1_train.diffusion.schedule import NoiseConfig, NoiseSchedule

SCHEDULE = NoiseSchedule(NoiseConfig())
WINDOW = 8
SHAPE = (4, 3, 5)  # c h w of a latent
WIDTH = 6  # of a content embedding
CONTENTS = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))


class Network:
    """A stand-in for the UNet that depends on content and neighboring frames, and counts its clips and frames."""

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
def test_a_single_window_equals_equation_8_computed_directly(omega_t: float) -> None:
    omega = 3.0
    network = Network()
    single_window = scene(WINDOW)
    tokens = {True: content_tokens(CONTENTS[:1]), False: torch.zeros(1, 1, WIDTH)}

    def denoise(z: Tensor, times: Tensor) -> Tensor:
        predict = GuidedPrediction(network, single_window, CONTENTS[:1], config(), WINDOW)
        assert predict.structure is not None
        inputs = torch.cat([z, predict.structure[None]], dim=2)
        full, empty = (network(inputs, times, tokens[flag], True) for flag in (True, False))
        alone = network(inputs, times, tokens[False], False)
        return alone + omega_t * (empty - alone) + omega * (full - empty)

    expected = ddim(denoise, single_window.noise[None], SCHEDULE, timesteps(SCHEDULE, 4))
    torch.testing.assert_close(edit(WINDOW, config(omega, omega_t)), expected)


def test_without_omega_and_omega_t_each_frame_is_sampled_alone() -> None:
    alone = edit(20, config(omega=0.0, temporal=False))
    torch.testing.assert_close(edit(20, config(omega=0.0, omega_t=0.0)), alone)
    whole = scene(20)
    assert whole.structure is not None
    one_by_one = []
    for i in range(20):
        frame = Scene(whole.noise[i : i + 1], whole.structure[i : i + 1])
        one_by_one.append(sample_video(Network(), frame, CONTENTS[:1], SCHEDULE, config(omega=0.0), WINDOW))
    torch.testing.assert_close(alone, torch.cat(one_by_one, dim=1))


@pytest.mark.parametrize("omega_t", [1.0, 1.4])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_batch_size_and_other_prompts_do_not_change_a_video(batch: int, omega_t: float) -> None:
    together = edit(20, config(omega_t=omega_t, batch=batch), CONTENTS)
    apart = torch.cat([edit(20, config(omega_t=omega_t, batch=2), CONTENTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, apart)


def test_noise_does_not_depend_on_the_length_and_every_window_holds_each_draw_once() -> None:
    noise = shared_noise(21, WINDOW, SHAPE, seed=5)
    assert torch.equal(noise[:3], shared_noise(3, WINDOW, SHAPE, seed=5))
    for start in range(21 - WINDOW):
        assert len(noise[start : start + WINDOW].unique(dim=0)) == WINDOW
    assert not torch.equal(noise, shared_noise(21, WINDOW, SHAPE, seed=6))


@pytest.mark.parametrize(("n", "most"), [(9, 2.6), (12, 2.6), (20, 2.6), (80, 2.45)])
def test_passes_without_temporal_layers_process_each_frame_once(n: int, most: float) -> None:
    """A pass without temporal layers costs 0.794 times one with them (in FLOPs, at Stable Diffusion 1.5's widths)."""
    predict = GuidedPrediction(Network(), scene(n), CONTENTS[:1], config(omega_t=1.5), WINDOW)
    predict(scene(n).noise[None], torch.tensor([500]))
    assert predict.frames[False] == n
    one_pass = predict.frames[True] / 2
    assert (predict.frames[True] + 0.794 * predict.frames[False]) / one_pass <= most


@pytest.mark.parametrize(("omega", "omega_t", "count"), [(1.0, 1.0, 1), (7.5, 1.0, 2), (7.5, 1.5, 3)])
def test_there_is_one_pass_per_term(omega: float, omega_t: float, count: int) -> None:
    network = Network()
    sample_video(network, scene(WINDOW), CONTENTS[:1], SCHEDULE, config(omega, omega_t), WINDOW)
    assert sum(clips * frames for clips, frames, _ in network.calls) == 4 * count * WINDOW


@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_a_model_of_few_frames_edits_longer_videos(window: int) -> None:
    """Two windows of up to four frames cannot share four of them, which was the default."""
    noise = shared_noise(9, window, SHAPE, seed=0)
    network = Network()
    still = Scene(noise, structure=torch.ones(9, *SHAPE))
    video = sample_video(network, still, CONTENTS[:1], SCHEDULE, config(), window)
    assert video.shape == (1, 9, *SHAPE) and video.isfinite().all()
    assert {frames for _, frames, _ in network.calls} == {window}


def test_a_static_scene_has_no_seams() -> None:
    """Identical input frames give identical output frames, across all windows."""
    still = Scene(torch.ones(20, *SHAPE), structure=torch.ones(20, *SHAPE))
    video = sample_video(Network(), still, CONTENTS[:1], SCHEDULE, config(), WINDOW)
    torch.testing.assert_close(video, video[:, :1].expand_as(video))


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_only_the_area_outside_the_mask_keeps_the_input(solver: str) -> None:
    latents, mask = torch.randn(12, *SHAPE), torch.zeros(12, 1, *SHAPE[1:])
    mask[..., 2:] = 1
    video = edit(12, config(solver=solver), latents=latents, mask=mask)
    torch.testing.assert_close(video[0, ..., :2], latents[..., :2])
    assert (video[0, ..., 2:] - latents[..., 2:]).abs().mean() > 0.1


def test_a_mask_of_ones_equals_no_mask() -> None:
    latents, ones = torch.randn(12, *SHAPE), torch.ones(12, 1, *SHAPE[1:])
    torch.testing.assert_close(edit(12, config(), latents=latents, mask=ones), edit(12, config()))


def test_a_lower_init_strength_stays_closer_to_the_input() -> None:
    latents = torch.randn(12, *SHAPE)
    videos = [edit(12, config(init_strength=strength), latents=latents) for strength in (0.25, 0.5, 1.0)]
    distances = [float((video[0] - latents).abs().mean()) for video in videos]
    assert distances[0] < distances[1] < distances[2]
    assert torch.equal(videos[2], edit(12, config()))  # pure noise: the input is not used


def test_a_negative_prompt_replaces_the_missing_content() -> None:
    plain = edit(12, config())
    negative = sample_video(Network(), scene(12), CONTENTS[:1], SCHEDULE, config(), WINDOW, negative=CONTENTS[1])
    assert (plain - negative).abs().mean() > 0.01
    same = sample_video(Network(), scene(12), CONTENTS[:1], SCHEDULE, config(), WINDOW, negative=CONTENTS[0])
    torch.testing.assert_close(same, edit(12, config(omega=1.0)))  # the difference that omega scales is zero


def test_an_image_is_sampled_without_temporal_layers() -> None:
    network = Network()
    sample_video(network, scene(1), CONTENTS[:1], SCHEDULE, config(), WINDOW)
    assert {temporal for _, _, temporal in network.calls} == {False}


def test_on_step_is_called_once_per_step() -> None:
    steps: list[None] = []
    settings = replace(config(), init_strength=0.5)
    noised = scene(12, latents=torch.zeros(12, *SHAPE))
    sample_video(Network(), noised, CONTENTS, SCHEDULE, settings, WINDOW, on_step=lambda: steps.append(None))
    assert len(steps) == 2


def wrapped(form: str, schedule: NoiseSchedule) -> Callable[..., Tensor]:
    """The stand-in for a UNet, with its v as another form."""
    network = Network()

    def predict(latents: Tensor, times: Tensor, content: Tensor, temporal: bool) -> Tensor:
        v, z = network(latents, times, content, temporal), latents[:, :, :4]
        convert = {"v": lambda *_: v, "eps": noise_from_v, "x0": x_from_v}[form]
        return convert(z, v, *schedule.at(times, z))

    return predict


@pytest.mark.parametrize(("form", "zero"), [("eps", False), ("x0", False), ("x0", True)])
@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_an_edit_does_not_depend_on_the_form_of_the_prediction(solver: str, form: str, zero: bool) -> None:
    """Conversion commutes with Eq. 8, whose weights sum to one, and with the mean of windows."""
    settings = config(omega_t=1.5, solver=solver)
    results = []
    for each in ("v", form):
        schedule = NoiseSchedule(NoiseConfig(zero_terminal_snr=zero, prediction=each))
        results.append(sample_video(wrapped(each, schedule), scene(12), CONTENTS[:1], schedule, settings, WINDOW))
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shared", [0.0, 0.5])
@pytest.mark.parametrize(("form", "zero"), [("v", False), ("v", True), ("eps", False), ("x0", False), ("x0", True)])
@pytest.mark.parametrize(("solver", "steps"), [("ddim", 300), ("dpm++", 100)])
def test_a_perfect_denoiser_of_a_gaussian_gives_its_mean_and_deviation(
    solver: str, steps: int, form: str, zero: bool, shared: float
) -> None:
    """With a signal at the last step, pure noise is not quite the noised video, and the mean is too near to 0."""
    mean, deviation, n, shape = -2.0, 0.5, 4, (4, 30, 30)
    schedule = NoiseSchedule(NoiseConfig(zero_terminal_snr=zero, prediction=form, shared=shared))
    covariance = (1 - shared) * torch.eye(n, dtype=torch.float64) + shared  # of the frames' noise

    def perfect(z: Tensor, times: Tensor, content: Tensor, temporal: bool) -> Tensor:
        alpha, sigma = schedule.at(times, z)
        a, s = alpha[0].item(), sigma[0].item()
        inverse = torch.linalg.inv(a**2 * deviation**2 * torch.eye(n, dtype=torch.float64) + s**2 * covariance)
        rest = torch.einsum("mn,bn...->bm...", inverse, z - a * mean)
        x = mean + a * deviation**2 * rest
        noise = s * torch.einsum("mn,bn...->bm...", covariance, rest)
        return target(form, x, noise, alpha, sigma)

    noise = shared_noise(n, n, shape, 0, shared).double()
    settings = SamplingConfig(steps, solver, guidance=GuidanceConfig(omega=1.0))
    (found,) = sample_video(perfect, Scene(noise), CONTENTS[:1], schedule, settings, n)
    assert abs(float(found.std()) / deviation - 1) < 0.05
    bias = float(found.mean()) / mean - 1
    assert abs(bias) < (0.01 if zero else 0.15)
    assert zero or bias < -0.02  # what zero_terminal_snr is for


def test_rescaling_takes_back_the_contrast_that_guidance_adds() -> None:
    plain, full, half = (
        GuidedPrediction(
            Network(),
            scene(12),
            CONTENTS[:2],
            SamplingConfig(guidance=GuidanceConfig(6.0, 1.0, share)),
            WINDOW,
        )(scene(12).noise.expand(2, -1, -1, -1, -1), torch.tensor([500, 500]))
        for share in (0.0, 1.0, 0.5)
    )
    positive = GuidedPrediction(
        Network(), scene(12), CONTENTS[:2], SamplingConfig(guidance=GuidanceConfig(1.0, 1.0)), WINDOW
    )(scene(12).noise.expand(2, -1, -1, -1, -1), torch.tensor([500, 500]))
    deviations = [prediction.flatten(1).std(1) for prediction in (full, positive)]
    torch.testing.assert_close(*deviations, rtol=1e-4, atol=0)
    torch.testing.assert_close(half, (plain + full) / 2, rtol=1e-4, atol=1e-5)
    assert not torch.equal(plain, full)


def test_rescaling_without_guidance_changes_nothing() -> None:
    plain, rescaled = (edit(8, replace(config(1.0), guidance=GuidanceConfig(1.0, 1.0, share))) for share in (0.0, 1.0))
    torch.testing.assert_close(rescaled, plain, rtol=1e-4, atol=1e-5)


def test_windows_share_what_frames_have_in_common() -> None:
    noise = shared_noise(20, 8, (4, 50, 50), 0, 0.5)
    correlation = torch.corrcoef(noise.flatten(1))
    assert (correlation[0, 1:8] - 0.5).abs().max() < 0.05
    assert torch.equal(noise[0], noise[8]) and abs(float(noise.var()) - 1) < 0.05
    assert torch.equal(shared_noise(20, 8, (4, 50, 50), 0, 0.0), shared_noise(20, 8, (4, 50, 50), 0))

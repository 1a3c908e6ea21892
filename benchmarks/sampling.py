"""What a sampling step costs: `python benchmarks/sampling.py`.

- passes: how many passes of the whole UNet a step takes, in FLOPs, by the dials and by the frames of the video; exact.
- seconds: a step as gen1-edit takes it, in turns with three naive passes (Eq. 8 as it is written: three separate calls
  for each window, all with the windows' overlap), and the seconds a frame of the whole sampler.
- solvers: how far a sampler of few steps ends from one of many, over random weights' own flow (or a checkpoint's).

JSON lines on stdout, a table on stderr.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.made_runs import composed
from benchmarks.questions import Row, answer
from benchmarks.unet_step import commit
from gen1_train.diffusion.content import content_tokens
from gen1_train.diffusion.editing import Passes, SamplingConfig, Scene, condition, sample_video, shared_noise
from gen1_train.diffusion.guidance import GuidanceConfig
from gen1_train.diffusion.schedule import NoiseConfig, NoiseSchedule
from gen1_train.diffusion.windows import window_starts, window_weights
from gen1_train.model.pretrained import load_weights
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.checkpoint import find_checkpoint
from gen1_train.training.stages import read_recorded, stage_unet
from gen1_train.training.throughput import unet_flops

DIALS = {"none": (1.0, 1.0), "plain guidance": (7.5, 1.0), "all three": (7.5, 1.5), "omega=omega_t": (1.5, 1.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["passes", "seconds", "solvers"])
    parser.add_argument("--model", default="small", help="of conf/model")
    parser.add_argument("--checkpoint", help="question solvers: of a trained model, instead of random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--height", type=int, default=32, help="of the latents")
    parser.add_argument("--width", type=int, default=56, help="of the latents")
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 12, 16, 40])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    questions = {"passes": ask_passes, "seconds": ask_seconds, "solvers": ask_solvers}
    common = {
        "model": arguments.model,
        "device": arguments.device,
        "threads": torch.get_num_threads(),
        "commit": commit(),
    }
    answer(questions, arguments, common)


def ask_passes(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """FLOPs of a step over those of one pass of the video model over all windows."""
    model = config_of(arguments.model)
    for frames in arguments.frames:
        for name, dials in DIALS.items():
            asked: list[tuple[int, int, bool]] = []

            def network(z: Tensor, times: Tensor, tokens: Tensor, temporal: bool, asked: list = asked) -> Tensor:
                asked.append((z.shape[0], z.shape[1], temporal))
                return z[:, :, :4]

            scene = made_scene(frames, 8, 4, 4, "cpu")
            config = SamplingConfig(guidance=GuidanceConfig(*dials))
            Passes(network, scene, torch.ones(1, model.content_dim), config, 8)(scene.noise[None], torch.tensor([1]))

            def flops(n: int, temporal: bool) -> int:
                return unet_flops(model, arguments.height, arguments.width, n, temporal=temporal).total

            one = len(window_starts(frames, 8, config.overlap)) * flops(min(8, frames), True)
            total = sum(clips * flops(n, temporal) for clips, n, temporal in asked)
            yield {"frames": frames, "dials": name, "passes": round(total / one, 3)}


@torch.no_grad()
def ask_seconds(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Ours and the naive step in turns; the median ratio of the rounds, and seconds a frame and step."""
    unet = random_unet(arguments)
    content = torch.randn(1, unet.config.content_dim, device=arguments.device)
    for frames in arguments.frames:
        scene = made_scene(frames, 8, arguments.height, arguments.width, arguments.device)
        for name, dials in DIALS.items():
            config = SamplingConfig(batch=arguments.batch, guidance=GuidanceConfig(*dials))
            z, t = scene.noise[None], torch.tensor([500], device=arguments.device)
            ours = Passes(unet, scene, content, config, 8)
            naive = NaivePasses(unet, scene, content, config)
            difference = (ours(z, t) - naive(z, t)).abs().max() / naive(z, t).abs().max()
            one = timed(partial(naive.pass_of, z, t, True, True), arguments)
            rounds = [
                [timed(partial(step, z, t), arguments) for step in (ours, naive)] for _ in range(arguments.rounds)
            ]
            yield {
                "frames": frames,
                "dials": name,
                "ours_per_naive": round(statistics.median(a / b for a, b in rounds), 3),
                "in_passes": round(statistics.median(a for a, _ in rounds) / one, 2),
                "seconds_per_frame_and_step": round(statistics.median(a for a, _ in rounds) / frames, 4),
                "relative_difference": f"{float(difference):.1e}",
            }


class NaivePasses:
    """Eq. 8 as it is written: three calls for each window, one after the other."""

    def __init__(self, unet: SpatioTemporalUNet, scene: Scene, content: Tensor, config: SamplingConfig) -> None:
        self.unet, self.config = unet, config
        self.starts = window_starts(len(scene.noise), 8, config.overlap)
        self.weights = window_weights(self.starts, 8, len(scene.noise)).to(scene.noise.device)
        self.extra = condition(scene.structure, config.t_s)
        self.tokens = {True: content_tokens(content), False: torch.zeros_like(content_tokens(content))}

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        omega, omega_t = self.config.guidance.omega, self.config.guidance.omega_t
        alone, empty, full = (self.pass_of(z, t, *which) for which in ((False, False), (False, True), (True, True)))
        return alone + omega_t * (empty - alone) + omega * (full - empty)

    def pass_of(self, z: Tensor, t: Tensor, content: bool, temporal: bool) -> Tensor:
        v = torch.zeros_like(z)
        for start, weights in zip(self.starts, self.weights):
            part = slice(start, start + 8)
            inputs = torch.cat([z[:, part], self.extra[None, part]], dim=2)
            v[:, part] += weights.view(1, -1, 1, 1, 1) * self.unet(inputs, t, self.tokens[content], temporal=temporal)
        return v


@torch.no_grad()
def ask_solvers(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """The distance of the latents from DDIM's with 250 steps, relative to their spread."""
    unet, schedule = random_unet(arguments), NoiseSchedule(NoiseConfig(), arguments.device)
    scene = made_scene(8, 8, arguments.height, arguments.width, arguments.device)
    content = torch.randn(1, unet.config.content_dim, device=arguments.device)

    def sampled(solver: str, steps: int) -> Tensor:
        config = SamplingConfig(steps, solver, guidance=GuidanceConfig(3.0, 1.0))
        return sample_video(unet, scene, content, schedule, config, 8)

    reference = sampled("ddim", 250)
    for steps in (5, 10, 15, 20, 30, 50):
        for solver in ("ddim", "dpm++"):
            distance = (sampled(solver, steps) - reference).std() / reference.std()
            yield {"steps": steps, "solver": solver, "distance": round(float(distance), 4)}


def config_of(model: str) -> UNetConfig:
    config = composed(["stage=5", f"model={model}"])
    return stage_unet(config.model, config.stage)


def random_unet(arguments: argparse.Namespace) -> SpatioTemporalUNet:
    """Random weights, the temporal layers not the identity; or those of a checkpoint."""
    torch.manual_seed(0)
    if arguments.checkpoint:
        checkpoint = find_checkpoint(Path(arguments.checkpoint))
        unet = SpatioTemporalUNet(read_recorded(checkpoint).unet)
        load_weights(unet, checkpoint.weights(), str(checkpoint.path), may_be_new=())
    else:
        unet = SpatioTemporalUNet(config_of(arguments.model))
        for name, weight in unet.named_parameters():
            if ".temporal_" in name:
                weight.data += 0.02 * torch.randn_like(weight)
    return unet.to(arguments.device).eval().requires_grad_(False)


def made_scene(frames: int, window: int, height: int, width: int, device: str) -> Scene:
    shape = (4, height, width)
    structure = torch.randn(frames, *shape, generator=torch.Generator().manual_seed(0))
    return Scene(shared_noise(frames, window, shape, 0).to(device), structure.to(device))


def timed(run: Callable[[], object], arguments: argparse.Namespace) -> float:
    """Seconds."""
    cuda = torch.device(arguments.device).type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

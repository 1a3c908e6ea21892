"""Measures the cost of a sampling step: `python benchmarks/sampling.py`.

- passes: number of passes through the whole UNet in a step, in FLOPs, by guidance and by frames of the video; exact.
- seconds: a step as in gen1-edit, alternating with three naive passes (Eq. 8 as written: three separate calls for each
  window, all with the windows' overlap), and seconds per frame of the whole sampler.
- solvers: distance between the results of a sampler with few steps and one with many, for random weights or those of a
  checkpoint.
- precision: PSNR of edits of the miniature in half precision against those in fp32, in a GPU's number formats.
- tiles: PSNR of a large frame that the miniature's autoencoder decodes in tiles, as diffusers and as we do, against
  the whole one.
- sizes: seconds per frame of edits of the miniature in windows, against those at the size of its bucket.

JSON lines on stdout, a table on stderr.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.questions import Row, answer
from benchmarks.synthetic_runs import composed
from benchmarks.unet_step import commit
from gen1_train.diffusion.content import content_tokens
from gen1_train.diffusion.editing import GuidedPrediction, Scene, sample_video, shared_noise, structure_input
from gen1_train.diffusion.guidance import GuidanceConfig
from gen1_train.diffusion.sampling import SamplingConfig
from gen1_train.diffusion.schedule import NoiseConfig, NoiseSchedule
from gen1_train.diffusion.windows import overlapping, window_places
from gen1_train.editing.editor import Gen1Editor
from gen1_train.editing.networks import FrameCoder
from gen1_train.editing.precision import Formats
from gen1_train.frozen import tiles as our_tiles
from gen1_train.frozen.autoencoder import to_pixels, to_signed
from gen1_train.model.pretrained import load_weights
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.checkpoints.checkpoint import find_checkpoint
from gen1_train.training.planning.throughput import unet_flops
from gen1_train.training.stages import read_recorded, stage_unet
from gen1_train.video.stream import Selection, read_selected
from miniature.cases import FIRST_SEED, draw_case, render_case

# name -> (omega, omega_t)
GUIDANCE = {"none": (1.0, 1.0), "plain guidance": (7.5, 1.0), "all three": (7.5, 1.5), "omega=omega_t": (1.5, 1.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["passes", "seconds", "solvers", "precision", "tiles", "sizes"])
    parser.add_argument("--video", help="sizes: the video that is edited")
    parser.add_argument("--model", default="small", help="of conf/model")
    parser.add_argument("--checkpoint", help="solvers: the weights of this checkpoint instead of random ones")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--height", type=int, default=32, help="of the latents")
    parser.add_argument("--width", type=int, default=56, help="of the latents")
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 12, 16, 40])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", type=int, default=4, help="precision: scenes that are edited")
    arguments = parser.parse_args()
    questions = {
        "passes": ask_passes,
        "seconds": ask_seconds,
        "solvers": ask_solvers,
        "precision": ask_precision,
        "tiles": ask_tiles,
        "sizes": ask_sizes,
    }
    common = {
        "model": arguments.model,
        "device": arguments.device,
        "threads": torch.get_num_threads(),
        "commit": commit(),
    }
    answer(questions, arguments, common)


def ask_passes(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Yields the FLOPs of a step relative to one pass of the video model over all windows."""
    model = config_of(arguments.model)
    for frames in arguments.frames:
        for name, scales in GUIDANCE.items():
            calls: list[tuple[int, int, bool]] = []  # clips, frames in each, temporal

            def network(z: Tensor, times: Tensor, tokens: Tensor, temporal: bool, calls: list = calls) -> Tensor:
                calls.append((z.shape[0], z.shape[1], temporal))
                return z[:, :, :4]

            scene = random_scene(frames, 8, 4, 4, "cpu")
            config = SamplingConfig(guidance=GuidanceConfig(*scales))
            GuidedPrediction(network, scene, torch.ones(1, model.content_dim), config, 8)(
                scene.noise[None], torch.tensor([1])
            )

            def flops(n: int, temporal: bool) -> int:
                return unet_flops(model, arguments.height, arguments.width, n, temporal=temporal).total

            one = len(window_places(frames, 8, config.overlap)) * flops(min(8, frames), True)
            total = sum(clips * flops(n, temporal) for clips, n, temporal in calls)
            yield {"frames": frames, "dials": name, "passes": round(total / one, 3)}


@torch.no_grad()
def ask_seconds(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Alternates our step and the naive one; yields the median ratio of the rounds, and seconds per frame and step."""
    unet = load_unet(arguments)
    content = torch.randn(1, unet.config.content_dim, device=arguments.device)
    for frames in arguments.frames:
        scene = random_scene(frames, 8, arguments.height, arguments.width, arguments.device)
        for name, scales in GUIDANCE.items():
            config = SamplingConfig(batch=arguments.batch, guidance=GuidanceConfig(*scales))
            z = scene.noise[None]
            t = torch.tensor([500], device=arguments.device)
            ours = GuidedPrediction(unet, scene, content, config, 8)
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
    """Eq. 8 as written: three calls for each window, one after the other."""

    def __init__(self, unet: SpatioTemporalUNet, scene: Scene, content: Tensor, config: SamplingConfig) -> None:
        self.unet = unet
        self.config = config
        self.windows = overlapping(len(scene.noise), 8, config.overlap)
        self.structure = structure_input(scene.structure, config.t_s)
        self.tokens = {True: content_tokens(content), False: torch.zeros_like(content_tokens(content))}

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        omega, omega_t = self.config.guidance.omega, self.config.guidance.omega_t
        alone = self.pass_of(z, t, content=False, temporal=False)
        empty = self.pass_of(z, t, content=False, temporal=True)
        full = self.pass_of(z, t, content=True, temporal=True)
        return alone + omega_t * (empty - alone) + omega * (full - empty)

    def pass_of(self, z: Tensor, t: Tensor, content: bool, temporal: bool) -> Tensor:
        v = torch.zeros_like(z)
        for part, weights in self.windows:
            weights = weights.to(z.device)
            inputs = torch.cat([z[:, part], self.structure[None, part]], dim=2)
            v[:, part] += weights.view(1, -1, 1, 1, 1) * self.unet(inputs, t, self.tokens[content], temporal=temporal)
        return v


@torch.no_grad()
def ask_solvers(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Yields the distance of the latents to those of DDIM with 250 steps, relative to the latter's deviation."""
    unet = load_unet(arguments)
    schedule = NoiseSchedule(NoiseConfig(), arguments.device)
    scene = random_scene(8, 8, arguments.height, arguments.width, arguments.device)
    content = torch.randn(1, unet.config.content_dim, device=arguments.device)

    def sampled(solver: str, steps: int) -> Tensor:
        config = SamplingConfig(steps, solver, guidance=GuidanceConfig(3.0, 1.0))
        return sample_video(unet, scene, content, schedule, config, 8)

    reference = sampled("ddim", 250)
    for steps in (5, 10, 15, 20, 30, 50):
        for solver in ("ddim", "dpm++"):
            distance = (sampled(solver, steps) - reference).std() / reference.std()
            yield {"steps": steps, "solver": solver, "distance": round(float(distance), 4)}


def ask_precision(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Yields the PSNR of edits in dB, mean and minimum over the scenes, by settings of the sampler and formats."""
    full = Gen1Editor.from_pretrained("miniature", arguments.device, precision="fp32")
    halves = {
        "bf16, estimators fp32": half_editor(Formats("bf16"), arguments.device),
        "bf16, estimators fp16": half_editor(GpuFormats("bf16"), arguments.device),
        "fp16, estimators fp16": half_editor(GpuFormats("fp16"), arguments.device),
    }
    for steps, solver, omega in ((12, "dpm++", 3.0), (50, "ddim", 7.5)):
        ratios: dict[str, list[float]] = {name: [] for name in halves}
        for number in range(arguments.cases):
            case = draw_case(FIRST_SEED + 1, number)
            frames = render_case(case.source(), 64, 112, supersample=2).frames
            settings: Any = {"prompt": case.wanted().caption, "steps": steps, "solver": solver, "omega": omega}
            expected = full(frames, **settings)
            for name, editor in halves.items():
                ratios[name].append(psnr(editor(frames, **settings), expected))
        for name, values in ratios.items():
            shown = {"mean_psnr": round(statistics.mean(values), 1), "least_psnr": round(min(values), 1)}
            yield {"steps": steps, "solver": solver, "omega": omega, "formats": name, **shown}


class GpuFormats(Formats):
    """The formats of an edit on a GPU, on any device: the estimators in fp16."""

    def estimators(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.float16)


def half_editor(formats: Formats, device: str) -> Gen1Editor:
    editor = Gen1Editor.from_pretrained("miniature", device, precision="fp32")
    editor.unet.to(formats.unet)
    editor.formats = formats
    editor.coder = FrameCoder(editor.autoencoder, formats, editor.device)
    return editor


def ask_tiles(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Yields the PSNR in dB of a frame of 896x512 that is encoded or decoded in tiles of some size and overlap."""
    autoencoder = Gen1Editor.from_pretrained("miniature", arguments.device, precision="fp32").autoencoder
    frame = render_case(draw_case(FIRST_SEED + 1, 0).source(), 512, 896, supersample=1).frames[:1]
    signed = to_signed(torch.from_numpy(frame)).to(arguments.device)

    def latents() -> Tensor:
        return autoencoder.encode_moments(signed).chunk(2, dim=1)[0] * autoencoder.scale

    def decoded(latents: Tensor) -> np.ndarray:
        return to_pixels(autoencoder.decode(latents)).cpu().numpy()

    def compared(tiled: np.ndarray, from_tiles: Tensor) -> Row:
        shares = {"decoded_psnr": psnr(tiled, whole), "encoded_psnr": psnr(decoded(from_tiles), whole)}
        changed = np.abs(tiled.astype(int) - whole).max(-1) > 3
        rounded = {name: round(value, 1) for name, value in shares.items()}
        return {**rounded, "changed_pixels": round(float(changed.mean()), 3)}

    encoded = latents()
    whole = decoded(encoded)
    for tile in (256, 384, 512):
        for overlap in (0.25, 0.5):
            autoencoder.kl.enable_tiling()
            autoencoder.kl.tile_sample_min_size = tile
            autoencoder.kl.tile_latent_min_size = tile // autoencoder.factor
            autoencoder.kl.tile_overlap_factor = overlap
            tiled, from_tiles = decoded(encoded), latents()
            autoencoder.kl.disable_tiling()
            yield {"tile": tile, "overlap": overlap, **compared(tiled, from_tiles)}
        for passes in (1, 2, 3, 6):
            with torch.no_grad():
                frames = to_pixels(our_tiles.decode(autoencoder.kl, encoded / autoencoder.scale, tile**2, passes))
                moments = our_tiles.encode(autoencoder.kl, signed, tile**2, passes)
            from_tiles = moments.chunk(2, dim=1)[0] * autoencoder.scale
            yield {"tile": tile, "passes": passes, **compared(frames.cpu().numpy(), from_tiles)}


def ask_sizes(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Yields the seconds per frame of edits of 8 frames of a video, and the ratio to those of the bucket, by size.

    On a CPU, the seconds are those of its threads together, so that other work on the machine does not count.
    """
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    editor = Gen1Editor.from_pretrained("miniature", arguments.device, precision="fp32")
    plain = 0.0
    for width, height in ((112, 64), (224, 128), (320, 136), (448, 256)):
        read = read_selected(arguments.video, Selection(frames=8), width, height)
        frames = np.stack([frame.pixels for frame in read])
        for overlap in (0.5, 0.25) if plain else (0.5,):
            settings: Any = {"prompt": "a striped red ball on green ground", "steps": 4, "space_overlap": overlap}
            call = partial(editor, frames, window_size="112x64", **settings)
            seconds = min(timed(call, arguments, clock) for _ in range(arguments.rounds)) / 8
            plain = plain or seconds
            pixels = width * height / (112 * 64)
            ratios = {"per_bucket": round(seconds / plain, 2), "per_pixel": round(seconds / plain / pixels, 2)}
            yield {"size": f"{width}x{height}", "overlap": overlap, "seconds_per_frame": round(seconds, 3), **ratios}


def psnr(edit: np.ndarray, other: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio of uint8 frames in dB."""
    return float(10 * np.log10(255**2 / np.square(edit.astype(float) - other).mean()))


def config_of(model: str) -> UNetConfig:
    config = composed(["stage=5", f"model={model}"])
    return stage_unet(config.model, config.stage)


def load_unet(arguments: argparse.Namespace) -> SpatioTemporalUNet:
    """Builds a UNet with random weights and temporal layers that are not the identity, or loads a checkpoint's."""
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


def random_scene(frames: int, window: int, height: int, width: int, device: str) -> Scene:
    shape = (4, height, width)
    structure = torch.randn(frames, *shape, generator=torch.Generator().manual_seed(0))
    return Scene(shared_noise(frames, window, shape, 0).to(device), structure.to(device))


def timed(
    run: Callable[[], object], arguments: argparse.Namespace, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Runs a function and returns its seconds."""
    cuda = torch.device(arguments.device).type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    start = clock()
    run()
    if cuda:
        torch.cuda.synchronize()
    return clock() - start


if __name__ == "__main__":
    main()

"""What the range of depth costs an edit: training normalizes clips, editing the whole video. JSON lines on stdout.

    python benchmarks/frozen/depth_range.py [--scenes 16] [--only ranges|compressed] [--videos FILE ...]

ranges      the range of depth in windows of 8 frames, as a share of the range of the whole video: the least and the
            mean. Of a dolly-in of 64 frames in the miniature's world, as its depth network estimates it and as the
            renderer knows it (inverse depth), and of video files as the network estimates them
compressed  edits of 8 frames by the released miniature, whose structure is given in a part of its range, as a window
            of a video with such a share would see it: depth of the edit against the input's, and the measures of
            miniature/measure.py
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])  # replaces this folder

import argparse
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from benchmarks.questions import Row, answer
from benchmarks.unet_step import commit, machine
from gen1_train import Gen1Editor
from gen1_train.diffusion.sampling import SamplingConfig
from gen1_train.editing.clip_structure import ClipStructure
from gen1_train.editing.spool import Spool
from gen1_train.evaluation.metrics import structure_fidelity
from gen1_train.video.decode import count, read_clips
from gen1_train.video.geometry import resize_and_crop
from miniature.cases import FIRST_SEED, STRIDE, draw_case, render_case
from miniature.measure import measure_edit
from miniature.world.render import FRAME_RATE, render_frame

SIZE = 112, 64
FRAMES = 64
WINDOW = 8
FAR, NEAR = 8.0, 4.6  # distances of the camera at the start and the end of the dolly-in, in world units
SHARES = (1.0, 0.9, 0.8, 0.6, 0.4)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--videos", type=Path, nargs="*", default=[])
    questions = {"ranges": ranges, "compressed": compressed}
    parser.add_argument("--only", choices=questions)
    answer(questions, parser.parse_args(), {"machine": machine(torch.device("cpu")), "commit": commit()})


def ranges(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    estimator = Gen1Editor.from_pretrained("miniature", device="cpu").structure_estimator
    shares: dict[str, list[list[float]]] = {"estimated": [], "true": []}
    for number in range(arguments.scenes):
        scene = draw_case(FIRST_SEED, number).source()
        rendered = [
            render_frame(replace(scene, camera_distance=float(d)), STRIDE * i / FRAME_RATE, SIZE[1], SIZE[0])
            for i, d in enumerate(np.linspace(FAR, NEAR, FRAMES))
        ]
        pixels = torch.from_numpy(np.stack([frame.pixels for frame in rendered]))
        shares["estimated"].append(window_shares(estimator(pixels).numpy()))
        shares["true"].append(window_shares(1 / np.stack([frame.depth for frame in rendered])))
    for depth, each in shares.items():
        yield {"video": f"dolly-in, {depth} depth", "least": least(each), "mean": round(float(np.mean(each)), 3)}
    for path in arguments.videos:
        ((_, frames),) = read_clips(path, [range(0, min(count(path), FRAMES * STRIDE), STRIDE)], ("pyav",))
        share = window_shares(estimator(torch.from_numpy(resize_and_crop(frames, *SIZE))).numpy())
        yield {"video": path.name, "least": least([share]), "mean": round(float(np.mean(share)), 3)}


def window_shares(depth: np.ndarray) -> list[float]:
    """The range of each window of (n, h, w), half of it after the one before, as a share of the whole range."""
    windows = [depth[start : start + WINDOW] for start in range(0, len(depth) - WINDOW + 1, WINDOW // 2)]
    return [float(np.ptp(window) / np.ptp(depth)) for window in windows]


def least(shares: list[list[float]]) -> float:
    """The least share of a video, mean over the videos."""
    return round(float(np.mean([min(each) for each in shares])), 3)


def compressed(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    editor = Gen1Editor.from_pretrained("miniature", device="cpu")
    sampling = SamplingConfig(steps=12, solver="dpm++")
    sampling = replace(sampling, guidance=replace(sampling.guidance, omega=3.0))
    rows: dict[float, list[Row]] = {share: [] for share in SHARES}
    for number in range(arguments.scenes):
        case = draw_case(FIRST_SEED, number)
        frames = resize_and_crop(render_case(case.source(), 4 * SIZE[1], 4 * SIZE[0]).frames, *SIZE)
        picture = render_frame(case.prompt_scene(), 0.0, 4 * SIZE[1], 4 * SIZE[0]).pixels
        content = editor.content(image=picture)
        raw = editor.structure_estimator(torch.from_numpy(frames))
        low, high = float(raw.min()), float(raw.max())
        for share in SHARES:
            stored = Spool()
            for depth in raw.numpy():
                stored.append(depth)
            span = low, low + (high - low) / share
            with ClipStructure(stored, span, editor.structure_estimator) as structure:
                scene = editor.scene(frames, structure, sampling)
            (latents,) = editor.sample(scene, content[None], sampling)
            edit = np.concatenate(list(editor.pictures(latents, frames)))
            correlation, _ = structure_fidelity(editor.structure_estimator(torch.from_numpy(edit)), raw)
            rows[share].append({**measure_edit(edit, case), "structure_correlation": correlation})
    for share, each in rows.items():
        names = ("structure_correlation", "mask_iou", "hit", "colour_error")
        means = {name: round(float(np.mean([row[name] for row in each])), 3) for name in names}
        yield {"share": share, "cases": len(each), **means}


if __name__ == "__main__":
    main()

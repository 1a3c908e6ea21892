"""How well CLIP's embedding of a frame identifies its subject, by where it is and by `clip.fit`. JSON lines on stdout.

    python benchmarks/frozen/clip_fit.py [--training 3000 --frames 400 --steps 400] [--only seen|identified|adapted]

Frames of the miniature's world with one solid, whose center is moved sideways to an offset of the frame's center, in
shares of half the width: 0 is the center, 1 the border. CLIP's crop of a 448x256 frame ends at 0.57.

seen        geometry at 448x256: the share of the solid's visible pixels that is in the picture that CLIP takes, and the
            share of that picture that shows the solid
identified  the miniature's CLIP on frames of 112x64. zero_shot: the frame's caption is closer than those with another
            color (shape, texture), as when the prior's embedding is compared. probe: a linear classifier of the
            embedding, fitted on other scenes with offsets of -0.8 to 0.8, as the UNet can learn to read it. fit=black
            is pad with black borders
adapted     crop and squash after some training of the image tower, together with the classifiers, on frames in that
            fit: the released weights, from which it starts, were fitted on crops alone
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])  # replaces this folder

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from benchmarks.questions import Row, answer
from benchmarks.unet_step import commit, machine
from gen1_train.frozen.clip import ClipConfig, ClipEncoder
from gen1_train.frozen.fit import FITS, preprocessing
from miniature.data import HEIGHT, HELD_OUT_SEED, WIDTH
from miniature.fit.clip import WORDS as ALL_WORDS
from miniature.world.render import HALF_VIEW, Frame, render_frame
from miniature.world.scene import PLAIN, Scene, sample_scene

OFFSETS = (0.0, 0.25, 0.5, 0.75)  # of the solid's center, in shares of half the width
SIZE = 448, 256
TOWER = 224  # pixels of a side of ViT-L/14's input
WEIGHT_DECAY = 1e-4
WORDS = ALL_WORDS[PLAIN]
MODEL = "local-dir:miniature/weights/clip"


def scene_at(seed: int, offset: float, aspect: float) -> Scene:
    """The first scene from a seed on that has one solid, which stands still with its center at `offset`."""
    scene = next(scene for i in range(100) if len((scene := sample_scene(1000 * seed + i)).solids) == 1)
    (solid,) = scene.solids
    position, (right, _, forward) = scene.camera(0.0)
    base, _ = solid.pose(0.0)
    place = np.array([base[0], 0.0, base[2]]) - position
    moved = position + place + (offset * HALF_VIEW * aspect * (place @ forward) - place @ right) * right
    solid = replace(solid, anchor=(float(moved[0]), float(moved[2])), sway=(0.0, 0.0), bounce=0.0)
    return replace(scene, solids=(solid,))


def rendered(scenes: list[Scene], width: int, height: int) -> list[Frame]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda scene: render_frame(scene, 0.0, height, width, 2 if height < 128 else 1), scenes))


def on_both_sides(offset: float, count: int, first: int, aspect: float) -> list[Scene]:
    """As many scenes with the solid on the left as on the right."""
    return [scene_at(first + i, offset * (1 - 2 * (i % 2)), aspect) for i in range(count)]


def ask_seen(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    width, height = SIZE
    for offset in OFFSETS:
        frames = rendered(on_both_sides(offset, min(100, arguments.frames), HELD_OUT_SEED, width / height), *SIZE)
        solids = np.stack([frame.solids > 0 for frame in frames])
        left = (width - height) // 2
        cropped = solids[:, :, left : left + height]
        covered = {
            "crop": cropped.mean(),
            "pad": solids.mean() * height / width,
            "squash": solids.mean(),
        }
        for fit in FITS:
            seen = cropped.sum() / solids.sum() if fit == "crop" else 1.0
            yield {
                "offset": offset,
                "fit": fit,
                "solid_seen": round(float(seen), 3),
                "frame_seen": round(height / width if fit == "crop" else 1.0, 3),
                "of_tower_input": round(float(covered[fit]), 4),
                "tower_pixels": round(float(covered[fit]) * TOWER**2),
            }


def ask_identified(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    encoder = ClipEncoder(ClipConfig(MODEL, None))
    training, tests = training_scenes(arguments), held_out_scenes(arguments)
    pictures = {offset: rendered(scenes, WIDTH, HEIGHT) for offset, scenes in tests.items()}
    fitted_on = rendered(training, WIDTH, HEIGHT)
    for fit in (*FITS, "black"):
        embeddings = embedded(encoder, fitted_on, fit)
        probes = {word: probe(embeddings, labels(training, word), len(values)) for word, values in WORDS.items()}
        for offset, scenes in tests.items():
            seen = embedded(encoder, pictures[offset], fit)
            row: Row = {"offset": offset, "fit": fit}
            for word in WORDS:
                truth = labels(scenes, word)
                row[f"zero_shot_{word}"] = share(zero_shot(encoder, seen, scenes, word) == truth)
                row[f"probe_{word}"] = share(probes[word](seen).argmax(1) == truth)
            yield {**row, "frames": len(scenes)}


def ask_adapted(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    training, tests = training_scenes(arguments), held_out_scenes(arguments)
    pictures = {offset: rendered(scenes, WIDTH, HEIGHT) for offset, scenes in tests.items()}
    fitted_on = rendered(training, WIDTH, HEIGHT)
    truth = torch.stack([labels(training, word) for word in WORDS], 1)
    for fit in ("crop", "squash"):
        encoder = ClipEncoder(ClipConfig(MODEL, None))
        probes = adapt(encoder, fitted(encoder, fitted_on, fit), truth, arguments.steps)
        for offset, scenes in tests.items():
            seen = embedded(encoder, pictures[offset], fit)
            row: Row = {"offset": offset, "fit": fit, "steps": arguments.steps}
            for word in WORDS:
                row[f"adapted_{word}"] = share(probes[word](seen).argmax(1) == labels(scenes, word))
            yield {**row, "frames": len(scenes)}


def adapt(encoder: ClipEncoder, pixels: Tensor, truth: Tensor, steps: int) -> torch.nn.ModuleDict:
    """Trains the image tower on pixels (n, 3, s, s) and labels (n, words), with the classifiers that it returns."""
    torch.manual_seed(0)
    width = encoder.network.visual.output_dim
    probes = torch.nn.ModuleDict({word: torch.nn.Linear(width, len(values)) for word, values in WORDS.items()})
    tower = encoder.network.visual.requires_grad_(True)
    groups = [{"params": tower.parameters(), "lr": 5e-4}, {"params": probes.parameters(), "lr": 2e-2}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(len(pixels), (64,))
        embeddings = normalize(encoder.network.encode_image(pixels[chosen]), dim=-1)
        loss = sum(cross_entropy(probes[word](embeddings), truth[chosen, i]) for i, word in enumerate(WORDS))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        schedule.step()
    tower.requires_grad_(False)
    return probes


def training_scenes(arguments: argparse.Namespace) -> list[Scene]:
    offsets = np.random.default_rng(0).uniform(-0.8, 0.8, arguments.training)
    return [scene_at(30_000_000 + i, float(offset), WIDTH / HEIGHT) for i, offset in enumerate(offsets)]


def held_out_scenes(arguments: argparse.Namespace) -> dict[float, list[Scene]]:
    return {offset: on_both_sides(offset, arguments.frames, 40_000_000, WIDTH / HEIGHT) for offset in OFFSETS}


def fitted(encoder: ClipEncoder, frames: list[Frame], fit: str) -> Tensor:
    """The input (n, 3, s, s) of the image tower."""
    border = (0, 0, 0) if fit == "black" else None
    transform = preprocessing(encoder.network.visual.preprocess_cfg, "pad" if border else fit, border)
    return torch.stack([transform(Image.fromarray(frame.pixels)) for frame in frames])


def embedded(encoder: ClipEncoder, frames: list[Frame], fit: str) -> Tensor:
    """Normalized embeddings (n, d) of frames."""
    pixels = fitted(encoder, frames, fit)
    with torch.no_grad():
        return normalize(torch.cat([encoder.network.encode_image(part) for part in pixels.split(256)]), dim=-1)


def labels(scenes: list[Scene], word: str) -> Tensor:
    return torch.tensor([WORDS[word].index(getattr(scene.solids[0], word)) for scene in scenes])


def zero_shot(encoder: ClipEncoder, images: Tensor, scenes: list[Scene], word: str) -> Tensor:
    """The index of the value of a word whose caption is closest to the frame, all other words being right: (n,)."""
    scores = []
    for value in WORDS[word]:
        captions = [replace(scene, solids=(replace(scene.solids[0], **{word: value}),)).caption for scene in scenes]
        scores.append((images * normalize(encoder.texts(captions), dim=-1)).sum(1))
    return torch.stack(scores, 1).argmax(1)


def probe(embeddings: Tensor, truth: Tensor, choices: int) -> torch.nn.Linear:
    """A linear classifier of normalized embeddings, fitted by logistic regression."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(embeddings.shape[1], choices)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(linear(embeddings), truth) + WEIGHT_DECAY * linear.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return linear


def share(right: Tensor) -> float:
    return round(float(right.float().mean()), 3)


def main() -> None:
    questions = {"seen": ask_seen, "identified": ask_identified, "adapted": ask_adapted}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=int, default=3000, help="frames that the probe is fitted on")
    parser.add_argument("--frames", type=int, default=400, help="frames of each offset")
    parser.add_argument("--steps", type=int, default=400, help="of training the tower, for the question adapted")
    parser.add_argument("--only", choices=questions)
    arguments = parser.parse_args()
    answer(questions, arguments, {"machine": machine(torch.device("cpu")), "commit": commit()})


if __name__ == "__main__":
    main()

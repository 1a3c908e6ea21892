"""Evaluates the prior's embeddings on held-out pairs, by guidance and candidates. JSON lines on stdout.

    python benchmarks/prior.py SHARDS runs/gen1/prior

It also evaluates the two baselines and a ridge regression from text to image, which needs no diffusion. For the
miniature's world it measures what an image contains that its caption does not: each caption is rendered 16 times with
other poses, lights and cameras. `two_renderings` is the score of a perfect sample, `mean_of_15` of the best guess from
a text.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # replaces this folder

import argparse
import json
from dataclasses import asdict, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from gen1_train.data.pairs import Pairs, find_captioned, read_pairs, split
from gen1_train.data.shards import ShardSet
from gen1_train.frozen.clip import ClipConfig, ClipEncoder
from gen1_train.training.checkpoints.checkpoint import find_checkpoint
from gen1_train.training.prior.checkpoint import read_config, read_prior
from gen1_train.training.prior.sampling import in_parts
from gen1_train.training.prior.validation import PART, baselines, score, validation_seed
from miniature.world.render import render_frame
from miniature.world.scene import Scene, sample_scene

SWEEP = [(1.0, 1), (1.0, 2), (1.0, 4), (1.0, 16), (1.5, 1), (1.5, 4), (2.0, 4), (3.0, 4)]  # omega, candidates
SCENES = 60
RENDERINGS = 16


def ridge(training: Pairs, texts: Tensor, weight: float = 0.01) -> Tensor:
    """Predicts image embeddings for texts (k, d) by an affine map, fitted on the training pairs."""

    def with_one(embeddings: Tensor) -> Tensor:
        return torch.cat([normalize(embeddings.float(), dim=-1), torch.ones(len(embeddings), 1)], dim=1)

    a, b = with_one(training.texts), normalize(training.middle_frames().float(), dim=-1)
    return with_one(texts) @ torch.linalg.solve(a.T @ a + weight * torch.eye(a.shape[1]), a.T @ b)


def variant(scene: Scene, seed: int) -> Scene | None:
    """Returns another scene with the same caption; None if the seed's scene has another number of solids."""
    other = sample_scene(seed)
    if len(other.solids) != len(scene.solids):
        return None
    solids = tuple(
        replace(
            theirs,
            shape=ours.shape,
            color=ours.color,
            texture=ours.texture,
            height=2 * theirs.radius if ours.shape in ("ball", "torus") else theirs.height,
        )
        for ours, theirs in zip(scene.solids, other.solids)
    )
    return replace(other, solids=solids, ground=scene.ground)


def caption_ambiguity(clip: ClipEncoder) -> dict[str, float]:
    """Returns cosines between renderings of a caption, of one to the mean of the others, and of the text to them."""
    two: list[Tensor] = []
    mean: list[Tensor] = []
    text: list[Tensor] = []
    for number in range(SCENES):
        scene = sample_scene(777_000 + number)
        variants = (variant(scene, 5_000_000 + 1000 * number + i) for i in range(1000))
        chosen = list(islice((other for other in variants if other is not None), RENDERINGS))
        frames = np.stack([render_frame(other, 0.0, 64, 112, 2).pixels for other in chosen])
        images = normalize(clip.images(frames), dim=-1)
        two.append(((images @ images.T).sum() - RENDERINGS) / (RENDERINGS * (RENDERINGS - 1)))
        mean.append(cosine_similarity(images.sum(0) - images, images, dim=-1).mean())
        text.append(cosine_similarity(clip.texts([scene.caption]), images, dim=-1).mean())
    columns = {"two_renderings": two, "mean_of_15": mean, "text": text}
    return {name: round(float(torch.stack(values).mean()), 4) for name, values in columns.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("prior", type=Path)
    arguments = parser.parse_args()
    shards, prior = ShardSet(arguments.shards), read_prior(arguments.prior)
    config = read_config(find_checkpoint(arguments.prior)).data
    training, held_out = split(read_pairs(shards, find_captioned(shards), config), config.held_out)
    images = held_out.middle_frames()

    def report(what: str, embeddings: Tensor, **columns: float) -> None:
        scores = asdict(score(embeddings, images))
        print(json.dumps({"what": what, **columns, **scores, "pairs": len(images)}), flush=True)

    for name, scores in baselines(training, held_out).items():
        print(json.dumps({"what": name, **asdict(scores), "pairs": len(images)}), flush=True)
    report("ridge", ridge(training, held_out.texts))
    for omega, candidates in SWEEP:
        sampling = replace(prior.sampling, omega=omega, candidates=candidates)
        embeddings = in_parts(prior.network, held_out.texts, validation_seed, prior.schedule, sampling, PART)
        report("prior", embeddings, omega=omega, candidates=candidates)
    clip = shards.manifest.estimators["clip"]["config"]
    if "miniature" in clip["model"]:
        print(json.dumps({"what": "untold", **caption_ambiguity(ClipEncoder(ClipConfig(**clip)))}))


if __name__ == "__main__":
    main()

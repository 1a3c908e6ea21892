"""What the prior's embeddings are worth on held-out pairs, by guidance and candidates. JSON lines on stdout.

    python benchmarks/prior.py SHARDS runs/gen1/prior

Beside it the two baselines, a ridge regression from text to image (what needs no diffusion), and, of the miniature's
world alone, what the image holds that its caption does not: the same captions rendered 16 times with another pose,
light and camera. `two_renderings` is what a perfect sample would reach, `mean_of_15` the best guess from a text.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # in place of this folder

import argparse
import json
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from gen1_train.data.pairs import Pairs, captioned, read_pairs, split
from gen1_train.data.shards import ShardSet
from gen1_train.estimators.clip import ClipConfig, ClipEncoder
from gen1_train.training.checkpoint import find_checkpoint
from gen1_train.training.prior_checkpoint import read_config, read_prior
from gen1_train.training.prior_sampling import in_parts
from gen1_train.training.prior_validation import PART, baselines, score, validation_seed
from miniature.render import render_frame
from miniature.scene import Scene, sample_scene

SWEEP = [(1.0, 1), (1.0, 2), (1.0, 4), (1.0, 16), (1.5, 1), (1.5, 4), (2.0, 4), (3.0, 4)]  # omega, candidates
SCENES, RENDERINGS = 60, 16


def ridge(training: Pairs, texts: Tensor, weight: float = 0.01) -> Tensor:
    """Image embeddings for texts (k, d) by a linear map with a constant, fitted on the training pairs."""

    def with_one(embeddings: Tensor) -> Tensor:
        return torch.cat([normalize(embeddings.float(), dim=-1), torch.ones(len(embeddings), 1)], dim=1)

    a, b = with_one(training.texts), normalize(training.middle_frames().float(), dim=-1)
    return with_one(texts) @ torch.linalg.solve(a.T @ a + weight * torch.eye(a.shape[1]), a.T @ b)


def variant(scene: Scene, seed: int) -> Scene | None:
    """Another scene with this one's caption; None where the seed's has another number of solids."""
    other = sample_scene(seed)
    if len(other.solids) != len(scene.solids):
        return None
    solids = tuple(
        replace(
            theirs,
            shape=ours.shape,
            colour=ours.colour,
            texture=ours.texture,
            height=2 * theirs.radius if ours.shape in ("ball", "torus") else theirs.height,
        )
        for ours, theirs in zip(scene.solids, other.solids)
    )
    return replace(other, solids=solids, ground=scene.ground)


def untold(clip: ClipEncoder) -> dict[str, float]:
    """Cosines between renderings of one caption, of one to the mean of the others, and of the text to them."""
    two, mean, text = [], [], []
    for number in range(SCENES):
        scene = sample_scene(777_000 + number)
        found = (variant(scene, 5_000_000 + 1000 * number + i) for i in range(1000))
        chosen = [each for _, each in zip(range(RENDERINGS), (each for each in found if each is not None))]
        frames = np.stack([render_frame(each, 0.0, 64, 112, 2).pixels for each in chosen])
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
    training, held_out = split(read_pairs(shards, captioned(shards), config), config.held_out)
    images = held_out.middle_frames()

    def tell(what: str, made: Tensor, **more: float) -> None:
        print(json.dumps({"what": what, **more, **asdict(score(made, images)), "pairs": len(images)}), flush=True)

    for name, found in baselines(training, held_out).items():
        print(json.dumps({"what": name, **asdict(found), "pairs": len(images)}), flush=True)
    tell("ridge", ridge(training, held_out.texts))
    for omega, candidates in SWEEP:
        sampling = replace(prior.sampling, omega=omega, candidates=candidates)
        made = in_parts(prior.network, held_out.texts, validation_seed, prior.schedule, sampling, PART)
        tell("prior", made, omega=omega, candidates=candidates)
    clip = shards.manifest.estimators["clip"]["config"]
    if "miniature" in clip["model"]:
        print(json.dumps({"what": "untold", **untold(ClipEncoder(ClipConfig(**clip)))}))


if __name__ == "__main__":
    main()

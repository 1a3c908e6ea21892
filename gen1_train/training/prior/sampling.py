"""Sampling from a trained prior: image embeddings for text embeddings, for validation and for editing."""

from collections.abc import Callable

import torch
from torch import Tensor

from gen1_train.diffusion.prior import PriorSamplingConfig, best_of, sample_embeddings
from gen1_train.diffusion.schedule import NoiseSchedule
from gen1_train.keyed import normal
from gen1_train.model.prior import PriorNetwork


@torch.no_grad()
def embeddings_for(
    prior: PriorNetwork, texts: Tensor, noise: Tensor, schedule: NoiseSchedule, config: PriorSamplingConfig
) -> Tensor:
    """Samples image embeddings (b, d) for CLIP text embeddings (b, d) from noise (b, candidates, d).

    They have the mean length of the image embeddings that the prior was trained on.
    """
    b, n, d = noise.shape
    scaled = prior.texts(texts).repeat_interleave(n, 0)  # (b n) d

    def predict(z: Tensor, timesteps: Tensor, with_text: list[bool]) -> Tensor:
        k = len(with_text)
        dropped = ~torch.tensor(with_text, device=z.device).repeat_interleave(b * n)
        return prior(z, timesteps, scaled.repeat(k, 1), dropped).float()

    samples = sample_embeddings(predict, noise.flatten(0, 1), schedule, config.steps, config.omega)
    return best_of(prior.images.embeddings(samples).view(b, n, d), texts.float())


def in_parts(
    prior: PriorNetwork,
    texts: Tensor,
    seeds: Callable[[int], int],
    schedule: NoiseSchedule,
    config: PriorSamplingConfig,
    part: int,
) -> Tensor:
    """Does the same for texts (k, d), `part` at a time, text i with the noise of seeds(i): (k, d) on the CPU."""
    device, d = prior.query.device, texts.shape[1]
    parts = []
    for first in range(0, len(texts), part):
        chosen = texts[first : first + part].float().to(device)
        noise = [normal((config.candidates, d), seeds(first + i), "prior") for i in range(len(chosen))]
        parts.append(embeddings_for(prior, chosen, torch.stack(noise).to(device), schedule, config).cpu())
    return torch.cat(parts)

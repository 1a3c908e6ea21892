"""Text embeddings in, image embeddings out: a trained prior, for validation and for editing."""

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
    """Text embeddings (b, d) as CLIP has them, noise (b, candidates, d) -> image embeddings (b, d).

    They have the mean length of the image embeddings that the prior was trained on.
    """
    b, n, d = noise.shape
    scaled = prior.texts(texts).repeat_interleave(n, 0)  # (b n) d

    def predict(z: Tensor, timesteps: Tensor, with_text: list[bool]) -> Tensor:
        k = len(with_text)
        dropped = ~torch.tensor(with_text, device=z.device).repeat_interleave(b * n)
        return prior(z, timesteps, scaled.repeat(k, 1), dropped).float()

    made = sample_embeddings(predict, noise.flatten(0, 1), schedule, config.steps, config.omega)
    return best_of(prior.images.embeddings(made).view(b, n, d), texts.float())


def in_parts(
    prior: PriorNetwork,
    texts: Tensor,
    seeds: Callable[[int], int],
    schedule: NoiseSchedule,
    config: PriorSamplingConfig,
    part: int,
) -> Tensor:
    """The same for texts (k, d), at most `part` at a time, text i with the noise of seeds(i): (k, d) on the CPU."""
    device, d, made = prior.query.device, texts.shape[1], []
    for first in range(0, len(texts), part):
        chosen = texts[first : first + part].float().to(device)
        noise = [normal((config.candidates, d), seeds(first + i), "prior") for i in range(len(chosen))]
        made.append(embeddings_for(prior, chosen, torch.stack(noise).to(device), schedule, config).cpu())
    return torch.cat(made)

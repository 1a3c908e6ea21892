"""One clip in the content of an embedding: network, guidance and sampler put together."""

from collections.abc import Callable

import torch
from torch import Tensor

from gen1_train.diffusion.content import content_tokens
from gen1_train.diffusion.guidance import GuidanceConfig, guided
from gen1_train.diffusion.sampler import ddim
from gen1_train.diffusion.schedule import NoiseSchedule
from gen1_train.diffusion.structure import level_channels

# network(latents (b, n, c, h, w), timesteps (b,), content (b, 1, d), temporal) -> v (b, n, c, h, w)
Network = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def sample_clip(
    network: Network,
    noise: Tensor,
    structure: Tensor | None,
    level: int,
    content: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    guidance: GuidanceConfig,
    on_step: Callable[[], object] = lambda: None,
) -> Tensor:
    """Noise (n, c, h, w), encoded structure of the same shape at t_s = `level`, content (d,) -> latents (n, c, h, w).

    Without structure the network is given z_t alone, as stages before the fourth know it.
    """
    n, _, h, w = noise.shape
    extra: list[Tensor] = []
    if structure is not None:
        levels = level_channels(torch.tensor([level], device=noise.device), (n, h, w))
        extra = [structure[None], levels]

    def denoise(z: Tensor, timesteps: Tensor) -> Tensor:
        def predict(z: Tensor, with_content: list[bool], temporal: bool) -> Tensor:
            dropped = torch.tensor([not flag for flag in with_content], device=noise.device)
            tokens = content_tokens(content.expand(len(z), -1), dropped)
            inputs = torch.cat([z, *(part.expand(len(z), *part.shape[1:]) for part in extra)], dim=2)
            return network(inputs, timesteps.expand(len(z)), tokens, temporal)

        return guided(predict, z, guidance)

    return ddim(denoise, noise[None], schedule, steps, lambda done: on_step())[0]

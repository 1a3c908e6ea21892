"""The prior: from a CLIP text embedding to a CLIP image embedding, by diffusion as in unCLIP (arXiv 2204.06125, 2.2).

Gen-1 says that it has one (section 3.2.2) and no more; all that follows is ours. The network sees four tokens (text,
timestep, noisy image embedding, a learned query) and predicts the image embedding itself (x0) at the query, as unCLIP's
does. unCLIP's fifth input, the caption word by word, is not in our shards.

Embeddings come as CLIP's towers give them. Their length says nothing that training the UNet keeps (diffusion.content),
so they are brought to length 1; then each component is shifted and scaled to mean 0 and variance 1 over the training
pairs, for that is what the noise has: CLIP's embeddings lie in a narrow cone, so that without this most of the loss
would be about a vector which is always the same. The numbers for it are weights that training leaves alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from gen1_train.model.layers import TimeEmbedding, timestep_embedding

STATISTICS = ("text_mean", "text_scale", "image_mean", "image_scale", "image_length")
SMALLEST = 1e-4  # scale of a component: one that never varies is not to be blown up


@dataclass
class PriorConfig:
    width: int = 1024  # of a token inside
    layers: int = 12  # transformer blocks
    heads: int = 16  # of their attention


class PriorNetwork(nn.Module):
    """Noisy image embeddings, timesteps, texts -> image embeddings; `dim` is CLIP's width."""

    def __init__(self, config: PriorConfig, dim: int) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        width = config.width
        self.text_in, self.image_in = nn.Linear(dim, width), nn.Linear(dim, width)
        self.time_in = TimeEmbedding(width, width)
        self.no_text = nn.Parameter(0.02 * torch.randn(width))  # in place of a text that is left out
        self.query = nn.Parameter(0.02 * torch.randn(width))
        self.places = nn.Parameter(0.02 * torch.randn(4, width))  # what tells the tokens apart
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, config.heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, dim)
        nn.init.zeros_(self.out.weight)  # at first it predicts the mean image embedding
        nn.init.zeros_(self.out.bias)
        for name in STATISTICS:
            size = () if name == "image_length" else (dim,)
            value = torch.zeros(size) if name.endswith("mean") else torch.ones(size)
            setattr(self, name, nn.Parameter(value, requires_grad=False))

    def forward(self, z: Tensor, timesteps: Tensor, texts: Tensor, dropped: Tensor | None = None) -> Tensor:
        """z (b, d), timesteps (b,), texts (b, d), both in the network's scale, dropped (b,) bool -> x0 (b, d)."""
        text = self.text_in(texts)
        if dropped is not None:
            text = torch.where(dropped[:, None], self.no_text.to(text), text)
        time = self.time_in(timestep_embedding(timesteps, self.config.width).to(text))
        x = torch.stack([text, time, self.image_in(z), self.query.expand_as(text).to(text)], dim=1) + self.places
        for block in self.blocks:
            x = block(x)  # b 4 width
        return self.out(self.norm(x[:, -1]))

    @torch.no_grad()
    def fit_statistics(self, texts: Tensor, images: Tensor) -> None:
        """Takes the scale of the embeddings from the training pairs: (p, d) and (p, d), as the towers give them."""
        unit = normalize(images.float(), dim=-1)
        for name, embeddings in (("text", normalize(texts.float(), dim=-1)), ("image", unit)):
            getattr(self, f"{name}_mean").copy_(embeddings.mean(0))
            getattr(self, f"{name}_scale").copy_(embeddings.std(0).clamp(min=SMALLEST))
        self.image_length.copy_(images.float().norm(dim=-1).mean())

    def scale_texts(self, embeddings: Tensor) -> Tensor:
        """CLIP's text embeddings (b, d) of any length -> what `forward` takes."""
        return (normalize(embeddings.float(), dim=-1) - self.text_mean) / self.text_scale

    def scale_images(self, embeddings: Tensor) -> Tensor:
        """CLIP's image embeddings (b, d) of any length -> x0."""
        return (normalize(embeddings.float(), dim=-1) - self.image_mean) / self.image_scale

    def unscale_images(self, x: Tensor) -> Tensor:
        """x0 (b, d) -> image embeddings (b, d), all of the mean length of the training images'."""
        return normalize(x.float() * self.image_scale + self.image_mean, dim=-1) * self.image_length

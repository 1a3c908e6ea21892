"""The prior: maps a CLIP text embedding to a CLIP image embedding by diffusion, as in unCLIP (arXiv 2204.06125, 2.2).

The Gen-1 paper only mentions its prior; everything here is ours. The network sees four tokens (text,
timestep, noisy image embedding, a learned query) and predicts the image embedding itself (x0) at the query, as in
unCLIP. unCLIP's fifth input, the caption's tokens, is not in our shards.

Embeddings come as the outputs of CLIP's towers. The UNet does not use their length (diffusion.content), so they are
normalized to length 1. Then each component is shifted and scaled to mean 0 and variance 1 over the training pairs, as
the noise has. CLIP's embeddings are in a narrow cone: without this, a constant vector would dominate the loss. The
statistics are weights that training does not update.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from gen1_train.errors import UserError, check_positive, check_size
from gen1_train.model.layers import TimeEmbedding, timestep_embedding

MIN_DEVIATION = 1e-4  # of a component: one that never varies must not be amplified


@dataclass
class PriorConfig:
    width: int = 1024  # of the tokens in the network
    layers: int = 12  # transformer blocks
    heads: int = 16  # of each block's attention

    def check(self) -> None:
        """Raises UserError for a setting that is out of its range."""
        check_size(prior__width=[self.width], prior__layers=[self.layers], prior__heads=[self.heads])
        check_positive(prior__width=self.width, prior__layers=self.layers, prior__heads=self.heads)
        if self.width % 2 or self.width % self.heads:
            raise UserError(f"prior.width={self.width} must be even and a multiple of prior.heads={self.heads}")


class Scale(nn.Module):
    """Scales the embeddings of a CLIP tower to components of mean 0 and variance 1, and back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(dim), requires_grad=False)  # of embeddings of length 1
        self.deviation = nn.Parameter(torch.ones(dim), requires_grad=False)  # of embeddings of length 1
        self.length = nn.Parameter(torch.ones(()), requires_grad=False)  # mean length of the tower's embeddings

    @torch.no_grad()
    def fit(self, embeddings: Tensor) -> None:
        """Sets the statistics to those of embeddings (p, d)."""
        embeddings = embeddings.float()
        unit = normalize(embeddings, dim=-1)
        self.mean.copy_(unit.mean(0))
        self.deviation.copy_(unit.std(0).clamp(min=MIN_DEVIATION))
        self.length.copy_(embeddings.norm(dim=-1).mean())

    def forward(self, embeddings: Tensor) -> Tensor:
        """(b, d) of any length -> (b, d)."""
        return (normalize(embeddings.float(), dim=-1) - self.mean) / self.deviation

    def embeddings(self, x: Tensor) -> Tensor:
        """The inverse of `forward`: (b, d) -> (b, d), all of the mean length."""
        return normalize(x.float() * self.deviation + self.mean, dim=-1) * self.length


class PriorNetwork(nn.Module):
    """Predicts image embeddings from noisy ones, timesteps and texts; `dim` is CLIP's width.

    `texts` and `images` are the scales of the two kinds of embeddings; `forward` takes and returns scaled ones.
    """

    def __init__(self, config: PriorConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.dim = dim
        width = config.width
        self.text_in = nn.Linear(dim, width)
        self.image_in = nn.Linear(dim, width)
        self.time_in = TimeEmbedding(width, width)
        self.no_text = nn.Parameter(0.02 * torch.randn(width))  # replaces a dropped text
        self.query = nn.Parameter(0.02 * torch.randn(width))
        self.places = nn.Parameter(0.02 * torch.randn(4, width))  # position embeddings of the four tokens
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
        self.texts = Scale(dim)
        self.images = Scale(dim)

    def forward(self, z: Tensor, timesteps: Tensor, texts: Tensor, dropped: Tensor | None = None) -> Tensor:
        """z (b, d), timesteps (b,), scaled texts (b, d), dropped (b,) bool -> x0 (b, d)."""
        text = self.text_in(texts)
        if dropped is not None:
            text = torch.where(dropped[:, None], self.no_text.to(text), text)
        time = self.time_in(timestep_embedding(timesteps, self.config.width).to(text))
        x = torch.stack([text, time, self.image_in(z), self.query.expand_as(text).to(text)], dim=1) + self.places
        for block in self.blocks:
            x = block(x)  # b 4 width
        return self.out(self.norm(x[:, -1]))

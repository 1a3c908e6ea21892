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

SMALLEST = 1e-4  # scale of a component: one that never varies is not to be blown up


@dataclass
class PriorConfig:
    width: int = 1024  # of a token inside
    layers: int = 12  # transformer blocks
    heads: int = 16  # of their attention


class Scale(nn.Module):
    """Embeddings as CLIP's tower gives them -> components of mean 0 and variance 1, and back to embeddings."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(dim), requires_grad=False)  # of embeddings of length 1
        self.deviation = nn.Parameter(torch.ones(dim), requires_grad=False)  # of embeddings of length 1
        self.length = nn.Parameter(torch.ones(()), requires_grad=False)  # of the tower's, on average

    @torch.no_grad()
    def fit(self, embeddings: Tensor) -> None:
        """Takes the statistics of embeddings (p, d)."""
        embeddings = embeddings.float()
        unit = normalize(embeddings, dim=-1)
        self.mean.copy_(unit.mean(0))
        self.deviation.copy_(unit.std(0).clamp(min=SMALLEST))
        self.length.copy_(embeddings.norm(dim=-1).mean())

    def forward(self, embeddings: Tensor) -> Tensor:
        """(b, d) of any length -> (b, d)."""
        return (normalize(embeddings.float(), dim=-1) - self.mean) / self.deviation

    def embeddings(self, x: Tensor) -> Tensor:
        """The way back: (b, d) -> (b, d), all of the mean length."""
        return normalize(x.float() * self.deviation + self.mean, dim=-1) * self.length


class PriorNetwork(nn.Module):
    """Noisy image embeddings, timesteps, texts -> image embeddings; `dim` is CLIP's width.

    `texts` and `images` are the scales of either kind of embedding; `forward` takes and gives scaled ones.
    """

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
        self.texts, self.images = Scale(dim), Scale(dim)

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

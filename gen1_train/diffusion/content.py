"""The content condition: a CLIP image embedding as one cross-attention token (paper section 3.3)."""

from torch import Tensor
from torch.nn.functional import normalize


def content_tokens(embeddings: Tensor, dropped: Tensor | None = None) -> Tensor:
    """CLIP embeddings (b, d), dropped (b,) bool -> tokens (b, 1, d); a dropped content becomes the zero token.

    The length of an embedding carries no information, so it is normalized to sqrt(d): components of about unit size,
    which suits attention layers. Scale and zero token are ours.
    """
    tokens = normalize(embeddings.float(), dim=-1) * embeddings.shape[-1] ** 0.5
    if dropped is not None:
        tokens = tokens.masked_fill(dropped[:, None], 0.0)
    return tokens[:, None]

"""The content condition: a CLIP image embedding as one cross-attention token (paper section 3.2.2)."""

from torch import Tensor
from torch.nn.functional import normalize


def content_tokens(embeddings: Tensor, dropped: Tensor | None = None) -> Tensor:
    """CLIP embeddings (b, d), dropped (b,) bool -> tokens (b, 1, d); a dropped content is the zero token.

    The length of an embedding says nothing, so it is normalised, to sqrt(d): components of about unit size, which is
    what attention layers are used to. Scale and zero token are ours.
    """
    tokens = normalize(embeddings.float(), dim=-1) * embeddings.shape[-1] ** 0.5
    if dropped is not None:
        tokens = tokens.masked_fill(dropped[:, None], 0.0)
    return tokens[:, None]

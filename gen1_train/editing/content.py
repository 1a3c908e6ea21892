"""The content of an edit: of example images, of a text, or of both."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gen1_train.editing.config import NO_CONTENT
from gen1_train.editing.inputs import PictureLike, to_picture
from gen1_train.errors import UserError
from gen1_train.frozen.clip import ClipEncoder

Images = PictureLike | list[PictureLike] | tuple[PictureLike, ...]


def content_of_images(clip: ClipEncoder, images: Images, weights: Sequence[float] | None = None) -> Tensor:
    """Returns the embedding (d,) of an example image, or of several.

    Several are mixed by direction: their embeddings are normalized and averaged with the weights, by default equal ones
    (ours). Raises UserError for an image that cannot be read, and for weights that do not fit.
    """
    pictures: list[PictureLike] = list(images) if isinstance(images, list | tuple) else [images]
    names = ["image"] if len(pictures) == 1 else [f"image[{i}]" for i in range(len(pictures))]
    if not pictures:
        raise UserError("image is an empty list: give at least one image")
    embeddings = [clip.images(to_picture(picture, name)[None])[0] for picture, name in zip(pictures, names)]
    weights = [1.0] * len(pictures) if weights is None else list(weights)
    if len(weights) != len(pictures) or not all(0 < weight < math.inf for weight in weights):
        raise UserError(f"image_weights={weights}: give a number above 0 for each of the {len(pictures)} images")
    if len(embeddings) == 1:
        return embeddings[0]
    directions = torch.stack([normalize(embedding.float(), dim=0) for embedding in embeddings])
    shares = torch.tensor(weights, device=directions.device)[:, None]
    return (shares * directions).sum(0) / shares.sum()


def mixed(text: Tensor | None, images: Tensor | None, image_share: float) -> Tensor:
    """Returns the content (d,) of a text and of images, from their embeddings (d,).

    Two are mixed by direction, with `image_share` for the images (ours). Raises UserError without either.
    """
    if text is None and images is None:
        raise UserError(NO_CONTENT)
    parts = []
    if text is not None:
        parts.append((1 - image_share if images is not None else 1.0, text))
    if images is not None:
        parts.append((image_share if text is not None else 1.0, images))
    return torch.stack([share * normalize(part.float(), dim=0) for share, part in parts]).sum(0)

"""The CLIP model's fit: contrastive, on pairs of a rendered frame and a paraphrase of its caption.

In addition to the captions of the other frames in the batch, each frame is compared with a near miss of its own
caption: the solids have exchanged an attribute, or one has another color, shape or texture (NegCLIP: Yuksekgonul et
al., arXiv 2210.01936). Without near misses, CLIP learns which words belong to a picture, but not which words belong
together.

Moreover, linear classifiers must be able to read the caption's words from each embedding, of a picture or a caption
(`WordClassifiers`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import nn
from torch.nn import functional

from miniature.data import FIT_SEED, HELD_OUT_SEED, Frames
from miniature.fit.loop import Fit
from miniature.fit.variants import SMALL, Variant
from miniature.tiny import CLIP_CONFIG, clip_model
from miniature.world.scene import COLORS, GROUNDS, PLAIN, RICH, RICH_TEXTURES, SHAPES, TEXTURES, Scene

BATCH = 256
NEAR_MISSES = 6  # captions drawn for each frame
WORDS = {  # attributes of a solid, by style
    PLAIN: {"color": tuple(COLORS), "shape": SHAPES, "texture": TEXTURES},
    RICH: {"color": tuple(COLORS), "shape": SHAPES, "texture": RICH_TEXTURES},
}
PARAPHRASES = ("{}", "a photo of {}", "a video of {}", "a rendering of {}", "{}, in daylight")


class WordClassifiers(nn.Module):
    """Linear classifiers of a caption's words from an embedding; they are used in the fit only (ours).

    The words are the color, shape and texture of the first and the second solid from the left (or the absence of the
    solid), and the ground; in rich scenes also the surround (or its absence). The contrastive loss alone leaves most
    of them in directions of very little variance, where a model that is conditioned on the embedding does not find
    them. The classifiers' directions all have the same length, so that each word gets its share of the variance.
    """

    LENGTH = 1.5  # of the directions, for embeddings of length sqrt(d)

    def __init__(self, width: int, style: str = PLAIN) -> None:
        super().__init__()
        self.sizes = [*(len(values) + 1 for _ in range(2) for values in WORDS[style].values()), len(GROUNDS)]
        if style == RICH:
            self.sizes.append(len(GROUNDS) + 1)
        self.linear = nn.Linear(width, sum(self.sizes))

    @staticmethod
    def labels(scene: Scene, style: str = PLAIN) -> list[int]:
        """The label of each word of a scene's caption."""
        grounds = list(GROUNDS)
        labels = [
            values.index(getattr(scene.solids[i], name)) if i < len(scene.solids) else len(values)
            for i in range(2)
            for name, values in WORDS[style].items()
        ]
        labels.append(grounds.index(scene.ground))
        if style == RICH:
            labels.append(len(grounds) if scene.surround is None else grounds.index(scene.surround))
        return labels

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Normalized embeddings (n, d) -> logits (n, choices) for each word."""
        directions = self.LENGTH * functional.normalize(self.linear.weight, dim=1)
        logits = functional.linear(embeddings * embeddings.shape[1] ** 0.5, directions, self.linear.bias)
        return logits.split(self.sizes, dim=1)

    def loss(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of embeddings (n, d) with labels (n, words)."""
        each = [functional.cross_entropy(part, labels[:, i]) for i, part in enumerate(self(embeddings))]
        return sum(each, embeddings.new_zeros(())) / len(each)


def near_miss(scene: Scene, rng: np.random.Generator, style: str = PLAIN) -> Scene:
    """A scene with almost the caption of `scene`: one attribute is exchanged between its solids, or drawn again."""
    name, values = list(WORDS[style].items())[rng.integers(3)]
    own = [getattr(solid, name) for solid in scene.solids]
    if len(set(own)) > 1 and rng.random() < 0.5:
        return exchanged(scene, name)
    solids, number = list(scene.solids), int(rng.integers(len(own)))
    wrong: dict[str, Any] = {name: str(rng.choice([value for value in values if value not in own]))}
    solids[number] = replace(solids[number], **wrong)
    return replace(scene, solids=tuple(solids))


def tokenize(captions: list[str]) -> torch.Tensor:
    """Token numbers (n, context length) from open_clip's own byte-pair tokenizer."""
    return open_clip.SimpleTokenizer(context_length=CLIP_CONFIG["model_cfg"]["text_cfg"]["context_length"])(captions)


def normalize_images(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resizes square crops (n, 3, s, s) in 0..1 to the model's size, and normalizes them as its preprocessing does."""
    config = CLIP_CONFIG["preprocess_cfg"]
    images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (images - mean) / std


def crop(pixels: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Crops the middle square of uint8 frames (n, 3, h, w), jittered if there is a generator; returns 0..1.

    Frames are never flipped, since captions name the solids from left to right.
    """
    height, width = pixels.shape[-2:]
    top = 0
    left = (width - height) // 2
    side = height
    if generator is not None:
        side = height - int(torch.randint(height // 8 + 1, (), generator=generator))
        top = int(torch.randint(height - side + 1, (), generator=generator))
        left += int(torch.randint(-height // 10, height // 10 + 1, (), generator=generator)) + (height - side) // 2
    return pixels[:, :, top : top + side, left : left + side] / 255


def measure(model: open_clip.CLIP, count: int = 100, variant: Variant = SMALL) -> dict[str, float]:
    """Measures the share of unseen frames whose own caption is the nearest of `count` distinct ones, and vice versa.

    `told_from_exchanged` is the share of frames with two solids that are closer to their own caption than to the one
    with the colors exchanged; chance is one half.
    """
    frames = variant.pictures.rendered(2 * count, HELD_OUT_SEED)
    chosen = list({caption: index for index, caption in enumerate(frames.captions)}.values())[:count]
    with torch.no_grad():
        images = embeddings_of(model, frames.pixels[chosen])
        texts = model.encode_text(tokenize([frames.captions[index] for index in chosen]), normalize=True)
    match = images @ texts.T
    own = torch.arange(len(chosen))
    return {
        "top1_image_to_text": round(float((match.argmax(1) == own).float().mean()), 3),
        "top1_text_to_image": round(float((match.argmax(0) == own).float().mean()), 3),
        "mean_cosine_own_pair": round(float(match.diagonal().mean()), 4),
        "mean_cosine_other_pairs": round(float((match.sum() - match.trace()) / (match.numel() - len(chosen))), 4),
        "told_from_exchanged": round(exchange_accuracy(model, frames), 3),
    }


def embeddings_of(model: open_clip.CLIP, pixels: torch.Tensor) -> torch.Tensor:
    """Returns the normalized embeddings (n, d) of uint8 frames (n, 3, h, w)."""
    side, _ = model.visual.image_size
    return model.encode_image(normalize_images(crop(pixels, None), side), normalize=True)


def exchange_accuracy(model: open_clip.CLIP, frames: Frames) -> float:
    """Measures whether CLIP knows which color belongs to which solid, see `measure`."""
    pairs = [i for i, scene in enumerate(frames.scenes) if len(scene.solids) == 2]
    own = [frames.scenes[i] for i in pairs]
    other = [exchanged(scene, "color") for scene in own]
    with torch.no_grad():
        images = embeddings_of(model, frames.pixels[pairs])
        texts = model.encode_text(tokenize([scene.caption for scene in own + other]), normalize=True)
    near = [(images * part).sum(1) for part in texts.chunk(2)]
    return float((near[0] > near[1]).float().mean())


def exchanged(scene: Scene, name: str) -> Scene:
    """The scene with one attribute (color, shape or texture) exchanged between its solids."""
    values = [getattr(solid, name) for solid in reversed(scene.solids)]
    return replace(scene, solids=tuple(replace(s, **{name: v}) for s, v in zip(scene.solids, values, strict=True)))


def fit(steps: int, variant: Variant = SMALL, state: Path | None = None) -> tuple[open_clip.CLIP, dict[str, float]]:
    """Fits the CLIP model; returns it and its held-out quality."""
    torch.manual_seed(0)
    model, rng, style = clip_model(variant.clip), np.random.default_rng(0), variant.pictures.style
    classifiers = WordClassifiers(variant.clip.embedding, style)
    frames = variant.pictures.rendered(16_000, FIT_SEED)
    wrong = [[near_miss(scene, rng, style) for scene in frames.scenes] for _ in range(NEAR_MISSES)]
    tokens = torch.stack([tokenize([form.format(caption) for caption in frames.captions]) for form in PARAPHRASES])
    wrong_tokens = torch.stack([tokenize([scene.caption for scene in scenes]) for scenes in wrong])
    labels, *wrong_labels = (
        torch.tensor([WordClassifiers.labels(scene, style) for scene in scenes]) for scenes in (frames.scenes, *wrong)
    )
    own = torch.arange(BATCH)

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(frames.pixels), (BATCH,), generator=generator)
        forms = torch.randint(len(PARAPHRASES), (BATCH,), generator=generator)
        gain = 0.85 + 0.3 * torch.rand((BATCH, 1, 1, 1), generator=generator)
        pictures = (crop(frames.pixels[chosen], generator) * gain).clamp(0, 1)
        pictures = normalize_images(pictures, variant.clip.image)
        other = torch.randint(NEAR_MISSES, (BATCH,), generator=generator)
        captions = torch.cat([tokens[forms, chosen], wrong_tokens[other, chosen]])
        texts = model.encode_text(captions, normalize=True)
        images = model.encode_image(pictures, normalize=True)
        logits = model.logit_scale.exp().clamp(max=100) * images @ texts.T
        contrast = functional.cross_entropy(logits, own) + functional.cross_entropy(logits[:, :BATCH].T, own)
        text_labels = torch.cat([labels[chosen], torch.stack(wrong_labels)[other, chosen]])
        return contrast / 2 + (classifiers.loss(images, labels[chosen]) + classifiers.loss(texts, text_labels))

    Fit("clip", steps, 2e-3, state).minimize(nn.ModuleList([model, classifiers]), loss_of)
    return model, measure(model, variant=variant)

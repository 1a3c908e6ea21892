"""Fit the CLIP model: contrastive, on pairs of a rendered frame and a paraphrase of its caption.

Beside the captions of the other frames in the batch stands for each frame one that is nearly its own: the solids have
exchanged something, or one has another colour, shape or texture (NegCLIP: Yuksekgonul et al., arXiv 2210.01936).
Without these CLIP learns which words belong to a picture, and not which of them go together.

And each embedding, of a picture or a caption, must tell the caption's words to linear classifiers (`Words`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import open_clip
import torch
from torch import nn
from torch.nn import functional

from miniature.data import FIT_SEED, HELD_OUT_SEED, Frames, rendered_frames
from miniature.fit_loop import minimise
from miniature.scene import COLOURS, GROUNDS, SHAPES, TEXTURES, Scene
from miniature.tiny import CLIP_CONFIG, clip_model

BATCH = 256
CONFUSED = 6  # captions that are nearly its own, drawn for each frame
WORDS = {"colour": tuple(COLOURS), "shape": SHAPES, "texture": TEXTURES}  # that a solid has
PARAPHRASES = ("{}", "a photo of {}", "a video of {}", "a rendering of {}", "{}, in daylight")


class Words(nn.Module):
    """Linear classifiers of a caption's words from an embedding; they serve the fit and are not kept (ours).

    The words: colour, shape and texture of the first and the second solid from the left, or that there is none, and the
    ground. Contrast alone leaves most of them in directions of hardly any variance, where a model that is conditioned
    on the embedding does not find them. Here every word's direction has the same length, so each gets its share.
    """

    LENGTH = 1.5  # of the classifiers' directions, for embeddings of length sqrt(d)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [*(len(values) + 1 for _ in range(2) for values in WORDS.values()), len(GROUNDS)]
        self.linear = nn.Linear(width, sum(self.sizes))

    @staticmethod
    def of(scene: Scene) -> list[int]:
        """The number of each word of a scene's caption."""
        numbers = [
            values.index(getattr(scene.solids[place], name)) if place < len(scene.solids) else len(values)
            for place in range(2)
            for name, values in WORDS.items()
        ]
        return [*numbers, list(GROUNDS).index(scene.ground)]

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Normalised embeddings (n, d) -> for each word logits (n, choices)."""
        directions = self.LENGTH * functional.normalize(self.linear.weight, dim=1)
        logits = functional.linear(embeddings * embeddings.shape[1] ** 0.5, directions, self.linear.bias)
        return logits.split(self.sizes, dim=1)

    def loss(self, embeddings: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of embeddings (n, d) whose words are (n, words)."""
        each = [functional.cross_entropy(part, words[:, i]) for i, part in enumerate(self(embeddings))]
        return sum(each, embeddings.new_zeros(())) / len(each)


def confused(scene: Scene, rng: np.random.Generator) -> Scene:
    """A scene whose caption is nearly that of `scene`: something is exchanged between its solids, or drawn anew."""
    name, values = list(WORDS.items())[rng.integers(3)]
    own = [getattr(solid, name) for solid in scene.solids]
    if len(set(own)) > 1 and rng.random() < 0.5:
        return exchanged(scene, name)
    solids, place = list(scene.solids), int(rng.integers(len(own)))
    wrong: dict[str, Any] = {name: str(rng.choice([value for value in values if value not in own]))}
    solids[place] = replace(solids[place], **wrong)
    return replace(scene, solids=tuple(solids))


def tokenize(captions: list[str]) -> torch.Tensor:
    """Token numbers (n, context length) by open_clip's own byte-pair tokenizer."""
    return open_clip.SimpleTokenizer(context_length=CLIP_CONFIG["model_cfg"]["text_cfg"]["context_length"])(captions)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Square crops (n, 3, s, s) in 0..1, resized to the model's size and normalised as its preprocessing does."""
    config = CLIP_CONFIG["preprocess_cfg"]
    size = CLIP_CONFIG["model_cfg"]["vision_cfg"]["image_size"]
    images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (images - mean) / std


def crop(pixels: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """The middle square of uint8 frames (n, 3, h, w), with a generator a jittered one; in 0..1.

    Never flipped: captions name the solids from left to right.
    """
    height, width = pixels.shape[-2:]
    top, left, side = 0, (width - height) // 2, height
    if generator is not None:
        side = height - int(torch.randint(height // 8 + 1, (), generator=generator))
        top = int(torch.randint(height - side + 1, (), generator=generator))
        left += int(torch.randint(-height // 10, height // 10 + 1, (), generator=generator)) + (height - side) // 2
    return pixels[:, :, top : top + side, left : left + side] / 255


def measure(model: open_clip.CLIP, count: int = 100) -> dict[str, float]:
    """Share of unseen frames whose own caption is the nearest of `count` distinct ones, and the other way round.

    `told_from_exchanged`: of two solids, the share that is nearer to its caption than to the one with their colours
    exchanged; chance is a half.
    """
    frames = rendered_frames(2 * count, HELD_OUT_SEED)
    places = list({caption: index for index, caption in enumerate(frames.captions)}.values())[:count]
    with torch.no_grad():
        images = model.encode_image(normalise(crop(frames.pixels[places], None)), normalize=True)
        texts = model.encode_text(tokenize([frames.captions[place] for place in places]), normalize=True)
    match = images @ texts.T
    own = torch.arange(len(places))
    return {
        "top1_image_to_text": round(float((match.argmax(1) == own).float().mean()), 3),
        "top1_text_to_image": round(float((match.argmax(0) == own).float().mean()), 3),
        "mean_cosine_own_pair": round(float(match.diagonal().mean()), 4),
        "mean_cosine_other_pairs": round(float((match.sum() - match.trace()) / (match.numel() - len(places))), 4),
        "told_from_exchanged": round(told_from_exchanged(model, frames), 3),
    }


def told_from_exchanged(model: open_clip.CLIP, frames: Frames) -> float:
    """Whether CLIP knows which colour belongs to which solid: see `measure`."""
    places = [i for i, scene in enumerate(frames.scenes) if len(scene.solids) == 2]
    own = [frames.scenes[i] for i in places]
    other = [exchanged(scene, "colour") for scene in own]
    with torch.no_grad():
        images = model.encode_image(normalise(crop(frames.pixels[places], None)), normalize=True)
        texts = model.encode_text(tokenize([scene.caption for scene in own + other]), normalize=True)
    near = [(images * part).sum(1) for part in texts.chunk(2)]
    return float((near[0] > near[1]).float().mean())


def exchanged(scene: Scene, name: str) -> Scene:
    """The scene whose solids have exchanged one of colour, shape and texture."""
    values = [getattr(solid, name) for solid in reversed(scene.solids)]
    return replace(scene, solids=tuple(replace(s, **{name: v}) for s, v in zip(scene.solids, values, strict=True)))


def fit(steps: int) -> tuple[open_clip.CLIP, dict[str, float]]:
    """The fitted CLIP model and its held-out quality."""
    torch.manual_seed(0)
    model, rng = clip_model(), np.random.default_rng(0)
    heads = Words(CLIP_CONFIG["model_cfg"]["embed_dim"])
    frames = rendered_frames(16_000, FIT_SEED)
    wrong = [[confused(scene, rng) for scene in frames.scenes] for _ in range(CONFUSED)]
    tokens = torch.stack([tokenize([form.format(caption) for caption in frames.captions]) for form in PARAPHRASES])
    wrong_tokens = torch.stack([tokenize([scene.caption for scene in scenes]) for scenes in wrong])
    words, *wrong_words = (torch.tensor([Words.of(scene) for scene in scenes]) for scenes in (frames.scenes, *wrong))
    own = torch.arange(BATCH)

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(frames.pixels), (BATCH,), generator=generator)
        forms = torch.randint(len(PARAPHRASES), (BATCH,), generator=generator)
        gain = 0.85 + 0.3 * torch.rand((BATCH, 1, 1, 1), generator=generator)
        pictures = normalise((crop(frames.pixels[chosen], generator) * gain).clamp(0, 1))
        other = torch.randint(CONFUSED, (BATCH,), generator=generator)
        captions = torch.cat([tokens[forms, chosen], wrong_tokens[other, chosen]])
        texts = model.encode_text(captions, normalize=True)
        images = model.encode_image(pictures, normalize=True)
        logits = model.logit_scale.exp().clamp(max=100) * images @ texts.T
        contrast = functional.cross_entropy(logits, own) + functional.cross_entropy(logits[:, :BATCH].T, own)
        said = torch.cat([words[chosen], torch.stack(wrong_words)[other, chosen]])
        return contrast / 2 + (heads.loss(images, words[chosen]) + heads.loss(texts, said))

    minimise(nn.ModuleList([model, heads]), loss_of, steps, 2e-3, "clip")
    return model, measure(model)

"""Fit the CLIP model: contrastive, on pairs of a rendered frame and a paraphrase of its caption.

Beside the captions of the other frames in the batch stands for each frame one that is nearly its own: the solids have
exchanged something, or one has another colour, shape or texture (NegCLIP: Yuksekgonul et al., arXiv 2210.01936).
Without these CLIP learns which words belong to a picture, and not which of them go together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import open_clip
import torch
from torch.nn import functional

from miniature.data import FIT_SEED, HELD_OUT_SEED, Frames, rendered_frames
from miniature.fit_loop import minimise
from miniature.scene import COLOURS, SHAPES, TEXTURES, Scene
from miniature.tiny import CLIP_CONFIG, clip_model

BATCH = 256
CONFUSED = 6  # captions that are nearly its own, drawn for each frame
PARAPHRASES = ("{}", "a photo of {}", "a video of {}", "a rendering of {}", "{}, in daylight")


def confused(scene: Scene, rng: np.random.Generator) -> Scene:
    """A scene whose caption is nearly that of `scene`: something is exchanged between its solids, or drawn anew."""
    name, values = (("colour", tuple(COLOURS)), ("shape", SHAPES), ("texture", TEXTURES))[rng.integers(3)]
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
    model = clip_model()
    frames = rendered_frames(16_000, FIT_SEED)
    tokens = torch.stack([tokenize([form.format(caption) for caption in frames.captions]) for form in PARAPHRASES])
    rng = np.random.default_rng(0)
    wrong = torch.stack([tokenize([confused(scene, rng).caption for scene in frames.scenes]) for _ in range(CONFUSED)])
    own = torch.arange(BATCH)

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(frames.pixels), (BATCH,), generator=generator)
        forms = torch.randint(len(PARAPHRASES), (BATCH,), generator=generator)
        gain = 0.85 + 0.3 * torch.rand((BATCH, 1, 1, 1), generator=generator)
        images = normalise((crop(frames.pixels[chosen], generator) * gain).clamp(0, 1))
        others = wrong[torch.randint(CONFUSED, (BATCH,), generator=generator), chosen]
        texts = model.encode_text(torch.cat([tokens[forms, chosen], others]), normalize=True)
        logits = model.logit_scale.exp().clamp(max=100) * model.encode_image(images, normalize=True) @ texts.T
        to_images = functional.cross_entropy(logits[:, :BATCH].T, own)
        return (functional.cross_entropy(logits, own) + to_images) / 2

    minimise(model, loss_of, steps, 2e-3, "clip")
    return model, measure(model)

"""Fit the CLIP model: contrastive, on pairs of a rendered frame and a paraphrase of its caption."""

from __future__ import annotations

import open_clip
import torch
from torch.nn import functional

from miniature.data import FIT_SEED, HELD_OUT_SEED, rendered_frames
from miniature.fit_loop import minimise
from miniature.tiny import CLIP_CONFIG, clip_model

BATCH = 256
PARAPHRASES = ("{}", "a photo of {}", "a video of {}", "a rendering of {}", "{}, in daylight")


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
    """The middle square of uint8 frames (n, 3, h, w); with a generator a jittered, flipped one; in 0..1."""
    height, width = pixels.shape[-2:]
    top, left, side = 0, (width - height) // 2, height
    if generator is not None:
        side = height - int(torch.randint(height // 8 + 1, (), generator=generator))
        top = int(torch.randint(height - side + 1, (), generator=generator))
        left += int(torch.randint(-height // 10, height // 10 + 1, (), generator=generator)) + (height - side) // 2
        if torch.rand((), generator=generator) < 0.5:
            pixels = pixels.flip(3)
    return pixels[:, :, top : top + side, left : left + side] / 255


def measure(model: open_clip.CLIP, count: int = 100) -> dict[str, float]:
    """Share of unseen frames whose own caption is the nearest of `count` distinct ones, and the other way round."""
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
    }


def fit(steps: int) -> tuple[open_clip.CLIP, dict[str, float]]:
    """The fitted CLIP model and its held-out quality."""
    torch.manual_seed(0)
    model = clip_model()
    frames = rendered_frames(16_000, FIT_SEED)
    tokens = torch.stack([tokenize([form.format(caption) for caption in frames.captions]) for form in PARAPHRASES])
    own = torch.arange(BATCH)

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(frames.pixels), (BATCH,), generator=generator)
        forms = torch.randint(len(PARAPHRASES), (BATCH,), generator=generator)
        gain = 0.85 + 0.3 * torch.rand((BATCH, 1, 1, 1), generator=generator)
        images = normalise((crop(frames.pixels[chosen], generator) * gain).clamp(0, 1))
        texts = model.encode_text(tokens[forms, chosen], normalize=True)
        logits = model.logit_scale.exp().clamp(max=100) * model.encode_image(images, normalize=True) @ texts.T
        return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2

    minimise(model, loss_of, steps, 2e-3, "clip")
    return model, measure(model)

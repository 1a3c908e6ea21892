"""Small models with the classes, parameter names and file formats of the large ones.

Adjacent widths differ wherever those of Stable Diffusion differ. Otherwise a shortcut convolution, and its keys, would
be missing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor


@dataclass(frozen=True)
class ClipSize:
    """The sizes in which the CLIP models differ."""

    image: int = 64  # side of a picture in pixels
    embedding: int = 64  # width of an embedding

    def config(self) -> dict[str, dict[str, Any]]:
        """The configuration in open_clip's format."""
        return {
            "model_cfg": {
                "embed_dim": self.embedding,
                "vision_cfg": {
                    "image_size": self.image,
                    "layers": 4,
                    "width": 64,
                    "head_width": 32,
                    "patch_size": 8,
                },
                "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
            },
            "preprocess_cfg": {
                "mean": [0.48145466, 0.4578275, 0.40821073],
                "std": [0.26862954, 0.26130258, 0.27577711],
                "interpolation": "bicubic",
                "resize_mode": "shortest",
            },
        }


CLIP_CONFIG = ClipSize().config()


def autoencoder(widths: tuple[int, ...] = (8, 16, 32, 64)) -> AutoencoderKL:
    """Stable Diffusion's autoencoder, downsampling 8 times to 4 channels, with 0.7 M instead of 84 M weights.

    The number of groups is small on purpose: a group of one or two narrow channels normalizes brightness and color
    away, and the fit stalls (loss after 200 steps: 0.34 with 8 groups at a learning rate of 2e-3, 0.26 with 4 at 4e-3,
    0.23 with 2 at 3e-3).
    """
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=widths[0] // 4,
        sample_size=64,
    )


def depth_estimator(size: int = 64) -> DPTForDepthEstimation:
    """A DPT laid out like DPT-Large: a plain ViT, taps with readout projection, a pyramid from half the patch grid up.

    Each tap doubles the size, and so does the head. With patches of 8 pixels, three taps instead of four make the
    output as large as the input, as in DPT-Large with patches of 16. `size`: of the square that its positions are for.
    """
    config = DPTConfig(
        hidden_size=80,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=160,
        image_size=size,
        patch_size=8,
        backbone_out_indices=[0, 1, 3],
        reassemble_factors=[2, 1, 0.5],
        neck_hidden_sizes=[32, 32, 48],
        fusion_hidden_size=32,
        use_auxiliary_head=False,
    )
    return DPTForDepthEstimation(config)


def depth_processor(side: int = 64) -> DPTImageProcessor:
    """The resizing of MiDaS (aspect ratio kept, sides multiples of two patches) with DPT-Large's normalization."""
    half = [0.5, 0.5, 0.5]
    size = {"height": side, "width": side}
    return DPTImageProcessor(size=size, image_mean=half, image_std=half, keep_aspect_ratio=True, ensure_multiple_of=16)


def clip_model(size: ClipSize | None = None) -> open_clip.CLIP:
    """An open_clip model of this size, by default the small one's, with random weights."""
    return open_clip.CLIP(**(size or ClipSize()).config()["model_cfg"])


def save_clip(model: open_clip.CLIP, folder: str | Path, size: ClipSize | None = None) -> None:
    """Writes the files that `open_clip.create_model_and_transforms("local-dir:FOLDER")` reads, in half precision.

    open_clip copies the weights into a float32 model, so they load as float32.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    (folder / "open_clip_config.json").write_text(json.dumps((size or ClipSize()).config(), indent=2) + "\n")


def write_stable_diffusion(
    folder: str | Path,
    widths: tuple[int, ...] = (8, 16, 32, 32),
    attention: tuple[bool, ...] = (True, True, True, False),
    groups: int = 8,
    cross_attention_dim: int = 64,
    layers: int = 2,
    heads: int = 8,
    seed: int = 0,
) -> None:
    """Writes `folder/unet` with random weights, as diffusers stores Stable Diffusion 1.x, with its 686 parameter names.

    The parameter names differ if the number of resolutions is not four.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=64,
            down_block_types=tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in attention),
            up_block_types=tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attention)),
            block_out_channels=widths,
            layers_per_block=layers,
            norm_num_groups=groups,
            cross_attention_dim=cross_attention_dim,
            attention_head_dim=heads,  # in Stable Diffusion 1.x, this is the number of heads
        )
    unet.save_pretrained(Path(folder) / "unet")

"""Content: CLIP embeddings of frames and captions (paper section 3.2.2), through open_clip."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gen1_train.frozen import fingerprint, finite, load_frozen
from gen1_train.resources import locate


@dataclass
class ClipConfig:
    # OpenAI's weights want QuickGELU; a FOLDER holds open_clip_config.json and the weights
    model: str = "ViT-L-14-quickgelu"  # open_clip's name, or local-dir:FOLDER, from here or in a package
    pretrained: str | None = "openai"  # open_clip's tag, or a .safetensors file; null for local-dir
    chunk: int = 64  # frames that go through the tower at a time; bounds memory, changes no value


class ClipEncoder:
    """Frames or captions -> embeddings of width d, as the towers give them (not normalised)."""

    def __init__(self, config: ClipConfig, device: str | torch.device = "cpu") -> None:
        import open_clip

        self.config = config
        self.device = torch.device(device)
        self._preprocess: Any = None

        def load(model_path: str) -> torch.nn.Module:
            with warnings.catch_warnings():
                # open_clip only warns when weights were trained with another activation than the model has
                warnings.filterwarnings("error", message="QuickGELU mismatch")
                model, self._preprocess = open_clip.create_model_from_pretrained(  # never random weights
                    model_path, pretrained=config.pretrained and locate(config.pretrained), weights_only=True
                )
            return model

        wanted = "a model that open_clip lists with a pretrained tag or file, or local-dir:FOLDER"
        self.network: Any = load_frozen("CLIP model", config.model, wanted, load).to(self.device)
        self.tokenizer = open_clip.get_tokenizer(locate(config.model))

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.network, repr(self._preprocess))

    @torch.no_grad()
    def images(self, frames: np.ndarray) -> Tensor:
        """uint8 frames (n, h, w, 3) -> image embeddings (n, d), float32."""
        pixels = torch.stack([self._preprocess(Image.fromarray(frame)) for frame in frames])
        return finite(lambda: self._encode_images(pixels), self.device).cpu()

    def _encode_images(self, pixels: Tensor) -> Tensor:
        parts = pixels.split(self.config.chunk)
        return torch.cat([self.network.encode_image(part.to(self.device)) for part in parts])

    @torch.no_grad()
    def texts(self, captions: list[str]) -> Tensor:
        """k captions -> text embeddings (k, d), float32."""
        tokens = self.tokenizer(captions).to(self.device)
        return finite(lambda: self.network.encode_text(tokens), self.device).cpu()

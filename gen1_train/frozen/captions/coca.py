"""Captions by CoCa (arXiv 2205.01917), with open_clip's classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gen1_train.frozen.clip import MULTIMODAL, load_open_clip, tower_settings
from gen1_train.frozen.fit import preprocessing
from gen1_train.frozen.loading import architecture, fingerprint, load_frozen

# open_clip's own limits, in tokens, which are words or parts of words: both count the one that starts a caption
SHORTEST, LONGEST = 5, 30


@dataclass
class CocaConfig:
    model: str = "coca_ViT-L-14"  # open_clip's name, or local-dir:FOLDER of open_clip_config.json and the weights
    pretrained: str | None = "mscoco_finetuned_laion2b_s13b_b90k"  # open_clip's tag, or a file; null for local-dir


class CocaCaptioner:
    """Captions frames by open_clip's CoCa, greedily: its search by beams needs classes that transformers 5 removed.

    A frame is squashed to the tower's square (ours), so that all of it is seen.
    """

    def __init__(self, config: CocaConfig, device: str | torch.device = "cpu") -> None:
        """Raises UserError if the network cannot be loaded, or is not a CoCa."""
        from open_clip import SimpleTokenizer

        self.config = config
        self.device = torch.device(device)
        self.tokenizer = SimpleTokenizer()
        self._settings: dict[str, Any] = {}

        def load() -> Any:
            network, _, self._settings = load_open_clip(config.model, config.pretrained, False, captions=True)
            if "multimodal_cfg" not in self._settings:
                raise ValueError("it has no decoder of captions")
            if self._settings["text_cfg"].get("vocab_size", self.tokenizer.vocab_size) != self.tokenizer.vocab_size:
                raise ValueError("its vocabulary is not that of open_clip's own tokenizer")
            return network

        remedy = "a CoCa that open_clip lists with a pretrained tag or file, or local-dir:FOLDER"
        self.network: Any = load_frozen("captioner", config.model, remedy, load).to(self.device)
        self._preprocess = preprocessing(self.network.visual.preprocess_cfg, "squash")
        self._longest = min(LONGEST, self.network.text.context_length, self.network.text_decoder.context_length)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.network, repr(self._preprocess), SHORTEST, self._longest)

    @property
    def architecture(self) -> str:
        from open_clip.coca_model import MultimodalCfg

        decoder = MultimodalCfg(**self._settings["multimodal_cfg"])
        captions = {name: getattr(decoder, name) for name in MULTIMODAL}
        return architecture(multimodal=captions, **tower_settings(self._settings))

    @torch.no_grad()
    def __call__(self, frames: np.ndarray) -> list[str]:
        """uint8 frames (k, h, w, 3) -> k texts."""
        pixels = torch.stack([self._preprocess(Image.fromarray(frame)) for frame in frames]).to(self.device)
        return [self._spell(row) for row in self.tokens(pixels).tolist()]

    def tokens(self, pixels: Tensor) -> Tensor:
        """Preprocessed pixels (k, 3, s, s) -> tokens (k, l), each the likeliest after those before it.

        A row's tokens after its first end are without meaning.
        """
        network, start, end = self.network, self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        image = network(pixels)
        seen = {"image_latent": image["image_features"], "image_embs": image["image_embs"]}
        tokens = torch.full((len(pixels), 1), start, device=pixels.device)
        ended = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
        while tokens.shape[1] < self._longest and not ended.all():
            logits = network(None, tokens, **seen, output_labels=False)["logits"][:, -1]  # k vocabulary
            if tokens.shape[1] < SHORTEST:
                logits[:, end] = -torch.inf
            chosen = logits.argmax(-1)
            ended |= chosen == end
            tokens = torch.cat((tokens, chosen[:, None]), 1)
        return tokens

    def _spell(self, tokens: list[int]) -> str:
        end = self.tokenizer.eot_token_id
        words = tokens[: tokens.index(end)] if end in tokens else tokens
        return self.tokenizer.decode([token for token in words if token != self.tokenizer.sot_token_id])

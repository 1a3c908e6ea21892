"""Captions by BLIP (arXiv 2201.12086), with transformers' classes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gen1_train.frozen.loading import architecture, fingerprint, load_frozen, require_complete
from gen1_train.frozen.plain import MAX_BYTES, find_source, plain_folder, read_config, selected
from gen1_train.system.files import read_regular

CONFIG, VOCABULARY = "config.json", "vocab.txt"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # blip-image-captioning-base has the latter only: tensors only
# beam search as in BLIP's own captioning of COCO; the numbers are of tokens, which are words or parts of words
DECODING = {"num_beams": 3, "min_new_tokens": 5, "max_new_tokens": 20, "do_sample": False}

MODEL = (
    "projection_dim",
    "image_text_hidden_size",
    "logit_scale_init_value",
    "initializer_factor",
    "initializer_range",
    "label_smoothing",
    "tie_word_embeddings",
)
TOWER = (
    "hidden_size",
    "intermediate_size",
    "projection_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "initializer_range",
)
VISION = (*TOWER, "image_size", "patch_size", "attention_dropout")
TEXT = (
    *TOWER,
    "vocab_size",
    "encoder_hidden_size",
    "max_position_embeddings",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "is_decoder",
    "use_cache",
    "tie_word_embeddings",
    "label_smoothing",
)


@dataclass
class BlipConfig:
    path: str = "Salesforce/blip-image-captioning-base"  # or …-large, or a folder: config.json, vocab.txt, weights


class BlipCaptioner:
    """Captions frames by transformers' BLIP, without a prompt. A frame is squashed to BLIP's square, as BLIP does."""

    def __init__(self, config: BlipConfig, device: str | torch.device = "cpu") -> None:
        """Raises UserError if the network cannot be loaded."""
        from transformers import BlipImageProcessor

        self.config = config
        self.device = torch.device(device)
        self.vocabulary: list[str] = []

        def load() -> Any:
            self.vocabulary = read_vocabulary(find_source(config.path, VOCABULARY, WEIGHTS, False).config)
            return load_blip(config.path)

        remedy = "a folder in transformers' BLIP format (config.json, vocab.txt, model.safetensors) or a hub id"
        self.network: Any = load_frozen("captioner", config.path, remedy, load).to(self.device)
        side = self.network.config.vision_config.image_size
        self._preprocess = BlipImageProcessor(size={"height": side, "width": side})

    @property
    def fingerprint(self) -> str:
        side = self.network.config.vision_config.image_size
        return fingerprint(self.network, "squash", side, sorted(DECODING.items()), self.vocabulary)

    @property
    def architecture(self) -> str:
        config = self.network.config
        return architecture(
            vision={name: getattr(config.vision_config, name) for name in VISION},
            text={name: getattr(config.text_config, name) for name in TEXT},
        )

    @torch.no_grad()
    def __call__(self, frames: np.ndarray) -> list[str]:
        """uint8 frames (k, h, w, 3) -> k texts."""
        pixels = self._preprocess(images=list(frames), return_tensors="pt")["pixel_values"]
        tokens = self.network.generate(pixels.to(self.device), **DECODING)
        return [spell(row, self.vocabulary) for row in tokens.tolist()]


def load_blip(path: str) -> Any:
    """Loads transformers' BLIP for captions. Raises ValueError, OSError, and errors of transformers.

    A picture goes through the network, so that one that cannot run fails here, and not in every task.
    """
    from transformers import BlipForConditionalGeneration

    source = find_source(path, CONFIG, WEIGHTS, False)
    with quiet(), plain_folder(source, blip_settings(read_config(source.config))) as folder:
        network = require_complete(
            BlipForConditionalGeneration.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=source.weights.suffix == ".safetensors",
                weights_only=True,
                output_loading_info=True,
            )
        ).eval()
    side = network.config.vision_config.image_size
    with torch.no_grad():
        network.generate(torch.zeros(1, 3, side, side), **DECODING)
    return network


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers: its bar would break up ours, and its table of weights says what our error says."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def blip_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what transformers may read of a config.json. Raises ValueError if it is not that of a BLIP."""
    if config.get("model_type") != "blip":
        raise ValueError(f"its model_type is {config.get('model_type')}, not blip")
    settings = {"model_type": "blip", **selected(config, MODEL)}
    for section, allowed in (("text_config", TEXT), ("vision_config", VISION)):
        values = config.get(section)
        if not isinstance(values, dict):
            raise ValueError(f"its {section} is not a JSON object")
        settings[section] = selected(values, allowed)
    return settings


def read_vocabulary(path: Path) -> list[str]:
    """Reads BERT's vocabulary: in line i the token i. Raises ValueError, OSError."""
    return read_regular(path, MAX_BYTES).decode().removesuffix("\n").split("\n")


def spell(tokens: list[int], vocabulary: list[str]) -> str:
    """Returns the text of a row of tokens, without those that are no words, such as [SEP] and the first one."""
    from tokenizers.decoders import WordPiece

    words = [vocabulary[token] for token in tokens if token < len(vocabulary)]
    return WordPiece().decode([word for word in words if not (word.startswith("[") and word.endswith("]"))])

"""Tiny random captioners in the formats in which BLIP and CoCa are published."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["a", "red", "ball", "##s", "roll", "##ing", "on", "grass", ".", "the", "dog", "'", "s", "two", "blue", "cubes"]
VOCABULARY = SPECIAL + WORDS
START = len(VOCABULARY)  # [DEC], which is not in vocab.txt
BLIP_TEXT = {
    "vocab_size": START + 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "bos_token_id": START,
    "sep_token_id": SPECIAL.index("[SEP]"),
    "pad_token_id": 0,
}
BLIP_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


def make_blip(folder: Path, seed: int = 0, weights: str = "model.safetensors") -> Path:
    """Writes a tiny BLIP in transformers' format; with the file name pytorch_model.bin as torch.save writes it."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    network = BlipForConditionalGeneration(BlipConfig(text_config=BLIP_TEXT, vision_config=BLIP_VISION))
    randomize(network, seed)
    network.save_pretrained(folder)
    if weights != "model.safetensors":
        (folder / "model.safetensors").unlink()
        torch.save(network.state_dict(), folder / weights)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return folder


TOWER = {"width": 32, "layers": 2}
COCA: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {
        **TOWER,
        "image_size": 32,
        "patch_size": 16,
        "head_width": 16,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    },
    "text_cfg": {
        **TOWER,
        "context_length": 20,
        "vocab_size": 49408,
        "heads": 2,
        "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {**TOWER, "context_length": 20, "vocab_size": 49408, "heads": 2, "attn_pooler_heads": 2},
    "custom_text": True,
}


def make_coca(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Writes a tiny CoCa in open_clip's format. It knows 40 tokens of short words, and ends its captions."""
    from open_clip.coca_model import CoCa

    settings = {**COCA, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = CoCa(**{name: value for name, value in settings.items() if name != "custom_text"})
    randomize(network, seed)
    with torch.no_grad():
        known = torch.zeros(settings["multimodal_cfg"]["vocab_size"], dtype=torch.bool)
        known[320:360] = known[-1] = True  # the last one ends a caption
        network.text_decoder.text_projection[:, ~known] = 0
        network.text_decoder.text_projection[:, -1] *= 2
    folder.mkdir(parents=True)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": {}}))
    return folder


def randomize(network: nn.Module, seed: int) -> None:
    """Draws weights so large that captions differ between pictures."""
    generator = torch.Generator().manual_seed(seed)
    for weights in network.parameters():
        if weights.ndim > 1:
            nn.init.normal_(weights, std=0.4, generator=generator)

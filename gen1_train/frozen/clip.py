"""Content: CLIP embeddings of frames and captions (paper section 3.3), computed by open_clip."""

import hashlib
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gen1_train.errors import UserError, check_choice, check_positive
from gen1_train.frozen.fit import FITS, mean_color, preprocessing
from gen1_train.frozen.loading import architecture, fingerprint, finite, load_frozen
from gen1_train.frozen.plain import HUB, find_source, hub_file, only, plain, plain_folder, read_config
from gen1_train.system.packages import SCHEME, locate

CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "*.safetensors",
)
FILES = (".safetensors", ".bin", ".pt", ".pth")  # read as tensors only, see `weights_only` of torch.load

# What a folder's config may set. Not here: the keys of a text tower or a tokenizer of the Hugging Face hub, which may
# bring code of their own, and tokenizer_kwargs, which may name files.
TOWER = {
    "layers",
    "width",
    "mlp_ratio",
    "ls_init_value",
    "pool_type",
    "final_ln_after_pool",
    "output_tokens",
    "act_kwargs",
    "norm_kwargs",
    "block_type",
    "qk_norm",
    "scaled_cosine_attn",
    "scale_heads",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
}
VISION = TOWER | {
    "image_size",
    "patch_size",
    "head_width",
    "patch_dropout",
    "attentional_pool",
    "attn_pooler_queries",
    "attn_pooler_heads",
    "no_ln_pre",
    "pos_embed_type",
    "timm_model_name",
    "timm_model_pretrained",
    "timm_pool",
    "timm_proj",
    "timm_proj_bias",
    "timm_drop",
    "timm_drop_path",
}
TEXT = TOWER | {
    "context_length",
    "vocab_size",
    "heads",
    "embed_cls",
    "pad_id",
    "eos_id",
    "no_causal_mask",
    "proj_bias",
    "proj_type",
}
MODEL = {
    "embed_dim",
    "vision_cfg",
    "text_cfg",
    "quick_gelu",
    "custom_text",
    "init_logit_scale",
    "init_logit_bias",
    "nonscalar_logit_scale",
}
MULTIMODAL = TEXT | {"dim_head", "n_queries", "attn_pooler_heads"}  # the decoder of captions in a CoCa
PREPROCESSING = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}

# of `tokenizer_print` for open_clip 3.3; fingerprints name only another tokenizer, so that older ones stay valid
STANDARD_TOKENIZER = "ceeacb87bea5183cd417f9cc6380d1000b39cbb65c6c72c787641bb51df72bcf"
PROBE = "A red-ball's  ROLLING &amp; 12 Würfel, über dem Gras…"


@dataclass
class ClipConfig:
    # OpenAI's weights need QuickGELU; a FOLDER holds open_clip_config.json and the weights
    model: str = "ViT-L-14-quickgelu"  # open_clip's name, or local-dir:FOLDER, in the working folder or a package
    pretrained: str | None = "openai"  # open_clip's tag, or a .safetensors file; null for local-dir
    chunk: int = 64  # frames per call of the tower; bounds memory, changes values by rounding only
    # how a frame becomes the tower's square: crop (the middle), pad (borders of the mean color), squash (without its
    # aspect), see frozen.fit; null: as the model's own preprocessing does, crop for OpenAI's, and in records without it
    fit: str | None = None

    def check(self) -> None:
        """Raises UserError for a setting that is out of its range."""
        check_positive(clip__chunk=self.chunk)
        if self.fit is not None:
            check_choice("recipe.clip.fit", self.fit, FITS)

    def record(self) -> dict[str, Any]:
        """The values for a manifest: without a fit of null, as older ones are, so that equal networks stay equal."""
        return {name: value for name, value in asdict(self).items() if name != "fit" or value is not None}


class ClipEncoder:
    """Embeds frames or captions to width d. The embeddings are the towers' outputs, not normalized.

    Captions always pass through open_clip's own tokenizer; models with another one are refused.
    """

    def __init__(self, config: ClipConfig, device: str | torch.device = "cpu", recorded: bool = False) -> None:
        """Raises UserError if it cannot be loaded, or if its weights were trained with another activation.

        `recorded`: a file names it, not the user, see `frozen.plain`.
        """
        import open_clip

        config.check()
        self.config = config
        self.device = torch.device(device)
        self._own_preprocess: Any = None
        self._settings: dict[str, Any] = {}

        def load() -> torch.nn.Module:
            with warnings.catch_warnings():
                # open_clip only warns if the weights were trained with another activation
                warnings.filterwarnings("error", message="QuickGELU mismatch")
                model, self._own_preprocess, self._settings = load_open_clip(config.model, config.pretrained, recorded)
            return model

        remedy = "a model that open_clip lists with a pretrained tag or file, or local-dir:FOLDER"
        self.network: Any = load_frozen("CLIP model", config.model, remedy, load).to(self.device)
        self._preprocess = self._fitted_preprocess()
        length = self._settings["text_cfg"].get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
        self.tokenizer = open_clip.SimpleTokenizer(context_length=length)

    def _fitted_preprocess(self) -> Any:
        if self.config.fit is None:
            return self._own_preprocess
        return preprocessing(self.network.visual.preprocess_cfg, self.config.fit)

    @property
    def fingerprint(self) -> str:
        """The hash of weights, preprocessing and tokenizer, see `fingerprint`.

        A fit that is the model's own, such as crop for OpenAI's, changes nothing.
        """
        tokenizer = tokenizer_print(self.tokenizer)
        other = () if tokenizer == STANDARD_TOKENIZER else (tokenizer,)
        if self.config.fit == "pad":  # open_clip's description lacks the border's color
            other = (*other, f"pad{mean_color(self.network.visual.preprocess_cfg['mean'])}")
        return fingerprint(self.network, repr(self._preprocess), *other)

    @property
    def architecture(self) -> str:
        """The hash of the settings of both towers, see `architecture`."""
        return architecture(**tower_settings(self._settings))

    @torch.no_grad()
    def images(self, frames: np.ndarray, own: bool = False) -> Tensor:
        """uint8 frames (n, h, w, 3) -> image embeddings (n, d), float32.

        `own`: by the model's own preprocessing, whatever the fit, as metrics of the literature are. Raises UserError
        for frames so narrow that nothing is left of them in the tower's square.
        """
        preprocess: Any = self._own_preprocess if own else self._preprocess
        try:
            pixels = torch.stack([preprocess(Image.fromarray(frame)) for frame in frames])
        except ValueError as error:  # Pillow cannot resize to a side of 0
            height, width = frames.shape[1:3]
            raise UserError(f"a picture of {width}x{height} is too narrow for CLIP ({error}): crop it first") from error
        return finite(lambda: self._encode_images(pixels), self.device).cpu()

    def _encode_images(self, pixels: Tensor) -> Tensor:
        parts = pixels.split(self.config.chunk)
        return torch.cat([self.network.encode_image(part.to(self.device)) for part in parts])

    @torch.no_grad()
    def texts(self, captions: list[str]) -> Tensor:
        """k captions -> text embeddings (k, d), float32."""
        tokens = self.tokenizer(captions).to(self.device)
        return finite(lambda: self.network.encode_text(tokens), self.device).cpu()


def tokenizer_print(tokenizer: Any) -> str:
    """Hashes the vocabulary of a tokenizer, and the tokens of a caption that needs all of its cleaning."""
    parts = (sorted(tokenizer.encoder.items()), tokenizer(PROBE).tolist()[0][:30])
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def tower_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of both towers, with open_clip's defaults for those that are not given."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(**settings["vision_cfg"])
    text = CLIPTextCfg(**settings["text_cfg"])
    return {
        "vision": {name: getattr(vision, name) for name in VISION - {"timm_model_pretrained"}},
        "text": {name: getattr(text, name) for name in TEXT},
        "quick_gelu": bool(settings.get("quick_gelu")),
    }


def load_open_clip(
    model: str, pretrained: str | None, recorded: bool, captions: bool = False
) -> tuple[torch.nn.Module, Any, dict[str, Any]]:
    """Loads a model of open_clip with its preprocessing and settings: from a folder, by a tag, or from a file.

    `captions`: a folder's config may have a decoder of captions. Raises ValueError, OSError, and errors of open_clip.
    """
    if model.startswith((SCHEME, HUB)):
        return _load_folder(model, recorded, captions)
    return _load_listed(model, pretrained, recorded)


def _load_folder(model: str, recorded: bool, captions: bool) -> tuple[torch.nn.Module, Any, dict[str, Any]]:
    """Loads a model in open_clip's format with its preprocessing and settings, see `find_source`."""
    import open_clip

    source = find_source(model, CONFIG, WEIGHTS, recorded)
    config = only(read_config(source.config), ("model_cfg", "preprocess_cfg"), CONFIG)
    decoder = {"multimodal_cfg": MULTIMODAL} if captions else {}
    settings = only(config.get("model_cfg"), MODEL | decoder.keys(), "model_cfg")
    only(settings.get("vision_cfg"), VISION, "vision_cfg")
    only(settings.get("text_cfg"), TEXT, "text_cfg")
    for section, allowed in decoder.items():
        only(settings.get(section), allowed, section)
    only(config.setdefault("preprocess_cfg", {}), PREPROCESSING, "preprocess_cfg")
    with plain_folder(source, plain(config, CONFIG)) as folder:
        network, preprocess = open_clip.create_model_from_pretrained(f"{SCHEME}{folder}", weights_only=True)
    return network, preprocess, settings


def _load_listed(model: str, pretrained: str | None, recorded: bool) -> tuple[torch.nn.Module, Any, dict[str, Any]]:
    """Loads a model that open_clip lists, by a tag or from a file of weights; never with random weights."""
    import open_clip

    settings = open_clip.get_model_config(model.replace("/", "-"))
    if settings is None:
        raise ValueError("open_clip lists no such model")
    for key in ("hf_tokenizer_name", "hf_model_name", "tokenizer_kwargs"):
        if settings["text_cfg"].get(key):
            raise ValueError(f"it has {key}, and only models with open_clip's own tokenizer are supported")
    transform: dict[str, Any] = {}
    tag = open_clip.get_pretrained_cfg(model.replace("/", "-"), pretrained) if pretrained else {}
    if pretrained and not tag:
        file = Path(locate(pretrained, recorded))
        if not file.is_file():  # open_clip would print the name as it is, which may be a stranger's
            raise ValueError(f"pretrained={pretrained} is neither a tag of this model nor a file")
        if file.suffix not in FILES:
            raise ValueError(f"{file} is not a file of weights: its name ends in none of {', '.join(FILES)}")
        pretrained = str(file)
    elif tag and recorded:  # open_clip would fetch the weights
        if bool(tag.get("quick_gelu")) != bool(settings.get("quick_gelu")):
            raise ValueError(f"QuickGELU mismatch between the model and pretrained={pretrained}")
        pretrained = str(_cached(tag))
        transform = {f"image_{key}": tag.get(key) for key in ("mean", "std", "interpolation", "resize_mode")}
    network, preprocess = open_clip.create_model_from_pretrained(
        model, pretrained=pretrained, weights_only=True, **transform
    )
    return network, preprocess, settings


def _cached(tag: dict[str, Any]) -> Path:
    """Returns the weights that open_clip has downloaded for one of its tags. Raises ValueError if it has not."""
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    if repository := tag.get("hf_hub"):
        repository, name = os.path.split(repository)
        name = name or HF_WEIGHTS_NAME
        safe = [HF_SAFE_WEIGHTS_NAME] if name == HF_WEIGHTS_NAME else []
        return hub_file(repository, [*safe, str(Path(name).with_suffix(".safetensors")), name], recorded=True)
    url = tag["url"]
    file = Path("~/.cache/clip").expanduser() / os.path.basename(url)
    if not file.is_file():
        raise ValueError(f"only a file names it, so it is not downloaded: save {url} as {file} first")
    return file

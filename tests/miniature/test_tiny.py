"""The small models have the parameter names and file formats of the large ones."""

import open_clip
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open

from gen1_train.frozen.structure.dpt import dpt_inverse_depth
from miniature.tiny import (
    CLIP_CONFIG,
    clip_model,
    depth_estimator,
    save_clip,
    write_stable_diffusion,
)


def test_stable_diffusion_has_its_686_parameter_names(tmp_path):
    write_stable_diffusion(tmp_path / "a")
    write_stable_diffusion(tmp_path / "b")
    stored = []
    for name in "ab":
        with safe_open(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
            stored.append({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 (not a dict)
    assert len(stored[0]) == 686
    assert all(torch.equal(stored[0][key], stored[1][key]) for key in stored[0])
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "a" / "unet")
    image = unet(torch.zeros(1, 4, 8, 8), 3, torch.zeros(1, 1, 64)).sample
    assert image.shape == (1, 4, 8, 8)


def test_the_depth_helper_equals_the_model_on_squares_and_accepts_other_shapes():
    torch.manual_seed(0)
    model = depth_estimator().eval()
    with torch.no_grad():
        model.head.head[-2].bias.fill_(1.0)  # or the last ReLU might clip everything to zero
        square = torch.randn(2, 3, 64, 64)
        own = model(square).predicted_depth
        resized = torch.nn.functional.interpolate(own[:, None], (64, 64), mode="bilinear", antialias=True)[:, 0]
        torch.testing.assert_close(dpt_inverse_depth(model, square), resized)
        assert own.std() > 0
        assert dpt_inverse_depth(model, torch.randn(1, 3, 64, 112)).shape == (1, 64, 112)


def test_clip_round_trips_through_open_clip(tmp_path):
    torch.manual_seed(0)
    model = clip_model().eval()
    save_clip(model, tmp_path)
    loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    assert all(
        torch.equal(value.half(), stored.half()) and stored.dtype == torch.float32
        for value, stored in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a red ball"])
    assert tokens.shape == (1, CLIP_CONFIG["model_cfg"]["text_cfg"]["context_length"])
    assert tuple(preprocess.transforms[-1].mean) == tuple(CLIP_CONFIG["preprocess_cfg"]["mean"])

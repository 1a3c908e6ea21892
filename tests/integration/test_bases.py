"""The bases that work by name: model=, recipe= and prior_model= go together, and weights like theirs train."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from data_tools.prepare import DataToolsConfig
from gen1_train.cli.compose import compose_config
from gen1_train.model.compvis import config_from_weights
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.checkpoints.checkpoint import UNET, latest
from gen1_train.training.config import TrainConfig
from gen1_train.training.prior.config import PriorTrainConfig
from tests.made import WIDTH, make_shard_set
from tests.running import TRAIN, run, run_well

BASES = {"sd15": ("paper", "base"), "sd21": ("sd21", "sd21")}  # model -> recipe, prior_model


@pytest.mark.parametrize("model", BASES)
def test_a_base_s_configs_go_together(model: str) -> None:
    """CLIP's embeddings are as wide as the UNet's content, and the UNet is what Stable Diffusion's weights say."""
    recipe, prior_model = BASES[model]
    unet = compose_config("train", TrainConfig, ["stage=2", f"model={model}", "data.root=x"]).model
    unet.check()
    clip = compose_config("data", DataToolsConfig, ["source=x", "output=y", f"recipe={recipe}"]).recipe.clip
    described = open_clip.get_model_config(clip.model)
    assert described is not None and open_clip.get_pretrained_cfg(clip.model, clip.pretrained)
    assert (
        described["embed_dim"] == unet.content_dim == unet.context_dim
        and "hf_tokenizer_name" not in described["text_cfg"]
    )
    image = UNetConfig(**{**vars(unet), "temporal": False})
    with torch.device("meta"):
        weights = SpatioTemporalUNet(image).state_dict()
    assert config_from_weights(weights, Path("published")) == image
    prior = compose_config("train_prior", PriorTrainConfig, [f"prior_model={prior_model}", "data.root=x"]).prior
    prior.check()
    assert prior.width >= 1.25 * described["embed_dim"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set, and a small random Stable Diffusion 2.x in diffusers' layout with its scheduler."""
    root = tmp_path_factory.mktemp("sd2")
    make_shard_set(root / "set")
    torch.manual_seed(0)
    UNet2DConditionModel(
        block_out_channels=[32, 64],
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=[1, 2],
        cross_attention_dim=WIDTH,
        use_linear_projection=True,
        upcast_attention=True,
    ).save_pretrained(root / "sd" / "unet")
    (root / "sd" / "scheduler").mkdir()
    (root / "sd" / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": "v_prediction"}))
    return root


LIKE_SD2 = ["model.linear_projection=true", "model.attention=[true,false]", "model.heads=[1,2]"]


def settings(root: Path, stage: int, *more: str) -> list[str]:
    return [
        f"stage={stage}",
        *TRAIN,
        *LIKE_SD2,
        f"output={root / 'runs'}",
        "strategy=single",
        "trainer.devices=1",
        *more,
    ]


@pytest.mark.slow
def test_a_stable_diffusion_2_trains_on_from_its_own_prediction(root: Path) -> None:
    """Stage 1 has its weights; it predicts v, as the stages do, so that there is no warning; stage 2 changes them."""
    said = run_well("gen1_train.train", *settings(root, 1, f"init.from={root / 'sd'}"))
    assert "is finished" in said and "without a jump" not in said
    said = run_well(
        "gen1_train.train", *settings(root, 1, f"init.from={root / 'sd'}", "name=x0", "diffusion.noise.prediction=x0")
    )
    assert "predicts v, and the stages will learn to predict x0" in said
    run_well("gen1_train.train", *settings(root, 2, f"data.root={root / 'set'}", "stage.steps=2"))
    first, second = (latest(root / "runs" / "demo" / f"stage{stage}") for stage in (1, 2))
    assert first is not None and second is not None
    published = load_file(root / "sd" / "unet" / "diffusion_pytorch_model.safetensors")
    before, after = first.weights("raw"), load_file(second.path / UNET)
    assert before.keys() == published.keys() == after.keys()
    assert all(torch.equal(before[name], published[name]) for name in published)
    linear = "mid_block.attentions.0.proj_in.weight"
    assert before[linear].ndim == 2 and not torch.equal(before[linear], after[linear])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "more", "message"),
    [
        (
            1,
            ["model.linear_projection=false"],
            "does not match the chosen model: linear_projection True (model: False)",
        ),
        (1, ["model.context_dim=48"], f"does not match the chosen model: context_dim {WIDTH} (model: 48)"),
        (
            2,
            ["model.content_dim=48"],
            f"have width {WIDTH}, the model takes 48: choose another model=, or a set of another",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line_with_the_remedy(
    root: Path, stage: int, more: list[str], message: str
) -> None:
    begun = [f"init.from={root / 'sd'}"] if stage == 1 else [f"data.root={root / 'set'}"]
    result = run("gen1_train.train", *settings(root, stage, *begun, *more, "name=wrong"))
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert "choose another model=" in result.stderr and len(result.stderr.strip().splitlines()) == 1

import re

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from data_tools.prepare import DataToolsConfig
from data_tools.recipe import RecipeConfig, check, windows
from gen1_train.cli import conf_dir
from gen1_train.errors import UserError


def test_windows_do_not_overlap_and_stay_inside() -> None:
    recipe = RecipeConfig(frames=8, stride=4)
    assert recipe.span == 29
    assert windows(recipe, 28) == []
    assert windows(recipe, 29) == [[0, 4, 8, 12, 16, 20, 24, 28]]
    assert [window[0] for window in windows(recipe, 93)] == [0, 32, 64]
    assert windows(recipe, 93)[-1][-1] == 92


def test_a_cap_spreads_the_clips_over_the_video() -> None:
    recipe = RecipeConfig(frames=8, stride=4, clips_per_video=3)
    assert [window[0] // 32 for window in windows(recipe, 32 * 10)] == [0, 3, 6]
    assert len(windows(recipe, 64)) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frames", 0),
        ("frames", 100),
        ("stride", 0),
        ("clips_per_video", 0),
        ("stills", "sometimes"),
        ("jpeg_quality", 0),
        ("shard_megabytes", 0),
        ("task_seconds", 0.0),
        ("max_enlargement", -1.0),
        ("video_buckets", []),
        ("image_buckets", ["448"]),
        ("video_buckets", ["448x256", "448x256"]),
    ],
)
def test_nonsense_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UserError, match=re.escape(f"recipe.{name}")):
        check(RecipeConfig(**{name: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", ["paper", "tiny"])
def test_the_recipes_in_conf_are_complete_and_sound(recipe: str) -> None:
    ConfigStore.instance().store(name="data_schema", node=DataToolsConfig)
    with initialize_config_dir(str(conf_dir().absolute()), version_base="1.3"):
        composed = compose("data", overrides=["source=a", "output=b", f"recipe={recipe}"])
    config = OmegaConf.to_object(composed)
    assert isinstance(config, DataToolsConfig)
    check(config.recipe)
    assert (config.recipe.frames, config.recipe.stride) == (8, 4)
    if recipe == "paper":
        assert config.recipe.video_buckets == ["448x256"]

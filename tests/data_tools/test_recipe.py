import json
import re
from dataclasses import asdict

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from data_tools.prepare import DataToolsConfig
from data_tools.recipe import RecipeConfig, recipe_from_dict
from gen1_train.cli.app import conf_dir
from gen1_train.errors import UserError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cut.frames", 0),
        ("cut.frames", 100),
        ("cut.stride", 0),
        ("cut.clips_per_video", 0),
        ("stills", "sometimes"),
        ("jpeg_quality", 0),
        ("shard_megabytes", 0),
        ("task_seconds", 0.0),
        ("max_enlargement", -1.0),
        ("cut.trim", -1),
        ("structure", "normals"),
        ("clip.fit", "stretch"),
        ("degradation", "auto"),
        ("caption", "gpt"),
        ("depth.resize", "upper_bound"),
        ("decoders", []),
        ("decoders", ["vlc"]),
        ("video_buckets", []),
        ("image_buckets", ["448"]),
        ("video_buckets", ["448x256", "448x256"]),
    ],
)
def test_an_impossible_setting_is_refused_by_name(name: str, value: object) -> None:
    recipe = RecipeConfig()
    section, _, entry = name.rpartition(".")
    setattr(getattr(recipe, section) if section else recipe, entry, value)
    with pytest.raises(UserError, match=re.escape(f"recipe.{name}")):
        recipe.check()


@pytest.mark.parametrize(
    ("section", "name"), [("depth", "size"), ("edges", "blur"), ("soft_edges", "blur"), ("face", "line")]
)
def test_the_settings_of_every_structure_are_checked(section: str, name: str) -> None:
    recipe = RecipeConfig()
    setattr(getattr(recipe, section), name, -1)
    with pytest.raises(UserError, match=f"{section}.{name}=-1"):
        recipe.check()


@pytest.mark.parametrize("recipe", ["paper", "tiny"])
def test_the_recipes_in_conf_are_complete_and_valid(recipe: str) -> None:
    ConfigStore.instance().store(name="data_schema", node=DataToolsConfig)
    with initialize_config_dir(str(conf_dir().absolute()), version_base="1.3"):
        composed = compose("data", overrides=["source=a", "output=b", f"recipe={recipe}"])
    config = OmegaConf.to_object(composed)
    assert isinstance(config, DataToolsConfig)
    config.recipe.check()
    assert (config.recipe.cut.frames, config.recipe.cut.stride) == (8, 4)
    if recipe == "paper":
        assert config.recipe.video_buckets == ["448x256"]
    # as MiDaS runs it; the miniature's network was fitted by the other rule, and the released model on its depth
    assert config.recipe.depth.resize == {"paper": "minimal", "tiny": "lower_bound"}[recipe]
    assert recipe_from_dict(json.loads(json.dumps(asdict(config.recipe))), "here") == config.recipe


def test_a_recipe_of_another_version_is_refused() -> None:
    with pytest.raises(UserError, match="SET was made by another version"):
        recipe_from_dict({"frames": 8}, "SET")


def test_a_recipe_from_before_faces_is_read() -> None:
    older = asdict(RecipeConfig(structure="edges"))
    del older["face"]
    assert recipe_from_dict(older, "SET") == RecipeConfig(structure="edges")


@pytest.mark.parametrize("values", [{"structure": {}}, {"depth": {"path": 3}}, {"clip": None}, {"__class__": "x"}])
def test_a_recipe_of_others_has_the_types_of_ours(values: dict[str, object]) -> None:
    with pytest.raises(UserError, match="was made by another version of gen1-data"):
        recipe_from_dict(values, "SET")

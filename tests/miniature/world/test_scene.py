"""Scenes: the contents of the splits, and captions that describe what is visible."""

from dataclasses import replace

import numpy as np
import pytest

from miniature.world.render import render_frame, render_image
from miniature.world.scene import COLORS, HELD_OUT, RICH, RICH_TEXTURES, SHAPES, TEXTURES, sample_scene, shapes_of

SEEDS = range(400)


def solids(split: str) -> list[tuple[str, str]]:
    return [(solid.color, solid.shape) for seed in SEEDS for solid in sample_scene(seed, split).solids]


def test_training_has_every_color_and_every_shape_without_the_held_out_pairs() -> None:
    assert {color for color, _ in HELD_OUT} == set(COLORS) and {shape for _, shape in HELD_OUT} == set(SHAPES)
    seen = set(solids("train"))
    assert not seen & HELD_OUT and len(seen) > 30
    assert {color for color, _ in seen} == set(COLORS) and {shape for _, shape in seen} == set(SHAPES)


def test_every_held_out_solid_is_a_held_out_pair() -> None:
    assert set(solids("held_out")) == HELD_OUT


def test_the_split_all_has_held_out_and_training_pairs() -> None:
    seen = set(solids("all"))
    assert seen & HELD_OUT and seen - HELD_OUT


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split 'test' is not one of train, held_out, all"):
        shapes_of("red", "test")


def test_scenes_have_all_textures_except_the_unseen_ones() -> None:
    assert {solid.texture for seed in SEEDS for solid in sample_scene(seed).solids} == set(TEXTURES)
    assert not {"zigzag", "capped"} & set(TEXTURES)


def test_a_rich_scene_is_the_plain_one_with_more_life() -> None:
    rich = [sample_scene(seed, style=RICH) for seed in SEEDS]
    for seed, scene in zip(SEEDS, rich):
        plain = sample_scene(seed)
        same = [replace(solid, texture="plain", gloss=0.0) for solid in scene.solids]
        assert same == [replace(solid, texture="plain") for solid in plain.solids]
        assert (scene.ground, scene.light, scene.camera_distance) == (plain.ground, plain.light, plain.camera_distance)
        assert scene.surround not in (scene.ground, *(solid.color for solid in scene.solids))
        assert (scene.camera_push == 0) != (scene.camera_swing == 0)
        assert scene.caption.endswith(f" on {scene.ground} ground") == (scene.surround is None)
    assert {solid.texture for scene in rich for solid in scene.solids} == set(RICH_TEXTURES)
    assert len(RICH_TEXTURES) == 6 and "capped" not in RICH_TEXTURES
    for values in ([scene.camera_push for scene in rich], [scene.surround for scene in rich]):
        assert 0.4 < np.mean([bool(value) for value in values]) < 0.6


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(ValueError, match="style 'oil' is not one of plain, rich"):
        sample_scene(0, style="oil")


@pytest.mark.parametrize("split", ["train", "held_out", "all"])
def test_a_scene_depends_only_on_seed_and_split(split: str) -> None:
    assert sample_scene(5, split) == sample_scene(5, split)
    assert sample_scene(5, split) != sample_scene(6, split)


@pytest.mark.parametrize("seed", range(12))
def test_captions_name_every_visible_solid(seed: int) -> None:
    scene = sample_scene(seed)
    caption = render_image(seed, 64, 112).caption
    assert caption == scene.caption and caption.endswith(f" on {scene.ground} ground")
    mask = render_frame(scene, 0.0, 64, 112).solids
    for number, solid in enumerate(scene.solids, 1):
        words = f"{'' if solid.texture == 'plain' else solid.texture + ' '}{solid.color} {solid.shape}"
        assert words in caption
        assert np.count_nonzero(mask == number) > 60


def test_captions_have_the_right_articles() -> None:
    (solid, *_) = sample_scene(0).solids
    plain = replace(solid, color="orange", shape="ball", texture="plain")
    assert plain.caption == "an orange ball"
    assert replace(plain, texture="striped").caption == "a striped orange ball"

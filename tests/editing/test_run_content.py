"""The contents of an edit: the example image as CLIP saw the training frames, and the prior's noise by the seed."""

import functools
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gen1_train.edit import edit
from gen1_train.editing.config import EditConfig
from gen1_train.editing.editor import Gen1Editor
from gen1_train.errors import UserError
from gen1_train.frozen.clip import ClipConfig, ClipEncoder
from gen1_train.video.encode import write_video
from miniature.world.render import render_clip
from tests.made_checkpoint import edit_info, write_checkpoint, write_prior
from tests.running import WEIGHTS

PAD = ClipConfig(f"local-dir:{WEIGHTS / 'clip'}", None, fit="pad")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on crops (as of before, with no fit recorded) and on padded frames, a prior on crops, a clip, and two
    example images that differ at their sides."""
    folder = tmp_path_factory.mktemp("content")

    def without_fit(info: dict[str, Any]) -> None:
        del info["estimators"]["clip"]["config"]["fit"]

    def padded(info: dict[str, Any]) -> None:
        info["estimators"]["clip"].update(config=asdict(PAD), fingerprint=ClipEncoder(PAD).fingerprint)

    edit_info(write_checkpoint(folder / "crop"), without_fit)
    edit_info(write_checkpoint(folder / "padded" / "run"), padded)
    edit_info(write_prior(folder / "prior"), without_fit)
    write_video(folder / "clip.mp4", render_clip(3, 3, 64, 112).frames, 12)
    picture = render_clip(5, 1, 64, 112).frames[0]
    Image.fromarray(picture).save(folder / "a.png")
    picture[:, :20] = picture[:, -20:] = (200, 30, 30)
    Image.fromarray(picture).save(folder / "b.png")
    return folder


@pytest.fixture
def negatives(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor | None]]:
    """The negative contents of all samplings."""
    given: list[Tensor | None] = []
    sample = Gen1Editor.sample

    @functools.wraps(sample)
    def noted(
        editor: Gen1Editor, scene: Any, contents: Any, sampling: Any, negative: Any = None, *rest: Any, **named: Any
    ) -> Any:
        given.append(negative)
        return sample(editor, scene, contents, sampling, negative, *rest, **named)

    monkeypatch.setattr(Gen1Editor, "sample", noted)
    yield given


def edited(folder: Path, output: Path, run: str = "crop", **changes: Any) -> bytes:
    files = {"checkpoint": folder / run, "input": folder / "clip.mp4", "output": output}
    settings = {**{name: str(path) for name, path in files.items()}, "steps": 2, "omega": 3.0, **changes}
    edit(EditConfig(device="cpu", overwrite=True, **settings))
    return output.read_bytes()


def test_an_example_image_is_fitted_as_the_training_frames_were(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "edit.mp4"
    for run, equal in (("crop", True), ("padded/run", False)):
        a, b = (edited(folder, output, run, image=str(folder / name)) for name in ("a.png", "b.png"))
        assert (a == b) == equal, run
    editor = Gen1Editor.from_pretrained(folder / "padded" / "run", "cpu")
    picture = np.asarray(Image.open(folder / "b.png"))
    expected = torch.nn.functional.normalize(ClipEncoder(PAD).images(picture[None])[0], dim=0)
    assert torch.equal(editor.content(image=folder / "b.png"), expected)


def test_several_example_images_are_mixed_by_direction(folder: Path, tmp_path: Path) -> None:
    """One image is as ever. Order and the scale of the weights do not matter; a repeated image has more weight."""
    run, paths = "padded/run", [str(folder / name) for name in ("a.png", "b.png")]
    editor = Gen1Editor.from_pretrained(folder / run, "cpu")
    a, b = (editor.content(image=path) for path in paths)
    assert torch.equal(editor.content(image=[paths[0]]), a) and not torch.allclose(a, b, atol=1e-3)
    half = editor.content(image=paths)
    torch.testing.assert_close(half, torch.nn.functional.normalize(a + b, dim=0))
    weighted = editor.content(image=paths, image_weights=[3, 1])
    torch.testing.assert_close(weighted, torch.nn.functional.normalize(3 * a + b, dim=0))
    torch.testing.assert_close(editor.content(image=[*paths, paths[0], paths[0]]), weighted)
    torch.testing.assert_close(editor.content(image=paths[::-1], image_weights=[0.1, 0.3]), weighted)
    assert weighted.norm() == pytest.approx(1)
    for weights in ([1], [1, 0], [1, float("nan")]):
        with pytest.raises(UserError, match="give a number above 0 for each of the 2 images"):
            editor.content(image=paths, image_weights=weights)

    one, both, same = (tmp_path / f"{name}.mp4" for name in ("one", "both", "same"))
    made = edited(folder, both, run, images=[f"{paths[0]}:3", paths[1]])
    assert edited(folder, same, run, images=[paths[0]]) == edited(folder, one, run, image=paths[0]) != made


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": ["a.png:0"]}, r"^images=a.png:0: give a weight above 0, as in a.png:0.5$"),
        ({"images": ["a.png:-1", "b.png"]}, "give a weight above 0"),
        ({"images": ["a.png:inf"]}, "give a weight above 0"),
        ({"images": ["nothing.png"]}, "^images=nothing.png cannot be read"),
        ({"images": ["a.png"], "image": "b.png"}, "^give image= or images=, not both$"),
        ({"images": []}, "^the content is not given"),
    ],
)
def test_example_images_that_cannot_be_are_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=said) as error:
        edited(folder, tmp_path / "edit.mp4", **changes)
    assert "\n" not in str(error.value) and not (tmp_path / "edit.mp4").exists()


def test_a_colon_may_belong_to_the_name_of_an_image() -> None:
    assert EditConfig(images=["a:b.png", "c:2.png:0.5", "d.png"]).examples == [
        ("a:b.png", 1.0),
        ("c:2.png", 0.5),
        ("d.png", 1.0),
    ]


def test_an_example_image_is_never_overwritten_nor_for_the_page(folder: Path) -> None:
    with pytest.raises(UserError, match="is the same file as images="):
        edited(folder, folder / "clip2.mp4", images=[str(folder / "clip2.mp4")])
    with pytest.raises(UserError, match="images= is not for the page"):
        edit(EditConfig(ui=True, checkpoint="c", images=["a.png"]))


def test_a_prior_for_another_fit_is_refused(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"^the prior .* was trained with the CLIP .*'fit': 'pad'.*: give prior="
    ) as error:
        Gen1Editor.from_pretrained(folder / "padded" / "run", "cpu", prior=folder / "prior")
    assert "\n" not in str(error.value)


def test_the_seed_reaches_the_prior_for_the_negative_prompt(
    folder: Path, tmp_path: Path, negatives: list[Tensor | None]
) -> None:
    settings = {"prompt": "a red ball", "negative_prompt": "a blue box"}
    edited(folder, tmp_path / "sweep.mp4", sweep="seed=0,3", **settings)
    edited(folder, tmp_path / "edit.mp4", seed=3, **settings)
    editor = Gen1Editor.from_pretrained(folder / "crop", "cpu", prior=folder / "prior")
    expected = {seed: editor.content("a blue box", seed=seed) for seed in (0, 3)}
    assert not torch.equal(expected[0], expected[3])
    assert len(negatives) == 3
    for given, seed in zip(negatives, (0, 3, 3)):
        assert given is not None and torch.equal(given, expected[seed])


def test_an_edit_without_a_negative_prompt_has_no_negative_content(
    folder: Path, tmp_path: Path, negatives: list[Tensor | None]
) -> None:
    edited(folder, tmp_path / "edit.mp4", seed=3, prompt="a red ball")
    assert negatives == [None]

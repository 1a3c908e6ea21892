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

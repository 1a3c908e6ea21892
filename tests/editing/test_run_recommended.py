"""The dials that a checkpoint recommends are where gen1-edit, the editor and the page start from."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gen1_train.diffusion.guidance import GuidanceConfig
from gen1_train.diffusion.recommended import DIALS
from gen1_train.diffusion.sampling import SamplingConfig
from gen1_train.edit import edit
from gen1_train.editing.config import EditConfig
from gen1_train.editing.editor import Gen1Editor
from gen1_train.errors import UserError
from gen1_train.system.packages import RELEASED
from gen1_train.video.encode import write_video
from miniature.world.render import render_clip
from tests.made_checkpoint import write_checkpoint
from tests.running import REPOSITORY

FILE = "omega: 3\nsteps: 2\nsolver: dpm++\nprompts: [a red ball]\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose folder has a file of recommendations, a clip of three frames, and an example image."""
    folder = tmp_path_factory.mktemp("recommended")
    write_checkpoint(folder / "stage5")
    (folder / "stage5" / "recommended.yaml").write_text(FILE)
    write_video(folder / "clip.mp4", render_clip(3, 3, 64, 112).frames, 12)
    Image.fromarray(render_clip(5, 1, 64, 64).frames[0]).save(folder / "example.png")
    return folder


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[SamplingConfig]]:
    """The settings of all samplings."""
    samplings: list[SamplingConfig] = []
    sample = Gen1Editor.sample

    @functools.wraps(sample)
    def recorded(
        editor: Gen1Editor, scene: Any, contents: Any, sampling: SamplingConfig, *rest: Any, **named: Any
    ) -> Any:
        samplings.append(sampling)
        return sample(editor, scene, contents, sampling, *rest, **named)

    monkeypatch.setattr(Gen1Editor, "sample", recorded)
    yield samplings


def config(folder: Path, output: Path, **changes: Any) -> EditConfig:
    files = {"checkpoint": folder / "stage5", "input": folder / "clip.mp4", "image": folder / "example.png"}
    return EditConfig(**{name: str(path) for name, path in files.items()}, output=str(output), device="cpu", **changes)


@pytest.mark.slow
def test_dials_that_are_not_given_are_as_recommended(
    folder: Path, tmp_path: Path, sampled: list[SamplingConfig]
) -> None:
    edit(config(folder, tmp_path / "a.mp4"))
    edit(config(folder, tmp_path / "b.mp4", steps=3, omega=7.5, solver="ddim"))  # also those that are usual
    edit(config(folder, tmp_path / "c.mp4", sweep="omega=1,2"))
    assert [(each.steps, each.solver, each.guidance.omega) for each in sampled] == [
        (2, "dpm++", 3.0),
        (3, "ddim", 7.5),
        (2, "dpm++", 1.0),
        (2, "dpm++", 2.0),
    ]


def test_the_editor_starts_from_the_recommended_dials(folder: Path, sampled: list[SamplingConfig]) -> None:
    editor = Gen1Editor.from_pretrained(folder / "stage5", "cpu")
    assert editor.recommended.prompts == ("a red ball",)
    frames = render_clip(3, 1, 64, 112).frames
    image = np.zeros((64, 64, 3), np.uint8)
    editor(frames, image=image)
    editor(frames, image=image, omega_t=0.5)
    editor(frames, image=image, sampling=SamplingConfig(steps=1))
    assert sampled == [
        SamplingConfig(steps=2, solver="dpm++", guidance=GuidanceConfig(3.0)),
        SamplingConfig(steps=2, solver="dpm++", guidance=GuidanceConfig(3.0, 0.5)),
        SamplingConfig(steps=1),
    ]


def test_the_file_may_be_in_the_checkpoint_itself_which_stays_intact(folder: Path, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "run")
    (checkpoint / "recommended.yaml").write_text("omega_t: 1.5\n")
    (tmp_path / "run" / "recommended.yaml").write_text("omega_t: 0.5\n")
    for path in (checkpoint, tmp_path / "run"):
        assert Gen1Editor.from_pretrained(path, "cpu").recommended.dials == {"omega_t": 1.5}


@pytest.mark.parametrize(
    ("stage", "text", "message"),
    [
        ("5", "omega: -1", "omega=-1.0 is out of range"),
        ("4", "t_s: 3", "t_s=3: this checkpoint has learned only t_s=0"),
    ],
)
def test_a_recommendation_that_cannot_be_followed_names_its_file(
    tmp_path: Path, stage: str, text: str, message: str
) -> None:
    file = write_checkpoint(tmp_path / "run", stage=stage) / "recommended.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        Gen1Editor.from_pretrained(tmp_path / "run", "cpu")
    assert str(error.value).startswith(f"{file}: {message}")


def test_help_names_the_usual_values_of_dials_without_a_recommendation() -> None:
    from gen1_train.cli.help import comments

    usual = {**vars(SamplingConfig()), **vars(GuidanceConfig())}
    for name in DIALS:
        value = usual[name]
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        assert comments(EditConfig)[name].endswith(f"null: as recommended, else {shown}"), name


def test_the_released_model_has_recommendations() -> None:
    recommended = Gen1Editor.from_pretrained(REPOSITORY / "miniature" / RELEASED, "cpu").recommended
    assert recommended.sampling.steps == 12 and recommended.prompts

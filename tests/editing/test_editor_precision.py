"""Edits of the released miniature model in fp32, as before, and in half precision, within a measured bound of fp32."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gen1_train.diffusion.editing import Scene, sample_video, shared_noise
from gen1_train.diffusion.sampling import SamplingConfig
from gen1_train.editing.config import EditConfig
from gen1_train.editing.editor import Gen1Editor
from gen1_train.editing.networks import FrameCoder
from gen1_train.editing.precision import Formats
from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import to_pixels
from gen1_train.model.unet import SpatioTemporalUNet
from miniature.world.render import render_clip

SAMPLING = SamplingConfig(steps=2, solver="dpm++")
PROMPT = "a striped red ball on green ground"


class OnGpu(Formats):
    """The formats of a GPU, on a CPU: the estimators in fp16."""

    def estimators(self, device: torch.device) -> torch.autocast:
        return torch.autocast("cpu", torch.float16, enabled=self.precision != "fp32")


# PSNR against fp32 in dB; measured on this edit: 50.0, 50.4, 60.4 and 59.8
BOUNDS: dict[tuple[str, type[Formats]], float] = {
    ("bf16", Formats): 45.0,
    ("bf16", OnGpu): 45.0,
    ("fp16", Formats): 55.0,
    ("fp16", OnGpu): 55.0,
}


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return render_clip(3, 3, 64, 112).frames


@pytest.fixture(scope="module")
def full() -> Gen1Editor:
    return Gen1Editor.from_pretrained("miniature", "cpu")


@pytest.fixture(scope="module")
def expected(full: Gen1Editor, frames: np.ndarray) -> np.ndarray:
    return full(frames, prompt=PROMPT, sampling=SAMPLING)


def psnr(edit: np.ndarray, other: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio of uint8 frames in dB."""
    return float(10 * np.log10(255**2 / np.square(edit.astype(float) - other).mean()))


def in_formats(formats: Formats) -> Gen1Editor:
    """Returns an editor with formats that from_pretrained refuses on a CPU."""
    editor = Gen1Editor.from_pretrained("miniature", "cpu")
    editor.unet.to(formats.unet)
    editor.formats = formats
    editor.coder = FrameCoder(editor.autoencoder, formats, editor.device)
    return editor


def test_fp32_has_the_bits_of_the_networks_called_directly(
    full: Gen1Editor, expected: np.ndarray, frames: np.ndarray
) -> None:
    """It is the default on a CPU."""
    assert full.formats == Formats("fp32")
    raw = full.structure_estimator(torch.from_numpy(frames))
    encoded = full.autoencoder.encode_structure(full.structure_estimator.normalise(raw)[0])
    noise = shared_noise(3, full.window, tuple(encoded.shape[1:]), SAMPLING.seed)
    content = full.content(PROMPT)[None]
    with torch.no_grad():
        latents = sample_video(full.unet, Scene(noise, encoded), content, full.schedule, SAMPLING, full.window)
    assert np.array_equal(to_pixels(full.autoencoder.decode(latents[0])).numpy(), expected)


def test_bf16_is_close_to_fp32(full: Gen1Editor, expected: np.ndarray, frames: np.ndarray) -> None:
    editor = Gen1Editor.from_pretrained("miniature", "cpu", precision="bf16")
    assert {weight.dtype for weight in editor.unet.parameters()} == {torch.bfloat16}
    assert torch.equal(editor.content(PROMPT), full.content(PROMPT))  # CLIP and the prior compute in fp32
    edit = editor(frames, prompt=PROMPT, sampling=SAMPLING)
    assert not np.array_equal(edit, expected) and psnr(edit, expected) > BOUNDS["bf16", Formats]
    with editor.structure(frames) as structure:
        scene = editor.scene(frames, structure, SAMPLING)
        latents = editor.sample(scene, editor.content(PROMPT)[None], SAMPLING)
    assert {scene.noise.dtype, latents.dtype} == {torch.float32}  # the sampler's arithmetic


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "kind"), [bound for bound in BOUNDS if bound != ("bf16", Formats)])
def test_the_formats_of_gpus_are_close_to_fp32(
    expected: np.ndarray, frames: np.ndarray, precision: str, kind: type[Formats]
) -> None:
    edit = in_formats(kind(precision))(frames, prompt=PROMPT, sampling=SAMPLING)
    assert psnr(edit, expected) > BOUNDS[precision, kind]


def test_the_settings_of_gen1_edit_reach_the_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[SpatioTemporalUNet] = []
    allowed: list[bool] = []
    monkeypatch.setattr("gen1_train.editing.editor.compile_layers", compiled.append)
    monkeypatch.setattr("gen1_train.editing.editor.set_tf32", allowed.append)
    config = EditConfig(checkpoint="miniature", device="cpu", precision="bf16", compile=True, tf32=False)
    editor = Gen1Editor.of(config)
    assert editor.formats.precision == "bf16" and compiled == [editor.unet] and allowed == [False]
    Gen1Editor.of(replace(config, precision="auto", compile=False, tf32=True))
    assert len(compiled) == 1 and allowed == [False, True]


def test_an_overflow_ends_an_edit_in_one_line(frames: np.ndarray) -> None:
    editor = in_formats(Formats("fp16"))
    editor.unet.conv_in.weight.mul_(2e4)
    steps: list[int] = []
    with pytest.raises(UserError, match=r"^the UNet returned .* not finite in precision=fp16: use precision=bf16"):
        editor(frames[:1], image=frames[0], steps=3, on_step=lambda: steps.append(1))
    assert not steps  # in the first step, not after the last


def test_a_precision_that_cannot_be_is_refused_before_the_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gen1_train.editing.editor.load_recorded", lambda *_: pytest.fail("the weights were read"))
    for precision, line in (
        ("fp16", "precision=fp16 needs a GPU"),
        ("half", "precision=half is not one of auto, fp32"),
    ):
        with pytest.raises(UserError, match=f"^{line}"):
            Gen1Editor.from_pretrained("miniature", "cpu", precision=precision)

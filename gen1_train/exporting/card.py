"""The README.md of an exported folder: what the weights are, their inputs and outputs, and code that loads them."""

import json
import re
from importlib.metadata import version

from gen1_train.diffusion.planes import kinds_of
from gen1_train.diffusion.structure import PIXELS, REFERENCE, RELATIVE
from gen1_train.errors import one_line
from gen1_train.exporting.folder import Difference, Source
from gen1_train.training.stages import read_recorded

CARD = "README.md"
MARKUP = re.compile(r"[`<>\[\]|*]")


TRAINED = """\
The output is {output}. The content is one token: the CLIP image embedding, scaled to the length
sqrt({content}); the zero token means no content."""


UNTRAINED = """\
Stage 1 trains nothing: these are the weights of the Stable Diffusion model that it starts from, which defines the
output (1.x and the base models of 2.x: eps, as in the code below; models of 2.x for 768 pixels: v_prediction) and
the content (the tokens of CLIP's text encoder)."""


WITH_PRIOR = """\
| `gen1/prior/` | the prior, from CLIP text to CLIP image embeddings | gen1-edit, for `prompt=` |
"""


OUTPUTS = {"v": "v = alpha_t eps - sigma_t x", "eps": "eps", "x0": "x"}
DIFFUSERS = {"v": "v_prediction", "eps": "epsilon", "x0": "sample"}  # its names of prediction.FORMS
ROUNDS = {PIXELS: "of the frame itself", RELATIVE: f"of the frame at a shorter side of {REFERENCE}"}
RESCALED = "; then alpha_t is shifted and\nscaled so that the last step has no signal (arXiv 2305.08891, Algorithm 1)"
TEMPLATE = """\
# Gen-1 UNet, stage {stage}

Written by `gen1-export` from `{weights}` of a checkpoint of stage {stage}, step {step}.
Gen-1 ([arXiv 2302.03011](https://arxiv.org/abs/2302.03011)) edits the content of a video and keeps its structure.

| folder | holds | is read by |
|---|---|---|
| `unet/` | the spatial layers: the image model, each frame alone (mu_pi in the paper's Eq. 8) | diffusers |
| `gen1/` | the whole model, with temporal layers if the stage has them (from 3 on), as a checkpoint | gen1-train |
{prior}
Both were read back and compared with the trained model ({versions}, float32, random clips):

- `unet/`, frame by frame: {spatial}
- `gen1/`: {whole}

## Inputs and outputs

| input channels | hold |
|---|---|
{inputs}

Latents are the autoencoder's, times {scale}. z_t = alpha_t x + sigma_t eps with t = 0 to {last}: alpha_t^2 is the
product of 1 - beta up to t, sigma_t^2 = 1 - alpha_t^2, and sqrt(beta) increases linearly from sqrt({noise.beta_start})
to sqrt({noise.beta_end}) in {noise.steps} steps{rescaled}.
{state}

The training data was made with these estimators, and the model needs the same ones:

{estimators}

## unet/ in diffusers

```python
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

unet = UNet2DConditionModel.from_pretrained("unet")
scheduler = DDIMScheduler(
    num_train_timesteps={noise.steps},
    beta_start={noise.beta_start},
    beta_end={noise.beta_end},
    beta_schedule="scaled_linear",
    prediction_type="{prediction}",
    rescale_betas_zero_snr={noise.zero_terminal_snr},
    timestep_spacing="trailing",
    clip_sample=False,
)
frames = torch.randn({frames}, {channels}, 32, 56)  # of one clip
content = torch.zeros({frames}, 1, {content})
with torch.no_grad():
    prediction = unet(frames, {last}, encoder_hidden_states=content).sample  # {frames} {out} 32 56
```

## gen1/ in gen1-train

It is a checkpoint: `gen1-edit checkpoint=gen1 …` (stages 4 and 5) and `gen1-train init.checkpoint=gen1 …` load it.
In Python:

```python
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig

unet = SpatioTemporalUNet(UNetConfig(**json.loads(Path("gen1/config.json").read_text())))
unet.load_state_dict(load_file("gen1/unet.safetensors"))
clip, content = torch.randn(1, {frames}, {channels}, 32, 56), torch.zeros(1, 1, {content})
with torch.no_grad():
    prediction = unet(clip, torch.tensor([{last}]), content)  # 1 {frames} {out} 32 56
```
"""


def card(source: Source, spatial: Difference, whole: Difference, has_prior: bool = False) -> str:
    """Returns the README.md of an exported folder. `has_prior`: it has a prior, which edits by prompt need."""
    info = source.checkpoint.info
    config = source.unet.config
    noise = source.noise
    trained = source.stage.predecessor is not None
    estimators = [
        f"- {plain(name)}: `{plain(json.dumps(recorded.get('config')))}`" for name, recorded in info.estimators.items()
    ]
    return TEMPLATE.format(
        weights=source.weights,
        stage=plain(info.stage),
        step=f"{info.step} of {source.stage.steps}",
        versions=f"torch {version('torch')}, diffusers {version('diffusers')}",
        spatial=spatial,
        whole=whole,
        inputs="\n".join(input_rows(source)),
        out=config.out_channels,
        scale=plain(info.estimators.get("autoencoder", {}).get("scale", "its scaling_factor")),
        noise=noise,
        rescaled=RESCALED if noise.zero_terminal_snr else "",
        last=noise.steps - 1,
        state=(TRAINED if trained else UNTRAINED).format(content=config.content_dim, output=OUTPUTS[noise.prediction])
        + clips_of(source),
        prior=WITH_PRIOR if has_prior else "",
        estimators="\n".join(estimators or ["- none yet"]),
        prediction=DIFFUSERS[noise.prediction if trained else "eps"],
        channels=config.in_channels,
        frames=read_recorded(source.checkpoint).window,
        content=config.content_dim,
    )


def clips_of(source: Source) -> str:
    """Returns a sentence about the clips that the temporal layers were trained on; "" without any."""
    lengths = source.checkpoint.info.trained_lengths if source.stage.temporal else []
    return f" It was trained on clips of {' and '.join(map(str, lengths))} frames." if lengths else ""


def plain(value: object) -> str:
    """Returns a text of the checkpoint, which may be a stranger's, as one line without characters of Markdown or HTML.

    The README is published with the name of the one who exports.
    """
    return MARKUP.sub("", one_line(str(value)))


def input_rows(source: Source) -> list[str]:
    """Returns a row of the table for each kind of input channels."""
    config = source.unet.config
    stage = source.stage
    latent = config.out_channels
    rows = [f"| 0-{latent - 1} | z_t, the noisy latents |"]
    if stage.structure:
        recorded = source.checkpoint.info.estimators.get("structure", {})
        kind = f"{plain(recorded.get('kind'))} in 0..1 ({plain(recorded.get('normalise'))})"
        picture = "a gray frame"
        if len(kinds_of(str(recorded.get("kind")))) > 1:
            picture = "one frame, whose red, green and blue are its planes, with 0 for an absent one,"
        structure = (
            f"the structure: {kind}, after t_s rounds of blurring and downsampling {ROUNDS[stage.degradation]}, "
            f"encoded as {picture} in -1..1 by the autoencoder (the mean, scaled like the latents)"
        )
        level = f"sin(t_s), sin(t_s / 3), cos(t_s), cos(t_s / 3) at every pixel; t_s is 0 to {stage.max_level}"
        rows += [f"| {latent}-{2 * latent - 1} | {structure} |", f"| {2 * latent}-{config.in_channels - 1} | {level} |"]
    return rows

"""`gen1-export`: a checkpoint as a folder for others, checked before it gets its name."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from gen1_train.cli import run_app
from gen1_train.errors import UserError

if TYPE_CHECKING:
    from gen1_train.exporter import Difference, Source

CARD = "README.md"

TRAINED = """\
The output is v = alpha_t eps - sigma_t x. The content is one token: the CLIP image embedding, scaled to the length
sqrt({content}); the zero token means no content."""

UNTRAINED = """\
Stage 1 trains nothing: these are the weights of the Stable Diffusion that was given, and it decides what the output and
the content are (Stable Diffusion 1.x: eps, and the tokens of CLIP's text encoder)."""

TEMPLATE = """\
# Gen-1 UNet, stage {stage}

Written by `gen1-export` from `{weights}` of a checkpoint of stage {stage}, step
{step}. Gen-1
([arXiv 2302.03011](https://arxiv.org/abs/2302.03011)) edits the content of a video and keeps its structure.

| folder | holds | is read by |
|---|---|---|
| `unet/` | the spatial layers: the image model, each frame alone (mu_pi in the paper's Eq. 8) | diffusers |
| `gen1/` | the whole, with temporal layers if the stage has them (from 3 on), as a checkpoint | gen1-train |

Both were read back and compared with the model when this was written ({versions}, float32, random clips):

- `unet/`, frame by frame: {spatial}
- `gen1/`: {whole}

## In and out

| channels of the input | hold |
|---|---|
{inputs}

Latents are the autoencoder's times {scale}. z_t = alpha_t x + sigma_t eps with t = 0 to {last}: alpha_t^2 is the
product of 1 - beta up to t, sigma_t^2 = 1 - alpha_t^2, and the root of beta goes linearly from that of
{noise.beta_start} to that of {noise.beta_end} in {noise.steps} steps.
{state}

The data was made by these, and using the model takes the same:

{made_by}

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
    timestep_spacing="trailing",
    clip_sample=False,
)
frames = torch.randn({frames}, {channels}, 32, 56)  # of one clip
content = torch.zeros({frames}, 1, {content})
with torch.no_grad():
    prediction = unet(frames, {last}, encoder_hidden_states=content).sample  # {frames} {out} 32 56
```

## gen1/ in gen1-train

It is a checkpoint: `gen1-edit checkpoint=gen1 …` (stages 4 and 5) and `gen1-train init.checkpoint=gen1 …` take it. Or:

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


@dataclass
class ExportConfig:
    checkpoint: str | None = None  # a checkpoint folder, or a run folder (its newest); of any stage
    output: str | None = None  # the folder to write; it must not be there yet
    weights: str = "ema"  # which of its weights: ema (the first average, if there is one), raw, or an average's decay


def export(config: ExportConfig) -> None:
    """Writes one checkpoint for others. Raises UserError; the output is whole and checked, or not there."""
    for name in ("checkpoint", "output"):
        if getattr(config, name) is None:
            raise UserError(f"{name} is not given: add {name}=…")
    output = Path(str(config.output))
    if output.exists() or output.is_symlink():
        raise UserError(f"output={output} is there already: give another folder, or remove it")

    from gen1_train.exporter import read_source, write_checked

    source = read_source(Path(str(config.checkpoint)), config.weights)
    say(source.summary())
    with whole_or_nothing(output) as folder:
        spatial, whole = write_checked(source, folder, say)
        (folder / CARD).write_text(card(source, spatial, whole))
    say(f"exported to {output}; {output / CARD} tells how to load it")


@contextmanager
def whole_or_nothing(output: Path) -> Iterator[Path]:
    """A hidden folder beside `output`, which takes its name at the end, or is gone. Raises UserError."""
    from safetensors import SafetensorError

    from gen1_train.files import sync

    temporary = output.with_name(f".{output.name}.tmp")
    try:
        if temporary.exists():  # of an export that was killed
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.rglob("*"):
            sync(path)
        os.replace(temporary, output)
    except (OSError, SafetensorError) as error:
        raise UserError(f"output={output} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def card(source: "Source", spatial: "Difference", whole: "Difference") -> str:
    """README.md of the folder: what it is, what goes in and comes out, and the code that loads either half."""
    info, config, noise = source.checkpoint.info, source.unet.config, source.noise
    trained = source.stage.predecessor is not None
    made_by = [f"- {name}: `{json.dumps(made.get('config'))}`" for name, made in info.estimators.items()]
    return TEMPLATE.format(
        weights=source.weights,
        stage=info.stage,
        step=f"{info.step} of {source.stage.steps}",
        versions=f"torch {version('torch')}, diffusers {version('diffusers')}",
        spatial=spatial,
        whole=whole,
        inputs="\n".join(input_rows(source)),
        out=config.out_channels,
        scale=info.estimators.get("autoencoder", {}).get("scale", "its scaling_factor"),
        noise=noise,
        last=noise.steps - 1,
        state=(TRAINED if trained else UNTRAINED).format(content=config.content_dim),
        made_by="\n".join(made_by or ["- nothing yet"]),
        prediction="v_prediction" if trained else "epsilon",
        channels=config.in_channels,
        frames=config.max_frames,
        content=config.content_dim,
    )


def input_rows(source: "Source") -> list[str]:
    """A row of the card's table for each kind of input channels."""
    config, stage = source.unet.config, source.stage
    latent = config.out_channels
    rows = [f"| 0-{latent - 1} | z_t, the noised latents |"]
    if stage.structure:
        made = source.checkpoint.info.estimators.get("structure", {})
        structure = (
            f"the structure: {made.get('kind')} in 0..1 ({made.get('normalise')}), after t_s rounds of blurring and "
            "downsampling, as a grey frame in -1..1 through the autoencoder (its mean, scaled as latents are)"
        )
        level = f"sin(t_s), sin(t_s / 3), cos(t_s), cos(t_s / 3) at every pixel; t_s is 0 to {stage.max_level}"
        rows += [f"| {latent}-{2 * latent - 1} | {structure} |", f"| {2 * latent}-{config.in_channels - 1} | {level} |"]
    return rows


def say(line: str) -> None:
    print(f"gen1-export: {line}", flush=True)


def main() -> None:
    run_app("gen1-export", "export", ExportConfig, export)


if __name__ == "__main__":
    main()

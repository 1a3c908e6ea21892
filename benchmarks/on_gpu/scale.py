"""The sizes that the parts measure: those of Stable Diffusion 1.5 on a GPU, or tiny ones to rehearse on a CPU."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.unet_step import Setting
from gen1_train.model.unet import UNetConfig

ROOT = Path(__file__).parents[2]
FACTOR = 8  # pixels per latent


@dataclass(frozen=True)
class Scale:
    device: torch.device
    rehearsal: bool
    unet: UNetConfig  # of a video stage before the structure: 4 input channels
    frames: int
    sizes: tuple[tuple[int, int], ...]  # height and width of the latents, the usual one first
    step_clips: tuple[int, ...]  # in a training step
    kernel_clips: tuple[int, ...]  # that attention and norms are measured with
    usual_clips: int  # of whatever is measured with one number of clips
    repeats: int  # of a measurement, of which the median is taken

    @classmethod
    def full(cls) -> "Scale":
        return cls(
            device=torch.device("cuda", 0),
            rehearsal=False,
            unet=model_config("sd15"),
            frames=8,
            sizes=((256 // FACTOR, 448 // FACTOR), (512 // FACTOR, 896 // FACTOR)),
            step_clips=(1, 4, 12, 20),
            kernel_clips=(1, 4, 12, 32),
            usual_clips=4,
            repeats=10,
        )

    @classmethod
    def tiny(cls) -> "Scale":
        """A few channels and frames, but all levels: every part runs its whole code.

        Groups are few, because Triton's interpreter takes 20 ms for a program of a group norm.
        """
        return cls(
            device=torch.device("cpu"),
            rehearsal=True,
            unet=replace(model_config("sd15"), channels=[32, 32, 64, 64], heads=[1, 1, 2, 2], layers=1, groups=4),
            frames=2,
            sizes=((8, 8),),
            step_clips=(2,),
            kernel_clips=(1,),
            usual_clips=1,
            repeats=1,
        )

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    def setting(self, clips: int, size: tuple[int, int] | None = None) -> Setting:
        """The setting of unet_step.py with float32 weights; `size`: of the latents, by default the usual one."""
        height, width = size or self.sizes[0]
        channels, heads = self.unet.channels, self.unet.heads
        head_width = None if set(heads) == {8} else channels[0] // heads[0]
        return Setting(channels, head_width, self.frames, height, width, self.device, torch.float32, clips)


def model_config(name: str, **changes: Any) -> UNetConfig:
    """Returns the config of conf/model/NAME.yaml, read without hydra."""
    values = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text())
    return UNetConfig(**{**values, **changes})

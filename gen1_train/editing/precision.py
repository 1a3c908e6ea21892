"""The number formats of an edit. The networks compute in them; everything between the networks stays float32.

precision=auto is bf16 on a GPU that has it, fp16 on an older one with tensor cores, and fp32 anywhere else (ours).
bf16 comes before fp16, although it has 3 bits less, because its range is that of fp32: stages are trained in bf16, and
nothing keeps their activations below 65504, the largest value of fp16.

The autoencoder and the structure estimator, which were never trained in bf16, compute as in gen1-data and in training:
in fp16 on a GPU, again in fp32 where values overflow, and in fp32 on a CPU. They compute in fp32 if precision=fp32.
CLIP and the prior always do: a content is one picture or one text, so half precision would save nothing.
"""

from dataclasses import dataclass

import torch

from gen1_train.editing.config import ComputeConfig
from gen1_train.system.device import autocast, resolve_precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Formats:
    """The number formats of an edit on one kind of device."""

    precision: str = "fp32"  # of the UNet: fp32, bf16 or fp16

    @property
    def unet(self) -> torch.dtype:
        """The dtype of the UNet's weights and activations."""
        return DTYPES[self.precision]

    def estimators(self, device: torch.device) -> torch.autocast:
        """A context for the autoencoder and the structure estimator, which return float32 in any case."""
        return autocast(device, "fp32" if self.precision == "fp32" else "auto")

    def results(self, device: torch.device, tf32: bool) -> str:
        """Returns what the values of an edit depend on: fp32, tf32, bf16 or fp16."""
        return "tf32" if self.precision == "fp32" and tf32 and device.type == "cuda" else self.precision


def formats_on(device: torch.device, precision: str = ComputeConfig.precision) -> Formats:
    """Returns the formats of a precision. Raises UserError for an unknown precision, and for fp16 on a CPU."""
    ComputeConfig(precision).check()
    if precision == "auto":
        return Formats(best_precision(device))
    return Formats(resolve_precision(device, precision))


def best_precision(device: torch.device) -> str:
    """Returns the precision that `auto` stands for. GPUs without tensor cores gain nothing from fp16."""
    if device.type != "cuda":
        return "fp32"
    with torch.cuda.device(device):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
    return "fp16" if torch.cuda.get_device_capability(device) >= (7, 0) else "fp32"

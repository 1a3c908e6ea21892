"""The settings of how the networks compute in an edit, shared by gen1-edit, its page, gen1-eval and `Gen1Editor`.

This module does not import torch, so that `--help` stays fast.
"""

from dataclasses import dataclass

from gen1_train.errors import check_choice

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class ComputeConfig:
    precision: str = "auto"  # see `gen1_train.editing.precision`
    compile: bool = False  # torch.compile for the UNet's blocks
    tf32: bool = True  # GPUs, precision=fp32: products and convolutions in TF32

    def check(self) -> None:
        """Raises UserError for an unknown precision."""
        check_choice("precision", self.precision, PRECISIONS)

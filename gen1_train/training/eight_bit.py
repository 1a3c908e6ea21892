"""AdamW whose moments take 8 bits each (arXiv 2110.02861), by torchao: a quarter of the memory of float32 moments.

Blocks of 256 elements share a scale; the moments of a small weight stay in float32. A checkpoint has the values of the
moments in float32, as that of every run, so a run can resume with 8 bits or without.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from gen1_train.errors import UserError

try:
    from torchao.optim import AdamW8bit as TorchaoAdamW
except ImportError as error:
    raise UserError(
        "optim.name=adamw8bit needs torchao: pip install -e '.[8bit]' in the checkout, or pip install torchao"
    ) from error


class AdamW8bit(TorchaoAdamW):  # type: ignore[misc]
    """torchao's, with moments that keep every bit through a checkpoint.

    torchao's codes of a first moment reach from -0.993 to 1 times the scale, so that the scale does not follow from the
    values of a block whose largest element is negative. Here -1 replaces the lowest code; the largest element of each
    block then is exact, and quantizing the values of a moment gives the same codes and scales.
    """

    def new_moments(self, weight: Tensor) -> dict[str, Tensor]:
        """Returns AdamW's moments of a weight, zeros."""
        return {"exp_avg": self._new_buffer(weight, True), "exp_avg_sq": self._new_buffer(weight, False)}

    @override
    def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
        buffer = super()._new_buffer(p, signed)
        if signed and hasattr(buffer, "qmap"):
            buffer.qmap[0] = -1.0
        return buffer

    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step, compiled by shape on GPUs; on CPUs it is not compiled."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        on_cpu = all(weight.device.type == "cpu" for group in self.param_groups for weight in group["params"])
        stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager") if on_cpu else nullcontext()
        with stance:
            super().step()
        return loss

"""The LightningModule around the prior: a batch of pairs in, the x0 loss out."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from typing_extensions import override

from gen1_train.diffusion.loss import per_sample_loss
from gen1_train.diffusion.prior import CosineSchedule
from gen1_train.errors import UserError
from gen1_train.model.prior import PriorNetwork
from gen1_train.training.checkpoint import PRIOR
from gen1_train.training.network import NetworkModule, OptimConfig


class PriorModule(NetworkModule):
    """Trains p(image embedding | text embedding); its parameters are those of the network and nothing else."""

    weights_file = PRIOR

    def __init__(
        self,
        network: PriorNetwork,
        optim: OptimConfig,
        timesteps: int,
        start: int,
        steps: int,
        heard: Callable[[float], None],
    ) -> None:
        """`timesteps`: T; `start`: optimizer steps done, of `steps`; `heard` is told each gradient's norm."""
        super().__init__()
        self.prior, self.optim = network, optim
        self.timesteps, self.start, self.steps, self.heard = timesteps, start, steps, heard
        self.schedule = CosineSchedule(timesteps)

    @property
    @override
    def network(self) -> nn.Module:
        return self.prior

    @override
    def on_fit_start(self) -> None:
        self.schedule = CosineSchedule(self.timesteps, self.device)

    @override
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.losses(batch).mean()

    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        """The mean square error of x0 for each pair, (b,): for what is in a batch see data.pairs.PairBatches."""
        x = self.prior.images(batch["images"])
        z = self.schedule.add_noise(x, batch["noise"], batch["timesteps"])
        made = self.prior(z, batch["timesteps"], self.prior.texts(batch["texts"]), batch["dropped"])
        return per_sample_loss(made, x)

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips, and stops before a step that would spoil the weights. Raises UserError.

        The UNet's guard skips such a step; here a step is cheap, and the pairs do not come from a thousand disks.
        """
        norm = float(clip_grad_norm_(self.network.parameters(), gradient_clip_val or math.inf))
        if not math.isfinite(norm):
            raise UserError(
                f"the gradient of step {self.trainer.global_step} is not finite: nothing was changed by the step, the "
                "newest checkpoint stands; lower optim.lr, or set trainer.precision=32-true, and call again"
            )
        self.heard(norm)

    @override
    def configure_optimizers(self) -> Any:
        trained = {name for name, parameter in self.network.named_parameters() if parameter.requires_grad}
        return self.adamw(trained, self.optim, self.start, self.steps)

"""The LightningModule around the prior: takes a batch of pairs, returns the x0 loss."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from gen1_train.diffusion.loss import per_sample_loss
from gen1_train.diffusion.prior import CosineSchedule
from gen1_train.errors import UserError
from gen1_train.model.prior import PriorNetwork
from gen1_train.training.checkpoints.checkpoint import PRIOR
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
        on_gradient: Callable[[float], None],
    ) -> None:
        """`timesteps`: T; `start`: optimizer steps done, of `steps`; `on_gradient` gets each gradient norm."""
        super().__init__()
        self.prior = network
        self.optim = optim
        self.timesteps = timesteps
        self.start = start
        self.steps = steps
        self.on_gradient = on_gradient
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
        """Returns the mean squared error of x0 for each pair, (b,). A batch holds what data.pairs.PairBatches makes."""
        x = self.prior.images(batch["images"])
        z = self.schedule.add_noise(x, batch["noise"], batch["timesteps"])
        prediction = self.prior(z, batch["timesteps"], self.prior.texts(batch["texts"]), batch["dropped"])
        return per_sample_loss(prediction, x)

    @override
    def takes_step(self, norm: float) -> bool:
        """Raises UserError before a step that would spoil the weights.

        The UNet's guard skips such a step and continues. Here a step is cheap to repeat, so the run stops.
        """
        if not math.isfinite(norm):
            raise UserError(
                f"the gradient of step {self.trainer.global_step} is not finite: the step changed nothing, and the "
                "newest checkpoint is good; lower optim.lr, or set trainer.precision=32-true, and call again"
            )
        self.on_gradient(norm)
        return True

    @override
    def configure_optimizers(self) -> Any:
        return self.adamw(self.optim, self.start, self.steps)

"""What the modules that train one network share: the optimizer, and how checkpoints see them."""

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pytorch_lightning import LightningModule
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from gen1_train.training.checkpoint import UNET
from gen1_train.training.rates import after, rate_at


@dataclass
class OptimConfig:
    """AdamW; all values are ours, the paper gives none."""

    lr: float = 1e-5  # after the warm-up
    schedule: str = "constant"  # or cosine: from there down to final_lr_share of it at the stage's last step
    final_lr_share: float = 0.1  # schedule=cosine: share of lr at the last step
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # of AdamW's moments
    weight_decay: float = 0.01  # of AdamW, on all weights
    warmup_steps: int = 500  # linear from 0
    clip_norm: float = 1.0  # of the whole gradient; 0 switches clipping off


class NetworkModule(LightningModule):
    """Its parameters are those of `network` and nothing else; a checkpoint holds them as `weights_file`."""

    weights_file = UNET

    @property
    def network(self) -> nn.Module:
        raise NotImplementedError

    def adamw(self, trained: Collection[str], optim: OptimConfig, start: int, steps: int) -> Any:
        """What configure_optimizers returns: AdamW over all weights, of which those not in `trained` stay as they are.

        `start`: optimizer steps done, where the learning rate goes on; `steps`: of the whole stage.
        """
        groups: list[dict[str, Any]] = [{"params": []}, {"params": [], "lr": 0.0, "weight_decay": 0.0}]
        for name, parameter in self.network.named_parameters():
            groups[name not in trained]["params"].append(parameter)
        optimizer = AdamW(
            [group for group in groups if group["params"]],
            lr=optim.lr,
            betas=(optim.betas[0], optim.betas[1]),
            weight_decay=optim.weight_decay,
            fused=True,
        )
        rate = partial(
            rate_at,
            schedule=optim.schedule,
            warmup_steps=optim.warmup_steps,
            steps=steps,
            final_share=optim.final_lr_share,
        )
        scheduler = LambdaLR(optimizer, after(start, rate))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

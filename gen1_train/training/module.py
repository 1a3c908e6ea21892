"""The LightningModule around the UNet: a batch in, the v-prediction loss out."""

import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pytorch_lightning.strategies import DeepSpeedStrategy
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from typing_extensions import override

from gen1_train.batch import Batch
from gen1_train.diffusion.content import content_tokens
from gen1_train.diffusion.loss import per_sample_loss
from gen1_train.diffusion.prediction import v_from
from gen1_train.diffusion.schedule import NoiseConfig, NoiseSchedule
from gen1_train.diffusion.structure import degrade, level_channels
from gen1_train.errors import UserError
from gen1_train.frozen import autocast
from gen1_train.model.autoencoder import Autoencoder, sample_latents, to_signed
from gen1_train.model.unet import SpatioTemporalUNet
from gen1_train.training.draws import Choices, Draws, draw, fixed_draw
from gen1_train.training.network import NetworkModule, OptimConfig


@dataclass
class DiffusionConfig:
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    drop_content: float = 0.1  # share of samples that learn without content, for guidance; ours


@dataclass(frozen=True)
class Observed:
    """What is known of the samples of a micro-batch once their losses are."""

    step: int
    slots: list[int]
    keys: list[str]
    losses: Tensor  # (b,)
    draws: Choices


class Gen1Module(NetworkModule):
    """Trains p(x | structure, content) (paper Eq. 5); its parameters are those of `unet` and nothing else."""

    def __init__(
        self,
        unet: SpatioTemporalUNet,
        optim: OptimConfig,
        diffusion: DiffusionConfig,
        seed: int,
        structure: bool,
        max_level: int,
        latent_scale: float,
        autoencoder: Autoencoder | None = None,
        cached: bool = True,
        start: int = 0,
        trains: Sequence[str] = ("*",),
        steps: int = 1,
    ) -> None:
        """`structure`: the UNet sees it (from stage 4 on). `cached`: the shards hold latents.

        The autoencoder is needed where they do not, and where `max_level` of t_s is above 0.
        `start`: optimizer steps that the weights have behind them, where the learning rate goes on; `steps`: of the
        whole stage, by which a cosine ends.
        `trains`: globs over the names of the weights that are changed. Raises UserError when one names none.
        """
        super().__init__()
        self.unet = unet
        self.optim, self.diffusion, self.seed = optim, diffusion, seed
        self.structure, self.max_level, self.latent_scale = structure, max_level, latent_scale
        self.cached, self.start, self.steps = cached, start, steps
        self.trained = set(trained(unet, trains))
        for name, parameter in unet.named_parameters():
            if name not in self.trained:  # in the optimizer all the same: every strategy holds and saves it like others
                parameter.register_hook(torch.zeros_like)
        # in a tuple, so that the frozen weights are neither sharded, nor saved, nor seen by the optimizer
        self._autoencoder = (autoencoder,)
        self._schedule: NoiseSchedule | None = None
        self.observed: list[Observed] = []  # of the micro-batches of the optimizer step that is under way
        self.judge: Callable[[float], bool] = _fine  # asked about the gradient norm, see training.guard; not in ZeRO

    @property
    @override
    def network(self) -> nn.Module:
        return self.unet

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a sample that training reads."""
        structure = "structure" if self.encodes_structure else "structure_latent"
        frames = "moments" if self.cached else "frames"
        return (frames, "image_embedding", *((structure,) if self.structure else ()))

    @property
    def autoencoder(self) -> Autoencoder | None:
        return self._autoencoder[0]

    @property
    def encodes_structure(self) -> bool:
        """The structure goes through the autoencoder in every step: no shard holds it as it is needed."""
        return self.max_level > 0 or not self.cached

    @override
    def on_fit_start(self) -> None:
        self._schedule = NoiseSchedule(self.diffusion.noise, self.device)
        if self._autoencoder[0] is not None:
            self._autoencoder[0].to(self.device)

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The mean loss, and of each sample (b,) what measure.Measure logs it by."""
        observed = self.observe(batch)
        if self.observed and self.observed[-1].step != batch.step:
            self.observed.clear()
        self.observed.append(replace(observed, losses=observed.losses.detach()))
        draws = observed.draws
        by = {"timesteps": draws.timesteps, "levels": draws.levels, "dropped": draws.dropped}
        return {"loss": observed.losses.mean(), "losses": observed.losses.detach(), **by}

    def losses(self, batch: Batch) -> Tensor:
        """The loss of each sample: (b,). A pure function of the weights and of the batch's (seed, step, slots)."""
        return self.observe(batch).losses

    @override
    def validation_step(self, batch: Batch) -> Observed:  # type: ignore[override]
        """The losses at fixed noise and fixed timesteps; see training.validation, which calls it."""
        return self.observe(batch, fixed_draw)

    @override
    def predict_step(self, latents: Tensor, timesteps: Tensor, content: Tensor, temporal: bool) -> Tensor:
        """v of the UNet, as diffusion.editing's Network; see training.previews, which calls it."""
        dtype = self.unet.conv_in.weight.dtype  # bfloat16 under ZeRO in bf16-mixed; else autocast does what is needed
        return self.unet(latents.to(dtype), timesteps, content.to(dtype), temporal=temporal).float()

    def observe(self, batch: Batch, choose: Callable[..., Draws] = draw) -> Observed:
        """The losses, with what was drawn for them by `choose`."""
        assert self._schedule is not None
        moments = self.moments(batch)
        batch = replace(batch, moments=moments)
        cpu_draws = choose(
            self.seed, batch, self._schedule.steps, self.max_level if self.structure else 0, self.diffusion.drop_content
        )
        draws = cpu_draws.to(moments.device)
        latents = sample_latents(moments, draws.posterior, self.latent_scale)
        alpha, sigma = self._schedule.at(draws.timesteps, latents)
        inputs = alpha * latents + sigma * draws.noise
        if self.structure:
            n, _, h, w = latents.shape[1:]
            levels = level_channels(draws.levels, (n, h, w))
            inputs = torch.cat([inputs, self.structure_latents(batch, draws.levels), levels], dim=2)
        rows = torch.arange(len(draws.frames), device=draws.frames.device)
        content = content_tokens(batch.embeddings[rows, draws.frames], draws.dropped)
        prediction = self.predict_step(inputs, draws.timesteps, content, temporal=batch.kind == "video")
        losses = per_sample_loss(prediction, v_from(latents, draws.noise, alpha, sigma))
        return Observed(batch.step, batch.slots, batch.keys, losses, draws.choices)

    def moments(self, batch: Batch) -> Tensor:
        """Mean and log-variance of the frames' latents (b, n, 2c, h, w): from the shards if they are there."""
        if self.cached:
            assert batch.moments is not None
            return batch.moments
        assert batch.frames is not None
        frames = to_signed(batch.frames)
        return self._encode(lambda autoencoder: autoencoder.encode_moments(frames))

    def structure_latents(self, batch: Batch, levels: Tensor) -> Tensor:
        """The encoded structure (b, n, c, h, w) at t_s: from the shards if they are there and t_s is always 0."""
        if not self.encodes_structure:
            assert batch.structure_latents is not None
            return batch.structure_latents
        assert batch.structure is not None
        with autocast(self.device, "fp32"):  # half precision would blur away the 16 bits
            structure = degrade(batch.structure.float(), levels)  # DeepSpeed hands it out in bfloat16
        return self._encode(lambda autoencoder: autoencoder.encode_structure(structure))

    def _encode(self, encode: Callable[[Autoencoder], Tensor]) -> Tensor:
        autoencoder = self._autoencoder[0]
        assert autoencoder is not None
        with autocast(self.device):  # as data_tools does, and not in the UNet's bfloat16
            return encode(autoencoder)

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if not isinstance(self.trainer.strategy, DeepSpeedStrategy):  # ZeRO takes missing gradients for zero by itself
            fill_missing_gradients(self.unet)

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # DeepSpeed clips and judges by itself. Lightning's own way refuses a fused optimizer under autocast, because of
        # a loss scaler that bfloat16 does not have.
        if not isinstance(self.trainer.strategy, DeepSpeedStrategy):
            norm = clip_grad_norm_(self.unet.parameters(), gradient_clip_val or math.inf)
            if not self.judge(float(norm)):
                optimizer.zero_grad(set_to_none=True)  # without gradients a step changes nothing

    @override
    def configure_optimizers(self) -> Any:
        return self.adamw(self.trained, self.optim, self.start, self.steps)


def trained(unet: SpatioTemporalUNet, globs: Sequence[str]) -> list[str]:
    """The names of the weights that are meant. Raises UserError when a glob means none."""
    names = [name for name, _ in unet.named_parameters()]
    for glob in globs:
        if not fnmatch.filter(names, glob):
            raise UserError(f"stage.trains has {glob!r}, which is the name of no weight: give globs such as *temporal*")
    return [name for name in names if any(fnmatch.fnmatchcase(name, glob) for glob in globs)]


def _fine(norm: float) -> bool:
    """Without a guard any step is taken."""
    return True


def fill_missing_gradients(unet: SpatioTemporalUNet) -> None:
    """Zero where there is no gradient, so that all strategies take the same step: a plain optimizer would skip these.

    An image step leaves the temporal layers without one, a single content token the queries and keys of its attention.
    """
    for parameter in unet.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)

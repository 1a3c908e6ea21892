"""The LightningModule around the UNet: a batch in, the loss of its prediction out."""

import fnmatch
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pytorch_lightning.strategies import DeepSpeedStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from gen1_train.batch import Batch
from gen1_train.diffusion.content import content_tokens
from gen1_train.diffusion.loss import LossConfig, per_sample_loss
from gen1_train.diffusion.planes import Strengths
from gen1_train.diffusion.prediction import as_v, target, v_from
from gen1_train.diffusion.schedule import NoiseConfig, NoiseSchedule
from gen1_train.diffusion.structure import PIXELS, degrade, level_channels, scale_planes
from gen1_train.errors import check_share
from gen1_train.frozen.autoencoder import Autoencoder, sample_latents, to_signed
from gen1_train.model.unet import SpatioTemporalUNet
from gen1_train.system.device import autocast, resolve_precision
from gen1_train.training.checkpoints.state import saved, updated_by
from gen1_train.training.draws import Choices, Drawing, Draws, TimestepConfig, fixed_draw
from gen1_train.training.network import NetworkModule, OptimConfig, check_globs

logger = logging.getLogger(__name__)


@dataclass
class DiffusionConfig:
    noise: NoiseConfig = field(default_factory=NoiseConfig)  # its schedule, and what the network predicts of it
    loss: LossConfig = field(default_factory=LossConfig)  # the weights of timesteps
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)  # how often they are drawn
    drop_content: float = 0.1  # share of samples that learn without content, for guidance; ours

    def check(self) -> None:
        """Raises UserError for an invalid setting."""
        self.noise.check()
        self.loss.check()
        self.timesteps.check()
        check_share(diffusion__drop_content=self.drop_content)


@dataclass(frozen=True)
class StageSpec:
    """What a stage trains, on which data, and how far it has come."""

    seed: int  # of the stage's noise
    latent_scale: float  # the autoencoder's factor of latents (0.18215 in Stable Diffusion)
    structure: bool = False  # the UNet sees the structure: from stage 4 on
    max_level: int = 0  # t_s is uniform over 0..max_level
    degradation: str = PIXELS  # what t_s above 0 does
    planes: int = 1  # of the structure
    drop_planes: float = 0.0  # probability with which each of several is left out
    cached: bool = True  # the shards hold latents
    stored_level: int = 0  # they hold those of the structure at t_s = 0..stored_level
    trains: Sequence[str] = ("*",)  # globs over the names of the weights that change
    start: int = 0  # optimizer steps that the weights have behind them; the learning rate continues there
    steps: int = 1  # of the whole stage, at whose end a cosine schedule ends

    @property
    def encodes_structure(self) -> bool:
        """Whether the structure passes the autoencoder in every step, because no shard holds what the UNet needs."""
        return self.max_level > self.stored_level or not self.cached

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a sample that training reads."""
        structure = "structure" if self.encodes_structure else "structure_latent"
        frames = "moments" if self.cached else "frames"
        return (frames, "image_embedding", *((structure,) if self.structure else ()))


@dataclass(frozen=True)
class Observed:
    """The losses of a micro-batch, and what was drawn for its samples."""

    step: int
    slots: list[int]
    keys: list[str]
    losses: Tensor  # (b,)
    draws: Choices


@dataclass(frozen=True)
class Prediction:
    """What the UNet predicts of a micro-batch, and what it would have been right to predict; all (b, n, c, h, w)."""

    form: str  # of `output`, see diffusion.prediction
    output: Tensor
    z: Tensor  # the noised latents
    latents: Tensor
    noise: Tensor
    alpha: Tensor  # (b, 1, 1, 1, 1)
    sigma: Tensor

    def losses(self, config: LossConfig) -> Tensor:
        """Returns the loss of each sample: (b,)."""
        wanted = target(self.form, self.latents, self.noise, self.alpha, self.sigma)
        return per_sample_loss(self.output, wanted) * config.weights(self.form, self.alpha, self.sigma).flatten()

    def errors_of_v(self) -> Tensor:
        """Returns the mean squared error of each sample, converted to v: (b,)."""
        v = as_v(self.form, self.z, self.output, self.alpha, self.sigma)
        return per_sample_loss(v, v_from(self.latents, self.noise, self.alpha, self.sigma))


class Gen1Module(NetworkModule):
    """Trains p(x | structure, content); its parameters are those of `unet` and nothing else."""

    def __init__(
        self,
        unet: SpatioTemporalUNet,
        optim: OptimConfig,
        diffusion: DiffusionConfig,
        stage: StageSpec,
        autoencoder: Autoencoder | None = None,
    ) -> None:
        """The autoencoder is needed where the shards hold no latents, or none at a t_s that may be drawn.

        Freezes the weights of the UNet that `stage.trains` leaves out. Raises UserError when a glob of it matches none.
        """
        super().__init__()
        self.unet = unet
        self.optim = optim
        self.diffusion = diffusion
        self.stage = stage
        freeze(unet, stage.trains)
        # in a tuple, so that the frozen weights are neither sharded, nor saved, nor seen by the optimizer
        self._autoencoder = (autoencoder,)
        self._precision = "auto"  # of the autoencoder
        self._schedule: NoiseSchedule | None = None
        self.observed: list[Observed] = []  # the micro-batches of the current optimizer step
        # decides by the gradient norm whether a step is taken (callbacks.guard); DeepSpeed's ZeRO asks elsewhere
        self.judge: Callable[[float], bool] = _take_every_step

    @property
    @override
    def network(self) -> nn.Module:
        return self.unet

    @property
    def autoencoder(self) -> Autoencoder | None:
        return self._autoencoder[0]

    @override
    def on_fit_start(self) -> None:
        self._schedule = NoiseSchedule(self.diffusion.noise, self.device)
        if self._autoencoder[0] is not None:
            self._autoencoder[0].to(self.device)
            self._precision = self._safe_precision(self._autoencoder[0])

    def _safe_precision(self, autoencoder: Autoencoder) -> str:
        """Returns the precision in which the autoencoder runs: as in data_tools, but fp32 if it overflows in fp16.

        A step does not ask again, because the host would wait for the device; if a frame overflows all the same, the
        loss is not finite, and the guard skips the step.
        """
        precision = resolve_precision(self.device)
        with autocast(self.device, precision):
            if precision == "fp16" and autoencoder.overflows():
                logger.warning("the autoencoder overflows in fp16: it encodes in fp32, which takes longer")
                return "fp32"
        return precision

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Returns the mean loss, and for each sample (b,) its loss and the draws that Measure sorts it by."""
        observed = self.observe(batch)
        if self.observed and self.observed[-1].step != batch.step:
            self.observed.clear()
        self.observed.append(replace(observed, losses=observed.losses.detach()))
        draws = observed.draws
        return {
            "loss": observed.losses.mean(),
            "losses": observed.losses.detach(),
            "timesteps": draws.timesteps,
            "levels": draws.levels,
            "dropped": draws.dropped,
        }

    def losses(self, batch: Batch) -> Tensor:
        """The loss of each sample: (b,). A pure function of the weights and of the batch's (seed, step, slots)."""
        return self.observe(batch).losses

    @override
    def validation_step(self, batch: Batch) -> Observed:  # type: ignore[override]
        """Returns the errors of v at fixed noise and fixed timesteps; callbacks.validation calls it.

        They have no weights, and are comparable between runs that predict or weight differently.
        """
        return self.observe(batch, fixed_draw, Prediction.errors_of_v)

    @override
    def predict_step(self, latents: Tensor, timesteps: Tensor, content: Tensor, temporal: bool) -> Tensor:
        """Returns the UNet's prediction; it is diffusion.editing's Network, and callbacks.previews calls it."""
        dtype = self.unet.conv_in.weight.dtype  # bfloat16 under ZeRO in bf16-mixed; else autocast does what is needed
        return self.unet(latents.to(dtype), timesteps, content.to(dtype), temporal=temporal).float()

    @property
    def drawing(self) -> Drawing:
        """Makes the draws of a training step."""
        return Drawing(
            self.stage.seed,
            self.diffusion.noise,
            self.stage.max_level if self.stage.structure else 0,
            self.diffusion.drop_content,
            self.diffusion.timesteps,
            self.stage.planes if self.stage.structure else 1,
            self.stage.drop_planes,
        )

    def observe(
        self,
        batch: Batch,
        choose: Callable[[Drawing, Batch], Draws] | None = None,
        judge: "Callable[[Prediction], Tensor] | None" = None,
    ) -> Observed:
        """Returns the losses, or what `judge` finds instead.

        The draws are those of the batch, or those that `choose` or this module makes for it.
        """
        assert self._schedule is not None
        moments = self.moments(batch)
        batch = replace(batch, moments=moments)
        choose = choose or Drawing.draw
        draws = (choose(self.drawing, batch) if batch.draws is None else batch.draws).to(moments.device)
        latents = sample_latents(moments, draws.posterior, self.stage.latent_scale)
        alpha, sigma = self._schedule.at(draws.timesteps, latents)
        inputs = z = alpha * latents + sigma * draws.noise
        if self.stage.structure:
            n, _, h, w = latents.shape[1:]
            levels = level_channels(draws.levels, (n, h, w))
            structure = self.structure_latents(batch, draws.rounds, draws.planes)
            inputs = torch.cat([inputs, structure, levels], dim=2)
        rows = torch.arange(len(draws.frames), device=draws.frames.device)
        content = content_tokens(batch.embeddings[rows, draws.frames], draws.dropped)
        output = self.predict_step(inputs, draws.timesteps, content, temporal=batch.kind == "video")
        prediction = Prediction(self._schedule.prediction, output, z, latents, draws.noise, alpha, sigma)
        losses = prediction.losses(self.diffusion.loss) if judge is None else judge(prediction)
        return Observed(batch.step, batch.slots, batch.keys, losses, draws.choices)

    def moments(self, batch: Batch) -> Tensor:
        """Returns mean and log-variance of the frames' latents (b, n, 2c, h, w), read from the shards or encoded."""
        if self.stage.cached:
            assert batch.moments is not None
            return batch.moments
        assert batch.frames is not None
        frames = to_signed(batch.frames)
        return self._encode(lambda autoencoder: autoencoder.encode_moments(frames, check=False))

    def structure_latents(self, batch: Batch, levels: Sequence[int], planes: Sequence[Strengths] = ()) -> Tensor:
        """Returns the encoded structure (b, n, c, h, w) at t_s (b): as it was read at these t_s, or encoded now.

        `planes`: the strengths of each sample's planes; none: all are kept. The latents that are read are of all planes
        together, so that a sample without one of them is encoded.
        """
        if self.stage.encodes_structure:
            assert batch.structure is not None
            return self._encoded(batch.structure, levels, planes)
        assert batch.structure_latents is not None
        read = batch.structure_levels or [0] * len(levels)
        assert read == list(levels), f"structure was read at t_s {read}, but {levels} was drawn"
        rows = [row for row, kept in enumerate(planes) if not all(kept)]
        if not rows:
            return batch.structure_latents
        held = list(range(len(levels))) if batch.structure_rows is None else batch.structure_rows
        assert batch.structure is not None and held == rows, f"structure was read of {held}, but {rows} lose planes"
        encoded = self._encoded(batch.structure, [levels[row] for row in rows], [planes[row] for row in rows])
        latents = list(batch.structure_latents.unbind())  # no tensor is indexed: a GPU would have to be waited for
        for row, fresh in zip(rows, encoded):
            latents[row] = fresh
        return torch.stack(latents)

    def _encoded(self, structure: Tensor, levels: Sequence[int], planes: Sequence[Strengths]) -> Tensor:
        """Returns the latents of structure (b, n, h, w), or (b, n, p, h, w) of several planes, at t_s (b)."""
        with autocast(self.device, "fp32"):  # half precision would blur away the 16 bits
            if not all(map(all, planes)):
                structure = torch.stack([scale_planes(*each) for each in zip(structure, planes)])
            structure = degrade(structure, levels, self.stage.degradation)
        several = structure.ndim == 5
        return self._encode(lambda autoencoder: autoencoder.encode_structure(structure, check=False, several=several))

    def _encode(self, encode: Callable[[Autoencoder], Tensor]) -> Tensor:
        autoencoder = self._autoencoder[0]
        assert autoencoder is not None
        with autocast(self.device, self._precision):  # not in the UNet's bfloat16
            return encode(autoencoder)

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if not isinstance(self.trainer.strategy, DeepSpeedStrategy):  # ZeRO treats missing gradients as zero
            fill_missing_gradients(optimizer)

    @override
    def takes_step(self, norm: float) -> bool:
        return self.judge(norm)

    @override
    def configure_optimizers(self) -> Any:
        return self.adamw(self.optim, self.stage.start, self.stage.steps)


def freeze(unet: nn.Module, trains: Sequence[str]) -> None:
    """Freezes the weights that match none of the globs; called again with the same globs, it changes nothing.

    They take no gradient and no memory in the optimizer. Raises UserError when a glob matches no weight.
    """
    weights = saved(unet)
    check_globs("stage.trains", trains, weights)
    for name, weight in weights.items():
        weight.requires_grad_(any(fnmatch.fnmatchcase(name, glob) for glob in trains))


def _take_every_step(norm: float) -> bool:
    return True


def fill_missing_gradients(optimizer: Optimizer) -> None:
    """Puts zeros where there is no gradient, so that all strategies take the same step.

    A plain optimizer would skip such weights. An image step leaves the temporal layers without a gradient; a single
    content token leaves the queries and keys of its attention without one.
    """
    for parameter in updated_by(optimizer):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)

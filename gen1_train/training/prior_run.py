"""The prior from its config to its last checkpoint: `gen1-train stage=prior`, on one process."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from typing_extensions import override

from gen1_train.data.pairs import PairBatches, Pairs, captioned, numbers_at, read_pairs, split
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from gen1_train.exits import STOPPED
from gen1_train.model.prior import PriorNetwork
from gen1_train.remote import is_url, without_secrets
from gen1_train.stop import STOP
from gen1_train.training import checkpoint
from gen1_train.training.agreement import code_hash
from gen1_train.training.clock import Clock
from gen1_train.training.counters import Counters
from gen1_train.training.ema import name_of
from gen1_train.training.ending import Ending
from gen1_train.training.preflight import check_disk, checkpoint_bytes, process_count, room_for_checkpoints
from gen1_train.training.prior_checkpoint import load_network
from gen1_train.training.prior_config import PriorTrainConfig, check_prior
from gen1_train.training.prior_module import PriorModule
from gen1_train.training.prior_validation import PriorValidation
from gen1_train.training.run import build_trainer, say
from gen1_train.training.run_files import open_run
from gen1_train.training.saving import Averaging, Begin, Complete, SaveCheckpoints, begin_counters
from gen1_train.training.stages import RESETS, run_folder
from gen1_train.training.stopping import Stopping

SAMPLE = 50_000  # training pairs that the scale of the embeddings is taken from, at most


def with_scales(network: PriorNetwork) -> Complete:
    """Puts what is not trained, the scales of the embeddings, beside the weights and averages that a run gathers."""
    scales = {name: weight.detach().clone() for name, weight in network.named_parameters() if not weight.requires_grad}
    return lambda files: {
        file: part if file == checkpoint.OPTIMIZER else {**part, **scales} for file, part in files.items()
    }


def train_prior(config: PriorTrainConfig) -> int:
    """Trains a prior, resumes it if its run folder has a checkpoint, or says that it is finished.

    Returns the exit code: 0, or STOPPED if a signal asked it to stop. Raises UserError.
    """
    check_prior(config)
    run = run_folder(config.tree, config.stage.name)
    resume = checkpoint.latest(run)
    if resume is not None and resume.info.finished and resume.info.step >= config.stage.steps:
        say(f"the prior is finished already: {resume.path}")
        return 0
    check_alone_here()
    process_count(config)  # a GPU that is asked for has to be there
    shards = open_pairs(config)
    clip = shards.manifest.estimators["clip"]
    if resume is not None:
        check_same_clip(config, clip, resume)
    network = new_network(config, clip["width"])
    weights = sum(weight.numel() for weight in network.parameters())
    size = checkpoint_bytes(weights, len(config.ema.decays))
    check_disk(run, room_for_checkpoints(run, config.checkpoint.keep, size))
    places = captioned(shards)
    samples = sum(pool.samples for pool in shards.manifest.pools.values())
    say(f"{len(places)} of {samples} samples in {config.data.root} have a caption; {weights / 1e6:.3g} M parameters")
    if config.check_only:
        read_pairs(shards, places[:1], config.data)
        say(f"the prior can go from step {resume.info.step if resume else 0} to {config.stage.steps} in {run}")
        return 0
    training, held_out = pairs_of(config, shards, places)
    return fit(config, run, resume, network, training, held_out, clip)


def check_alone_here() -> None:
    """Raises UserError when torchrun or srun has started more processes than this one, all in one run folder."""
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        if (processes := os.environ.get(name, "1")) != "1":
            raise UserError(f"{processes} processes were started ({name}), the prior trains on one: start it alone")


def open_pairs(config: PriorTrainConfig) -> ShardSet:
    """The shard set. Raises UserError when there is none on this machine."""
    root = config.data.root
    if root is None:
        raise UserError("data.root is not given: add data.root=FOLDER, a shard set made by gen1-data")
    if is_url(root):
        raise UserError(f"data.root={without_secrets(root)} is not on this machine: copy the set and give its folder")
    return ShardSet(root)


def check_same_clip(config: PriorTrainConfig, clip: dict[str, Any], resume: checkpoint.Checkpoint) -> None:
    """Raises UserError when the set was made by another CLIP than the one that the prior has learnt so far."""
    before = resume.info.estimators.get("clip", {})
    if before.get("fingerprint") != clip["fingerprint"]:
        raise UserError(
            f"the shard set {config.data.root} was made with another CLIP than {resume.path} was trained with: give "
            "the set that it was trained on, or start a new one with name="
        )


def new_network(config: PriorTrainConfig, dim: int) -> PriorNetwork:
    torch.manual_seed(config.seed)
    return PriorNetwork(config.prior, dim)


def pairs_of(config: PriorTrainConfig, shards: ShardSet, places: list[tuple[str, int]]) -> tuple[Pairs, Pairs]:
    """The pairs to train and to validate on; says how many they are."""
    pairs = read_pairs(shards, places, config.data)
    training, held_out = split(pairs, config.data.held_out)
    left = f", {len(places) - len(pairs) - pairs.left_out} over data.max_pairs" if len(places) > len(pairs) else ""
    unread = f", {pairs.left_out} could not be read" if pairs.left_out else ""
    say(f"{len(pairs)} pairs: {len(training)} to train on, {len(held_out)} held out{left}{unread}")
    return training, held_out


def fit(
    config: PriorTrainConfig,
    run: Path,
    resume: checkpoint.Checkpoint | None,
    network: PriorNetwork,
    training: Pairs,
    held_out: Pairs,
    clip: dict[str, Any],
) -> int:
    """The training itself; returns the exit code."""
    stage, start, before = config.stage, resume.info.step if resume else 0, checkpoint.newest(run)
    data = {"training": training.hash, "held_out": held_out.hash}
    if resume is None:
        sample = training.take(numbers_at(len(training), config.seed, 0, min(len(training), SAMPLE)))
        network.texts.fit(sample.texts)
        network.images.fit(sample.frames)
    else:
        check_same_pairs(resume, data)
        load_network(network, resume, "raw")
        say(f"resuming from {resume.path}")

    def describe(step: int) -> checkpoint.CheckpointInfo:
        kept = {"data": data, "estimators": {"clip": clip}, "weights": checkpoint.PRIOR, "code": code_hash()}
        return checkpoint.CheckpointInfo(stage.name, step, finished=step >= stage.steps, **kept)  # type: ignore[arg-type]

    clock, decays = Clock(), config.ema.decays
    ending, stopping = Ending(lambda: checkpoint.newest(run) != before), Stopping(STOP, say)
    keeps = RESETS if resume else ()
    counters = begin_counters(resume, keeps, decays, resumed=resume is not None)
    progress = PriorProgress(stage.steps, config.log.every, config.data.batch, len(training), counters, clock)
    module = PriorModule(network, config.optim, config.diffusion.steps, start, stage.steps, progress.gradient)
    average = name_of(decays[0]) if decays else None
    validation = PriorValidation(
        config.validation.every, training, held_out, config.sampling, stage.steps, average, clock, progress.say
    )
    callbacks: list[Callback] = [
        ending,
        Begin(counters, decays, resume, start, keeps),
        Averaging(counters, decays, clock),
        progress,
        validation,
        stopping,
        SaveCheckpoints(
            *(run, config.checkpoint, stage.steps, counters, config.to_yaml(), describe, ending.fail, clock),
            complete=with_scales(network),
        ),
    ]
    open_run(config, run, None, start, world=1)
    trainer = build_trainer(config, run, start, 1, "auto", callbacks)
    batches = PairBatches(training, config.seed, config.data.batch, config.diffusion.steps, config.diffusion.drop_text)
    say(f"prior: steps {start} to {stage.steps} in {run}, {config.data.batch * stage.steps / len(training):.3g} epochs")
    trainer.fit(module, DataLoader(batches, batch_size=None, sampler=range(start, stage.steps)))
    if trainer.interrupted:
        raise KeyboardInterrupt
    if stopping.at is not None and stopping.at < stage.steps:
        say(f"the prior was stopped after step {stopping.at}: {checkpoint.newest(run)}; call again to go on")
        return STOPPED
    say(f"the prior is finished: {checkpoint.newest(run)}")
    return 0


def check_same_pairs(resume: checkpoint.Checkpoint, data: dict[str, str]) -> None:
    """Raises UserError when a run would go on with other pairs than it began with."""
    if resume.info.data != data:
        raise UserError(
            f"{resume.path} was trained on other pairs (the set, data.max_pairs or data.held_out has changed, or "
            "samples cannot be read): give what it was trained on, or start a new one with name="
        )


class PriorProgress(Callback):
    """The progress line, and a row every so many optimizer steps: what they took, and the loss."""

    def __init__(self, steps: int, every: int, batch: int, pairs: int, counters: Counters, clock: Clock) -> None:
        """`pairs` to train on, `batch` of them in a step; `counters.updates` is counted here."""
        self.steps, self.every, self.batch, self.pairs = steps, every, batch, pairs
        self.counters, self.clock = counters, clock
        self._bar: tqdm[Any] | None = None
        self._losses: list[Tensor] = []
        self._norms: list[float] = []
        self._lr = 0.0

    def gradient(self, norm: float) -> None:
        """To be told of the gradient's norm in each optimizer step, before its batch ends."""
        self._norms.append(norm)
        self.counters.updates += 1

    def say(self, line: str) -> None:
        """On a line of its own, above the progress."""
        if self._bar is not None:
            self._bar.clear()
        say(line)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._bar = tqdm(
            total=self.steps,
            initial=trainer.global_step,
            desc="prior",
            unit="step",
            mininterval=0.5 if sys.stderr.isatty() else 15.0,  # a log file need not hold every redraw
            dynamic_ncols=True,
        )
        self.clock.restart(pl_module.device)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]  # read here: the schedule moves on before the batch ends

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._bar is not None
        step = trainer.global_step
        self._losses.append(outputs["loss"].detach())
        self._bar.update()
        if step % self.every == 0 or step == self.steps:
            self._log(trainer, step)

    def _log(self, trainer: Trainer, step: int) -> None:
        assert self._bar is not None
        seconds, loss = sum(self.clock.take().values()), float(torch.stack(self._losses).mean())
        row = {
            "x_loss": loss,
            "lr": self._lr,
            "grad_norm": sum(self._norms) / len(self._norms),
            "seconds": seconds,
            "samples_per_second": self.batch * len(self._losses) / seconds,
            "epochs": step * self.batch / self.pairs,
        }
        self._bar.set_postfix_str(f"loss {loss:.4f}, gradient {row['grad_norm']:.3g}", refresh=False)
        for logger in trainer.loggers:
            logger.log_metrics(row, step=step)
        self._losses, self._norms = [], []

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._bar is not None:
            self._bar.close()  # what is said of the exception is to stand on a line of its own

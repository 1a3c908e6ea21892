"""The prior, from its config to its last checkpoint: `gen1-train stage=prior`, on one process."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from gen1_train.data.pairs import PairBatches, Pairs, find_captioned, pair_indices, read_pairs, split
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from gen1_train.model.prior import PriorNetwork
from gen1_train.system.device import use_expandable_segments
from gen1_train.system.remote import is_url, without_secrets
from gen1_train.training.callbacks.agreement import code_hash
from gen1_train.training.callbacks.saving import Complete
from gen1_train.training.checkpoints import checkpoint
from gen1_train.training.checkpoints.ema import name_of
from gen1_train.training.checkpoints.resuming import Claim
from gen1_train.training.preflight import check_disk, checkpoint_bytes, process_count, room_for_checkpoints
from gen1_train.training.prior.checkpoint import load_network
from gen1_train.training.prior.config import PriorTrainConfig
from gen1_train.training.prior.module import PriorModule
from gen1_train.training.prior.progress import PriorProgress
from gen1_train.training.prior.validation import PriorValidation
from gen1_train.training.run_files import open_run
from gen1_train.training.session import Session, unless_finished
from gen1_train.training.stages import RESETS, run_folder

TITLE = "the prior"  # of the run in messages
SAMPLE = 50_000  # training pairs that the scale of the embeddings is computed from, at most

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PriorData:
    """What a prior is trained on."""

    training: Pairs
    held_out: Pairs
    clip: dict[str, Any]  # the manifest's entry about the CLIP whose embeddings they are

    @property
    def hashes(self) -> dict[str, str]:
        return {"training": self.training.hash, "held_out": self.held_out.hash}


def train_prior(config: PriorTrainConfig) -> int:
    """Trains a prior, resumes it if its run folder has a checkpoint, or reports that it is finished.

    Returns the exit code: 0, or STOPPED if a signal asked the run to stop. Raises UserError.
    """
    config.check()
    use_expandable_segments()
    run = run_folder(config.tree, config.stage.name)

    def work(claim: Claim) -> int:
        return prepare_and_fit(config, run, claim)

    return unless_finished(config, TITLE, run, work, rank_zero=True, before=check_single_process)


def prepare_and_fit(config: PriorTrainConfig, run: Path, claim: Claim) -> int:
    """Makes the checks of a start, and trains unless config.check_only; returns the exit code. Raises UserError."""
    resume = claim.resume
    process_count(config)  # a GPU that the config asks for has to be there
    shards = open_pairs(config)
    clip = shards.manifest.estimators["clip"]
    if resume is not None:
        check_same_clip(config, clip, resume)
    network = new_network(config, clip["width"])
    weights = sum(weight.numel() for weight in network.parameters())
    size = checkpoint_bytes(weights, weights, len(config.ema.decays))
    check_disk(run, room_for_checkpoints(run, config.checkpoint.keep, size))
    places = find_captioned(shards)
    samples = sum(pool.samples for pool in shards.manifest.pools.values())
    logger.info(
        f"{len(places)} of {samples} samples in {config.data.root} have a caption; {weights / 1e6:.3g} M parameters"
    )
    if config.check_only:
        read_pairs(shards, places[:1], config.data)
        start = resume.info.step if resume else 0
        logger.info(f"{TITLE} can run from step {start} to {config.stage.steps} in {run}")
        return 0
    training, held_out = pairs_of(config, shards, places)
    return fit(config, run, claim, network, PriorData(training, held_out, clip))


def check_single_process() -> None:
    """Raises UserError when torchrun or srun has started several processes, which would share one run folder."""
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        if (processes := os.environ.get(name, "1")) != "1":
            raise UserError(f"{processes} processes were started ({name}), the prior trains on one: start it alone")


def open_pairs(config: PriorTrainConfig) -> ShardSet:
    """Opens the shard set. Raises UserError when there is none on this machine."""
    root = config.data.root
    if root is None:
        raise UserError("data.root is not given: add data.root=FOLDER, a shard set made by gen1-data")
    if is_url(root):
        raise UserError(f"data.root={without_secrets(root)} is not on this machine: copy the set and give its folder")
    return ShardSet(root)


def check_same_clip(config: PriorTrainConfig, clip: dict[str, Any], resume: checkpoint.Checkpoint) -> None:
    """Raises UserError when the set was made by another CLIP than the one that the prior was trained with so far."""
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
    """Reads the pairs to train and to validate on, and reports their numbers."""
    pairs = read_pairs(shards, places, config.data)
    training, held_out = split(pairs, config.data.held_out)
    left = f", {len(places) - len(pairs) - pairs.unreadable} over data.max_pairs" if len(places) > len(pairs) else ""
    unread = f", {pairs.unreadable} could not be read" if pairs.unreadable else ""
    logger.info(f"{len(pairs)} pairs: {len(training)} to train on, {len(held_out)} held out{left}{unread}")
    return training, held_out


def fit(
    config: PriorTrainConfig,
    run: Path,
    claim: Claim,
    network: PriorNetwork,
    data: PriorData,
) -> int:
    """Trains the network; returns the exit code."""
    resume = claim.resume
    load_initial(config, resume, network, data)
    session = Session.open(config, TITLE, run, resume, source=resume, keeps=RESETS if resume else ())
    claim.on_loss(session.failure.fail)
    pairs = len(data.training)
    batch = config.data.batch
    steps = config.stage.steps
    progress = PriorProgress(
        steps=steps,
        every=config.log.every,
        batch=batch,
        pairs=pairs,
        counters=session.counters,
        clock=session.clock,
    )
    validation = PriorValidation(
        every=config.validation.every,
        training=data.training,
        held_out=data.held_out,
        sampling=config.sampling,
        steps=steps,
        average=name_of(config.ema.decays[0]) if config.ema.decays else None,
        clock=session.clock,
    )

    def describe(step: int) -> checkpoint.CheckpointInfo:
        return checkpoint.CheckpointInfo(
            stage=config.stage.name,
            step=step,
            finished=step >= steps,
            data=data.hashes,
            estimators={"clip": data.clip},
            weights=checkpoint.PRIOR,
            code=code_hash(),
        )

    module = PriorModule(network, config.optim, config.diffusion.steps, session.start, steps, progress.gradient)
    callbacks = session.callbacks(measuring=[progress, validation], describe=describe, complete=with_scales(network))
    open_run(config, run, None, session.start, world=1)
    batches = PairBatches(data.training, config.seed, batch, config.diffusion.steps, config.diffusion.drop_text)
    loader = DataLoader(batches, batch_size=None, sampler=range(session.start, steps))
    trainer = session.trainer(callbacks)
    logger.info(f"prior: steps {session.start} to {steps} in {run}, {batch * steps / pairs:.3g} epochs")
    return session.fit(trainer, module, train_dataloaders=loader)


def load_initial(
    config: PriorTrainConfig, resume: checkpoint.Checkpoint | None, network: PriorNetwork, data: PriorData
) -> None:
    """Loads the weights of a resumed run; a new one computes the scales of the embeddings. Raises UserError."""
    if resume is None:
        pairs = data.training
        sample = pairs.take(pair_indices(len(pairs), config.seed, 0, min(len(pairs), SAMPLE)))
        network.texts.fit(sample.texts)
        network.images.fit(sample.frames)
        return
    check_same_pairs(resume, data.hashes)
    load_network(network, resume, "raw")
    logger.info(f"resuming from {resume.path}")


def with_scales(network: PriorNetwork) -> Complete:
    """Returns a function that adds what is not trained, the scales of the embeddings, to a checkpoint's files."""
    scales = {name: weight.detach().clone() for name, weight in network.named_parameters() if not weight.requires_grad}
    return lambda files: {
        file: part if file == checkpoint.OPTIMIZER else {**part, **scales} for file, part in files.items()
    }


def check_same_pairs(resume: checkpoint.Checkpoint, data: dict[str, str]) -> None:
    """Raises UserError when a run would resume with other pairs than it began with."""
    if resume.info.data != data:
        raise UserError(
            f"{resume.path} was trained on other pairs (the set, data.max_pairs or data.held_out has changed, or "
            "samples cannot be read): give what it was trained on, or start a new one with name="
        )

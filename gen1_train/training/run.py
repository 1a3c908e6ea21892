"""One stage, from its config to its last checkpoint."""

import logging
from pathlib import Path

from gen1_train.model.pretrained import WeightReport
from gen1_train.model.stable_diffusion import prediction_of
from gen1_train.system.device import use_expandable_segments
from gen1_train.system.files import patiently
from gen1_train.training.checkpoints import checkpoint, writing
from gen1_train.training.checkpoints.resuming import Claim
from gen1_train.training.checkpoints.verification import Verification, verification
from gen1_train.training.config import TrainConfig
from gen1_train.training.datamodule import Gen1DataModule
from gen1_train.training.initial import load_initial, make_module
from gen1_train.training.planning.plan import plan_lines
from gen1_train.training.planning.throughput import step_cost
from gen1_train.training.planning.workload import encoding_of
from gen1_train.training.preflight import check_disk, wanted_processes
from gen1_train.training.ready import prepare
from gen1_train.training.run_files import open_run
from gen1_train.training.session import Session, is_rank_zero, unless_finished
from gen1_train.training.stage_callbacks import stage_callbacks
from gen1_train.training.stages import build_unet, predecessor, run_folder

logger = logging.getLogger(__name__)


def train(config: TrainConfig) -> int:
    """Runs a stage, resumes it if its run folder has a checkpoint, or reports that it is finished.

    Returns the exit code: 0, or STOPPED if a signal asked the run to stop. Raises UserError.
    """
    config.check()
    use_expandable_segments()
    run = run_folder(config.tree, config.stage.name)
    if config.plan_only:
        for line in plan_lines(config, run, checkpoint.latest(run)):
            logger.info(line)
        return 0
    title = f"stage {config.stage.name}"
    nodes, patience = config.trainer.nodes, config.trainer.rendezvous_seconds
    with verification(nodes, wanted_processes(config), patience) as shared:

        def work(claim: Claim) -> int:
            if config.stage.steps:
                return fit(config, title, run, claim, shared)
            if not config.check_only and is_rank_zero():
                initialise(config, title, run)
            return 0

        return unless_finished(config, title, run, work, rank_zero=is_rank_zero(), verify=shared.verify)


def initialise(config: TrainConfig, title: str, run: Path) -> None:
    """Writes the checkpoint of a stage without steps (stage 1): the inflated weights."""
    start = predecessor(config.stage, config.init, config.tree) if config.stage.predecessor else None
    unet, report = build_unet(config.model, config.stage, config.init, start, config.seed)
    if config.init.from_ is not None:
        report_another_prediction(config.init.from_, config.diffusion.noise.prediction)
    check_disk(run, sum(weight.numel() * 4 for weight in unet.parameters()))
    begin_run(config, run, report, step=0, world=1)
    info = checkpoint.CheckpointInfo(config.stage.name, step=0, finished=True)
    tensors = {checkpoint.UNET: unet.state_dict()}

    def write() -> Path:
        return writing.commit(writing.begin(run, 0), tensors, config.to_yaml(), info, config.checkpoint)

    path = patiently(write, f"the weights cannot be written to {run}", config.checkpoint.patience_seconds)
    logger.info(f"{title} is finished: {path}")


def report_another_prediction(source: str, ours: str) -> None:
    """Reports that the first weights were learned to predict something else than the stages will."""
    if (theirs := prediction_of(source)) not in (None, ours):
        logger.info(
            f"{source} predicts {theirs}, and the stages will learn to predict {ours}: with "
            f"diffusion.noise.prediction={theirs} they continue without a jump"
        )


def fit(config: TrainConfig, title: str, run: Path, claim: Claim, shared: Verification) -> int:
    """Trains stages 2 to 5, or a customization; returns the exit code."""
    ready = prepare(config, run, claim.resume, shared.verify)
    shared.close()
    config = ready.config
    steps = f"from step {ready.start} to {config.stage.steps}"
    if config.check_only:
        logger.info(f"{title} can run {steps} in {run} on {ready.world} processes")
        return 0
    weights = load_initial(config, ready)
    seed, manifest = ready.schedule.settings.seed, ready.shards.manifest
    module = make_module(config, weights.unet, manifest, ready.autoencoder, seed, ready.start)
    for change in ready.new_changes:
        logger.info(f"the data changes from here on: {change}")
    session = Session.open(config, title, run, claim.resume, ready.source, ready.keeps)
    claim.on_loss(session.failure.fail)
    begin_run(config, run, weights.report, ready.start, ready.world)
    trainer = session.trainer(stage_callbacks(config, ready, session, weights), ready.processes, ready.strategy)
    data = Gen1DataModule(
        shards=ready.shards,
        schedule=ready.schedule,
        fields=module.stage.fields,
        finish=module.drawing,
        level=module.drawing.level,
        drops=module.drawing.drops,
        steps=config.stage.steps,
        workers=config.data.workers,
        stall_seconds=config.data.stall_seconds,
        fail=session.failure.fail,
        clock=session.clock,
    )
    logger.info(f"{title}: steps {ready.start} to {config.stage.steps} in {run} on {trainer.world_size} processes")
    logger.info(step_cost(weights.unet.config, ready.schedule, encoding_of(config, manifest, ready.autoencoder)))
    if not module.stage.cached:
        logger.info(f"{config.data.root} holds no latents: the autoencoder encodes the frames in every step")
    elif module.stage.structure and module.stage.encodes_structure:
        logger.info(
            f"{config.data.root} lacks latents of the structure at t_s up to {module.stage.max_level}: the autoencoder "
            "encodes it in every step; gen1-data refresh layer=latents makes a set that has them"
        )
    elif module.stage.drop_planes:
        logger.info(
            f"stage.drop_planes={module.stage.drop_planes:g}: the autoencoder encodes the structure of samples that "
            f"lose a plane; the latents of the others are read from {config.data.root}"
        )
    return session.fit(trainer, module, datamodule=data)


def begin_run(config: TrainConfig, run: Path, report: WeightReport | None, step: int, world: int) -> None:
    """Reports where a new run's weights came from, and opens the run folder."""
    if report is not None:
        logger.info(report.summary())
    if is_rank_zero():
        open_run(config, run, report, step, world)

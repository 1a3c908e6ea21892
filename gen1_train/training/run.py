"""One stage from its config to its last checkpoint."""

import hashlib
import logging
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.utilities import rank_zero_only

from gen1_train.config import TrainConfig, TrainerConfig, check
from gen1_train.data.schedule import Schedule
from gen1_train.data.shards import Manifest, ShardSet
from gen1_train.data.state import capture
from gen1_train.exits import STOPPED
from gen1_train.model.autoencoder import Autoencoder
from gen1_train.model.pretrained import WeightReport, check_keys, check_same_family, load_weights
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.stop import STOP
from gen1_train.training import checkpoint
from gen1_train.training.agreement import Agreement, code_hash
from gen1_train.training.clock import Clock
from gen1_train.training.compiling import Compile, shapes_of
from gen1_train.training.datamodule import Gen1DataModule
from gen1_train.training.ema import name_of
from gen1_train.training.ending import Ending
from gen1_train.training.guard import Guard
from gen1_train.training.loggers import loggers
from gen1_train.training.measure import BatchFlops, Measure
from gen1_train.training.module import Gen1Module
from gen1_train.training.plan import foresee, material_of, plan_lines
from gen1_train.training.prefetching import Prefetching
from gen1_train.training.preflight import (
    check_disk,
    check_start,
    encodes,
    gpu_count,
    micro_clips,
    open_autoencoder,
    open_data,
    open_schedule,
    open_validation,
    process_count,
    wants_previews,
)
from gen1_train.training.previews import Previews
from gen1_train.training.prior_config import AnyTrainConfig
from gen1_train.training.run_files import open_run
from gen1_train.training.saving import Averaging, Begin, SaveCheckpoints, begin_counters
from gen1_train.training.stages import RESETS, build_unet, inherited, read_recorded, run_folder, stage_unet
from gen1_train.training.state import moments_of
from gen1_train.training.stopping import Stopping
from gen1_train.training.strategy import build_strategy
from gen1_train.training.throughput import step_flops
from gen1_train.training.validation import Validation

say = rank_zero_only(lambda line: print(f"gen1-train: {line}", flush=True))


def train(config: TrainConfig) -> int:
    """Runs a stage, resumes it if its run folder has a checkpoint, or says that it is finished.

    Returns the exit code: 0, or STOPPED if a signal asked it to stop. Raises UserError.
    """
    check(config)
    run = run_folder(config.tree, config.stage.name)
    resume = checkpoint.latest(run)
    if config.plan_only:
        for line in plan_lines(config, run, resume):
            say(line)
        return 0
    if resume is not None and resume.info.finished and resume.info.step >= config.stage.steps:
        say(f"stage {config.stage.name} is finished already: {resume.path}")
        return 0
    if config.stage.steps:
        return fit(config, run, resume)
    if not config.check_only and _is_rank_zero():
        initialise(config, run)
    return 0


def initialise(config: TrainConfig, run: Path) -> None:
    """Stage 1: no training, a checkpoint of the inflated weights."""
    unet, report = build_unet(config.model, config.stage, config.init, config.tree, config.seed)
    check_disk(run, sum(weight.numel() * 4 for weight in unet.parameters()))
    begin_run(config, run, report, step=0, world=1)
    info = checkpoint.CheckpointInfo(config.stage.name, step=0, finished=True)
    tensors = {checkpoint.UNET: unet.state_dict()}
    path = checkpoint.commit(checkpoint.begin(run, 0), tensors, config.to_yaml(), info, config.checkpoint)
    say(f"stage {config.stage.name} is finished: {path}")


@dataclass
class Ready:
    """What a run has found to be as it should before it starts a process or writes a file."""

    shards: ShardSet
    schedule: Schedule
    history: tuple[str, ...]  # what was changed in the data in the run's course
    strategy: Strategy | str
    processes: int  # on this node
    world: int
    held_out: ShardSet | None  # validation's clips
    autoencoder: Autoencoder | None


def check_run(config: TrainConfig, run: Path, resume: checkpoint.Checkpoint | None) -> Ready:
    """All that can be checked on any one process. Raises UserError."""
    shards = open_data(config)
    schedule, history = open_schedule(config, shards, resume)
    if resume is None:
        check_start(config, shards.manifest)
    processes = process_count(config)
    world = processes * config.trainer.nodes
    strategy = build_strategy(config.strategy, world, micro_clips(config, world), gpu=gpu_count(config) > 0)
    held_out, autoencoder = open_validation(config, shards), open_autoencoder(config, shards.manifest)
    if _is_rank_zero():
        say(foresee(config, material_of(schedule, autoencoder if encodes(config, shards.manifest) else None), run))
    return Ready(shards, schedule, history, strategy, processes, world, held_out, autoencoder)


def fit(config: TrainConfig, run: Path, resume: checkpoint.Checkpoint | None) -> int:
    """Stages 2 to 5; returns the exit code."""
    stage, start = config.stage, resume.info.step if resume else 0
    ready = check_run(config, run, resume)
    before = checkpoint.newest(run)
    if config.check_only:
        say(f"stage {stage.name} can go from step {start} to {stage.steps} in {run} on {ready.world} processes")
        return 0
    shards, schedule, history, autoencoder = ready.shards, ready.schedule, ready.history, ready.autoencoder
    if resume is None:
        unet, report = build_unet(config.model, stage, config.init, config.tree, config.seed)
    else:
        unet, report = restore(config, resume), None
    module = make_module(config, unet, shards.manifest, autoencoder, schedule.settings.seed, start)
    for change in history[len(resume.info.data["history"]) :] if resume else ():
        say(f"the data goes on with a change: {change}")

    def describe(step: int) -> checkpoint.CheckpointInfo:
        state = asdict(capture(schedule, step, history))
        buckets = [f"{pool.width}x{pool.height}" for pool in shards.pools("video")]
        finished, estimators = step >= stage.steps, shards.manifest.estimators
        return checkpoint.CheckpointInfo(stage.name, step, finished, state, estimators, buckets, code=code_hash())

    clock, decays, resolved = Clock(), config.ema.decays, config.to_yaml()
    ending, stopping = Ending(lambda: checkpoint.newest(run) != before), Stopping(STOP, say)
    source, keeps = (resume, RESETS) if resume else inherited(stage, config.init, config.tree)
    counters = begin_counters(source, keeps, decays, resumed=resume is not None)
    shapes = shapes_of(schedule, ready.world * config.trainer.accumulate)
    begin_run(config, run, report, start, ready.world)
    flops = BatchFlops(module.unet.config, shards.manifest.estimators["autoencoder"]["factor"])
    measure = Measure(stage.steps, config.log.every, f"stage {stage.name}", flops, schedule.image_share, clock, say)
    callbacks = [
        ending,
        Agreement(promises(config, schedule, start)),
        *([Prefetching(config.data, schedule, start, stage.steps)] if config.data.cache else []),
        Begin(counters, decays, source, start, keeps),
        *([Compile(config.trainer.compile_backend, shapes, say)] if config.trainer.compile else []),
        Guard(config.guard, counters, run, resolved, describe, say, measure.gradient),
        Averaging(counters, decays, clock),
        measure,
        *validating(config, run, ready.held_out, autoencoder, "video" if schedule.share < 1 else "image", clock),
        stopping,
        SaveCheckpoints(run, config.checkpoint, stage.steps, counters, resolved, describe, ending.fail, clock),
    ]
    trainer = build_trainer(config, run, start, ready.processes, ready.strategy, callbacks)
    loading = config.data.workers, config.data.stall_seconds, ending.fail
    data = Gen1DataModule(shards, schedule, module.fields, stage.steps, *loading, clock)
    say(f"stage {stage.name}: steps {start} to {stage.steps} in {run} on {trainer.world_size} processes")
    say(step_cost(module.unet.config, shards, schedule))
    if not module.cached:
        say(f"{config.data.root} holds no latents: the autoencoder encodes the frames in every step")
    trainer.fit(module, datamodule=data)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if stopping.at is not None and stopping.at < stage.steps:
        say(f"stage {stage.name} was stopped after step {stopping.at}: {checkpoint.newest(run)}; call again to go on")
        return STOPPED
    say(f"stage {stage.name} is finished: {checkpoint.newest(run)}")
    return 0


def validating(
    config: TrainConfig,
    run: Path,
    held_out: ShardSet | None,
    autoencoder: Autoencoder | None,
    kind: str,
    clock: Clock,
) -> list[Callback]:
    """Validation loss and previews, as far as the config wants them; `kind` of samples, video or image."""
    settings, steps, found = config.validation, config.stage.steps, list[Callback]()
    average = name_of(config.ema.decays[0]) if config.ema.decays else None
    if held_out is not None and settings.every:
        found.append(Validation(settings, held_out, kind, steps, average, clock))
    if held_out is not None and wants_previews(config):
        assert autoencoder is not None
        found.append(Previews(settings, held_out, steps, average, autoencoder, run, say, clock))
    return found


def make_module(
    config: TrainConfig,
    unet: SpatioTemporalUNet,
    manifest: Manifest,
    autoencoder: Autoencoder | None,
    seed: int,
    start: int,
) -> Gen1Module:
    """The module around a UNet, for data of this manifest. `seed`: of the stage's noise; `start`: steps done."""
    stage, encoding = config.stage, manifest.estimators["autoencoder"]
    return Gen1Module(
        unet,
        config.optim,
        config.diffusion,
        seed,
        structure=stage.structure,
        max_level=stage.max_level,
        latent_scale=encoding["scale"],
        autoencoder=autoencoder if encodes(config, manifest) else None,
        cached=encoding.get("stored", True),
        trains=stage.trains,
        start=start,
        steps=stage.steps,
    )


def promises(config: TrainConfig, schedule: Schedule, start: int) -> dict[str, str]:
    """What all ranks have to agree on. Where the shard set lies may differ from node to node."""
    data = replace(config.data, root=None, cache=None)
    return {
        "the shard set": schedule.shards.manifest.hash,
        "the order of the data": schedule.hash,
        "the step": str(start),
        "the settings": hashlib.sha256(replace(config, data=data).to_yaml().encode()).hexdigest(),
        "the code": code_hash(),
    }


def step_cost(unet: UNetConfig, shards: ShardSet, schedule: Schedule) -> str:
    """What a step on the largest pool costs: a video step, or an image step where there is no other."""
    kind, samples = ("video", "clips") if schedule.share < 1 else ("image", "images")
    pool = max(shards.pools(kind), key=lambda pool: pool.samples)
    factor, count = shards.manifest.estimators["autoencoder"]["factor"], schedule.batch_size(kind)
    one = step_flops(unet, pool.height // factor, pool.width // factor, pool.frames, temporal=kind == "video")
    units = {"PFLOP": 1e15, "TFLOP": 1e12, "GFLOP": 1e9, "MFLOP": 1e6}
    name = next((name for name, unit in units.items() if count * one.total >= unit), "MFLOP")
    total, spatial, temporal = (f"{count * n / units[name]:.1f}" for n in (one.total, one.spatial, one.temporal))
    parts = f" (spatial {spatial}, temporal {temporal})" if one.temporal else ""
    return f"a step of {count} {samples} of {pool.width}x{pool.height} is {total} {name}{parts}"


def build_trainer(
    config: AnyTrainConfig, run: Path, start: int, processes: int, strategy: Strategy | str, callbacks: list[Callback]
) -> Trainer:
    """Lightning's Trainer with our loggers and callbacks in place of its own checkpoints and bars."""
    stage = config.stage
    quiet()
    set_switches(config.trainer)
    return Trainer(
        accelerator=config.trainer.accelerator,
        devices=processes,
        num_nodes=config.trainer.nodes,
        strategy=strategy,
        precision=config.trainer.precision,  # type: ignore[arg-type]
        max_steps=stage.steps,
        max_epochs=-1,
        accumulate_grad_batches=config.trainer.accumulate,
        gradient_clip_val=config.optim.clip_norm or None,
        logger=loggers(config, run, start, say),
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def set_switches(config: TrainerConfig) -> None:
    """What torch keeps for the whole process; on CPUs without effect."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    torch.backends.cudnn.benchmark = config.cudnn_benchmark


def quiet() -> None:
    """Silences what Lightning and DeepSpeed say at every start and no user can act on."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", ".*persistent_workers.*")
    warnings.filterwarnings("ignore", ".*You defined a `validation_step` but have no `val_dataloader`.*")
    warnings.filterwarnings("ignore", ".*configure_gradient_clipping.*")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")  # rows are ours
    warnings.filterwarnings("ignore", ".*srun. command is available.*")  # torchrun works on a cluster, too
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)


def _is_rank_zero() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def begin_run(config: TrainConfig, run: Path, report: WeightReport | None, step: int, world: int) -> None:
    """Says where a new run's weights came from, and opens the run folder."""
    if report is not None:
        say(report.summary())
    if _is_rank_zero():
        open_run(config, run, report, step, world)


def restore(config: TrainConfig, resume: checkpoint.Checkpoint) -> SpatioTemporalUNet:
    """The UNet of a run that goes on; refuses another model."""
    unet = SpatioTemporalUNet(stage_unet(config.model, config.stage))
    check_same_family(unet.config, read_recorded(resume).unet, str(resume.path))
    load_weights(unet, resume.weights("raw"), str(resume.path), may_be_new=())
    wanted = {name: weight for name, (weight, _) in moments_of(unet).items()}
    check_keys(wanted, resume.moments(), str(resume.path / checkpoint.OPTIMIZER))
    say(f"resuming from {resume.path}")
    return unet

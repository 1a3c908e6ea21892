"""The callbacks of a stage, on top of those that every run has (session.py)."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, replace

from pytorch_lightning import Callback

from gen1_train.data.schedule import Schedule
from gen1_train.data.state import capture
from gen1_train.reporting.rows import read_metrics
from gen1_train.training.callbacks.agreement import Agreement, code_hash
from gen1_train.training.callbacks.compiling import Compile, Kernels, shapes_of
from gen1_train.training.callbacks.guard import Guard
from gen1_train.training.callbacks.measure import BatchFlops, Measure
from gen1_train.training.callbacks.prefetching import Prefetching
from gen1_train.training.callbacks.previews import Previews
from gen1_train.training.callbacks.validation import LOSS, SUBJECT_LOSS, Validation
from gen1_train.training.checkpoints.checkpoint import CheckpointInfo
from gen1_train.training.checkpoints.ema import name_of
from gen1_train.training.config import TrainConfig
from gen1_train.training.customization.lora import merging
from gen1_train.training.customization.overfit import Overfit
from gen1_train.training.initial import InitialWeights
from gen1_train.training.planning.workload import encoding_of
from gen1_train.training.preflight import wants_previews
from gen1_train.training.ready import Ready
from gen1_train.training.session import Session


def stage_callbacks(config: TrainConfig, ready: Ready, session: Session, weights: InitialWeights) -> list[Callback]:
    """Returns all callbacks of a stage, in the order in which they act."""
    describe = describing(config, ready, weights)
    measure = measuring(config, ready, session, weights)
    guard = Guard(
        config=config.guard,
        counters=session.counters,
        run=session.run,
        resolved=config.to_yaml(),
        describe=describe,
        on_gradient=measure.gradient,
        patience=config.checkpoint.patience_seconds,
    )
    first: list[Callback] = [Agreement(agreed_values(config, ready.schedule, ready.start))]
    if config.data.cache:
        first.append(Prefetching(config.data, ready.schedule, ready.start, config.stage.steps))
    shapes = shapes_of(ready.schedule, ready.world * config.trainer.accumulate)
    guarding: list[Callback] = [Kernels(shapes, config.trainer.compile), guard]
    if config.trainer.compile:
        guarding.insert(1, Compile(config.trainer.compile_backend, shapes))
    return session.callbacks(
        first=first,
        guarding=guarding,
        measuring=[measure, *validating(config, ready, session)],
        describe=describe,
        complete=merging(config.customize, session.run),
    )


def describing(config: TrainConfig, ready: Ready, weights: InitialWeights) -> Callable[[int], CheckpointInfo]:
    """Returns the function that makes the CheckpointInfo of a step."""
    stage, shards, lengths = config.stage, ready.shards, trained_lengths(ready)

    def describe(step: int) -> CheckpointInfo:
        return CheckpointInfo(
            stage=stage.name,
            step=step,
            finished=step >= stage.steps,
            data=asdict(capture(ready.schedule, step, ready.history)),
            estimators=shards.manifest.estimators,
            buckets=shards.buckets,
            image_buckets=trained_image_buckets(ready),
            frames=max(lengths, default=0),
            lengths=lengths if len(lengths) > 1 else [],
            fps=trained_fps(ready),
            lora=weights.adapter,
            code=code_hash(),
        )

    return describe


def trained_image_buckets(ready: Ready) -> list[str]:
    """Returns the sizes of the images that the run reads, WIDTHxHEIGHT; none if they are those of the clips."""
    sizes = ready.shards.image_buckets if any(pool.kind == "image" for pool in ready.schedule.pools) else []
    return sizes if set(sizes) != set(ready.shards.buckets) else []


def trained_lengths(ready: Ready) -> list[int]:
    """Returns the lengths of the clips that the run reads; of its predecessor's clips if it reads only images."""
    if any(pool.kind == "video" for pool in ready.schedule.pools):
        return ready.schedule.lengths
    before = ready.resume or ready.predecessor
    return before.info.trained_lengths if before else []


def trained_fps(ready: Ready) -> float | None:
    """Returns the frames a second at which the run's clips were cut; its predecessor's if it reads only images."""
    if any(pool.kind == "video" for pool in ready.schedule.pools):
        fps = ready.shards.manifest.recipe.get("cut", {}).get("fps")
        return float(fps) if fps else None
    before = ready.resume or ready.predecessor
    return before.info.fps if before else None


def measuring(config: TrainConfig, ready: Ready, session: Session, weights: InitialWeights) -> Measure:
    manifest = ready.shards.manifest
    factor, encoding = manifest.estimators["autoencoder"]["factor"], encoding_of(config, manifest, ready.autoencoder)
    return Measure(
        title=session.title,
        steps=config.stage.steps,
        every=config.log.every,
        flops=BatchFlops(weights.unet.config, factor, encoding),
        image_share=ready.schedule.image_share,
        clock=session.clock,
    )


def validating(config: TrainConfig, ready: Ready, session: Session) -> list[Callback]:
    """Returns validation losses and previews, as far as the config asks for them."""
    settings = config.validation
    steps = config.stage.steps
    clock = session.clock
    customizes = config.images is not None
    average = name_of(config.ema.decays[0]) if config.ema.decays else None
    observer = watch_overfitting(config, ready).observe if customizes else None
    callbacks: list[Callback] = []
    if ready.held_out is not None and settings.every:
        kind = "video" if customizes or ready.schedule.share < 1 else "image"
        callbacks.append(
            Validation(
                config=settings,
                shards=ready.held_out,
                kind=kind,
                steps=steps,
                average=average,
                clock=clock,
                observer=observer,
            )
        )
    if ready.subject is not None:
        callbacks.append(
            Validation(
                config=settings,
                shards=ready.subject,
                kind="image",
                steps=steps,
                average=average,
                clock=clock,
                name=SUBJECT_LOSS,
                observer=observer,
            )
        )
    if ready.held_out is not None and wants_previews(config):
        assert ready.autoencoder is not None
        callbacks.append(
            Previews(
                config=settings,
                shards=ready.held_out,
                steps=steps,
                average=average,
                autoencoder=ready.autoencoder,
                run=session.run,
                clock=clock,
            )
        )
    return callbacks


def watch_overfitting(config: TrainConfig, ready: Ready) -> Overfit:
    """Watches the weights that an edit uses: those of the first average, if there is one."""
    suffix = "_ema" if config.ema.decays else ""
    meanings = {
        f"{LOSS}{suffix}": "it forgets other videos",
        f"{SUBJECT_LOSS}{suffix}": "it learns its images by heart",
    }
    rows = read_metrics(ready.run / "metrics.csv") if ready.start else []
    past = [row for row in rows if int(row["step"]) <= ready.start]
    return Overfit(config.customize, meanings, ready.run, past)


def agreed_values(config: TrainConfig, schedule: Schedule, start: int) -> dict[str, str]:
    """Returns what all ranks have to agree on. The shard set's folder may differ from node to node."""
    data = replace(config.data, root=None, cache=None)
    return {
        "the shard set": schedule.shards.manifest.hash,
        "data.order": schedule.settings.order,  # auto depends on the machine
        "the order of the data": schedule.hash,
        "the step": str(start),
        "the strategy": config.strategy.name,
        "the settings": hashlib.sha256(replace(config, data=data).to_yaml().encode()).hexdigest(),
        "the code": code_hash(),
    }

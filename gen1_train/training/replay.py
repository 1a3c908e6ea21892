"""`gen1-train replay=FILE`: repeats a step that the guard recorded, to find the sample that caused it."""

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen1_train.data.loader import BatchDataset, BatchPartition
from gen1_train.data.merged import MergedShards
from gen1_train.data.schedule import Schedule
from gen1_train.data.shards import ShardSet
from gen1_train.data.state import DataState, resume
from gen1_train.errors import UserError
from gen1_train.model.pretrained import listed, load_safetensors
from gen1_train.model.unet import SpatioTemporalUNet
from gen1_train.system.console import ConsoleConfig, progress, show
from gen1_train.system.device import pick_device
from gen1_train.system.records import read_json
from gen1_train.system.remote import is_url, without_secrets
from gen1_train.training.callbacks.guard import RECORD, rows
from gen1_train.training.checkpoints.checkpoint import CONFIG, UNET, find_checkpoint
from gen1_train.training.config import TrainConfig
from gen1_train.training.customization.lora import load_base, load_trained
from gen1_train.training.customization.subject import FOLDER, TRAIN
from gen1_train.training.initial import make_module
from gen1_train.training.module import Gen1Module
from gen1_train.training.preflight import check_data, encodes, load_autoencoder, open_data, schedule_settings
from gen1_train.training.stages import stage_unet
from gen1_train.training.strategies.config import CASTING

SHOWN = 12  # samples in the table: those that are not finite, then those of the largest loss

logger = logging.getLogger(__name__)


@dataclass
class ReplayConfig:
    replay: str | None = None  # the guard.json of a recorded step
    root: str | None = None  # the shard set, if it has moved
    batch: int = 8  # samples per pass, at most
    device: str = "auto"  # cpu, cuda, or auto: a GPU if there is one
    log: ConsoleConfig = field(default_factory=ConsoleConfig)  # lines on the terminal


@dataclass(frozen=True)
class Record:
    """A recorded step."""

    path: Path
    content: dict[str, Any]
    config: TrainConfig

    @property
    def step(self) -> int:
        return self.content["step"]

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.path.parents[2]


def replay(config: ReplayConfig) -> None:
    """Prints each sample's loss next to the recorded one, and the gradient norm. Raises UserError."""
    if config.batch < 1:
        raise UserError(f"batch={config.batch} must be 1 or above")
    device = pick_device(config.device)
    record = read_record(Path(str(config.replay)))
    if config.root is not None:
        record.config.data.root = config.root
    shards = open_recorded(record)
    state = DataState.load(record.content["data"], str(record.path))
    if state.manifest != shards.manifest.hash:
        raise UserError(
            f"{record.config.data.root} is not the shard set that the step was taken with: give root=FOLDER"
        )
    schedule, _ = resume(state, shards, schedule_settings(record.config))
    encoding = shards.manifest.estimators["autoencoder"]
    autoencoder = load_autoencoder(encoding) if encodes(record.config, shards.manifest) else None
    unet = load_unet(record)
    module = make_module(record.config, unet, shards.manifest, autoencoder, schedule.settings.seed, record.step)
    module.to(device).on_fit_start()
    print_table(record, run_again(record, module, schedule, config.batch))
    print_gradient(record, module)


def open_recorded(record: Record) -> ShardSet:
    """Opens the shard set of a recorded step. Raises UserError.

    The record may come from others: nothing is fetched, and no folder that it names is written to.
    """
    config, root = record.config, record.config.data.root
    if root is not None and is_url(root):
        raise UserError(
            f"data.root={without_secrets(root)} is not on this machine: copy the set and give its folder with root="
        )
    config.data.cache = None
    if config.images is None:
        return open_data(config)
    shards = MergedShards(record.run / FOLDER / TRAIN, root)
    check_data(config, shards.manifest)
    return shards


def read_record(path: Path) -> Record:
    """Reads a record of the guard. Raises UserError if it is not one, or of another version."""
    try:
        content = read_json(path)
        config = TrainConfig.load(path.parent / CONFIG)
        if not {"step", "data", "samples", "reason", "norm"} <= set(content):
            raise ValueError("it is not complete")
    except FileNotFoundError as error:
        raise UserError(f"there is no {error.filename}: give a {RECORD} such as RUN/guard/step-…/{RECORD}") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a step that this version recorded ({error})") from error
    return Record(path, content, config)


def load_unet(record: Record) -> SpatioTemporalUNet:
    """Loads the weights of the step. A late record has none; then it loads those of the newest checkpoint."""
    unet = SpatioTemporalUNet(stage_unet(record.config.model, record.config.stage))
    file = record.path.parent / UNET
    if record.config.customize.lora_rank is not None:
        load_base(unet, record.run, record.config.customize, record.config.seed)
    if file.exists():
        load_trained(unet, load_safetensors(file), str(file))
        return unet
    checkpoint = find_checkpoint(record.run, "raw")
    logger.warning(
        f"{record.path.parent} has no weights (guard.records): those of step {checkpoint.info.step} are used, so "
        "losses differ from the recorded ones"
    )
    load_trained(unet, checkpoint.trained(), str(checkpoint.path))
    return unet


def run_again(record: Record, module: Gen1Module, schedule: Schedule, batch: int) -> list[dict[str, Any]]:
    """Returns the rows of all samples, as the guard writes them; the gradients add up in the module."""
    size = schedule.at(record.step).size
    parts = next(count for count in range(1, size + 1) if size % count == 0 and size // count <= batch)
    partition, level = BatchPartition(0, 1, parts), module.drawing.level
    fields, drops = module.stage.fields, module.drawing.drops
    dataset = BatchDataset(schedule.shards, schedule, partition, fields, level=level, drops=drops)
    samples: list[dict[str, Any]] = []
    with as_trained(record, module):
        for part in progress(range(parts), title=f"step {record.step}", unit="part", keep=False):
            observed = module.observe(dataset[record.step, part].to(module.device))
            (observed.losses.sum() / size).backward()
            samples += rows(observed)
    return samples


def as_trained(record: Record, module: Gen1Module) -> AbstractContextManager[object]:
    """Returns the precision of the step as a context. Under ZeRO and FSDP, the weights themselves are bfloat16."""
    if record.config.trainer.precision == "32-true":
        return nullcontext()
    if record.config.strategy.name in CASTING:
        module.unet.bfloat16()
        return nullcontext()
    return torch.autocast(module.device.type, torch.bfloat16)


def print_table(record: Record, samples: list[dict[str, Any]]) -> None:
    recorded = {row["slot"]: row for row in record.content["samples"]}
    logger.info(f"step {record.step}: {record.content['reason']}")
    if strange := [row["key"] for row in samples if row["key"] != recorded.get(row["slot"], row)["key"]]:
        logger.warning(f"{len(strange)} samples are not those that were recorded: {listed(strange)}")
    show(f"{'slot':>6} {'timestep':>8} {'t_s':>3} {'content':>7} {'recorded':>10} {'now':>10}  key")
    for row in sorted(samples, key=lambda row: -math.inf if row["loss"] is None else -row["loss"])[:SHOWN]:
        losses = [recorded.get(row["slot"], {}).get("loss"), row["loss"]]
        before, now = ("not finite" if loss is None else f"{loss:.4g}" for loss in losses)
        content = "none" if row["dropped"] else f"frame {row['frame']}"
        show(f"{row['slot']:6} {row['timestep']:8} {row['t_s']:3} {content:>7} {before:>10} {now:>10}  {row['key']}")
    if len(samples) > SHOWN:
        show(f"       … and {len(samples) - SHOWN} more with smaller losses")


def print_gradient(record: Record, module: Gen1Module) -> None:
    gradients = dict(_gradients(module))
    norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients.values()))
    broken = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    before = record.content["norm"]
    show(f"gradient norm {norm:.6g}, recorded {'not finite' if before is None else f'{before:.6g}'}")
    if broken:
        show(f"{len(broken)} of {len(gradients)} gradients are not finite: {listed(broken)}")


def _gradients(module: Gen1Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.unet.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad

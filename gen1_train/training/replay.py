"""`gen1-train replay=FILE`: a step that the guard has recorded, run again on one process: which sample was it?"""

import json
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from tqdm import tqdm

from gen1_train.config import TrainConfig
from gen1_train.data.loader import BatchDataset, Place
from gen1_train.data.schedule import Schedule
from gen1_train.data.state import DataState, resume
from gen1_train.errors import UserError
from gen1_train.frozen import pick_device
from gen1_train.model.pretrained import listed, load_safetensors
from gen1_train.model.unet import SpatioTemporalUNet
from gen1_train.training.checkpoint import CONFIG, UNET, find_checkpoint
from gen1_train.training.guard import RECORD, rows
from gen1_train.training.lora import load_base, load_trained
from gen1_train.training.module import Gen1Module
from gen1_train.training.preflight import encodes, load_autoencoder, open_data, schedule_settings
from gen1_train.training.run import make_module
from gen1_train.training.stages import stage_unet
from gen1_train.training.strategy import ZERO_STAGES

SHOWN = 12  # samples in the table: those that are not finite, then those of the largest loss


@dataclass
class ReplayConfig:
    replay: str | None = None  # the guard.json of a recorded step
    root: str | None = None  # the shard set, if it lies elsewhere now
    batch: int = 8  # samples at a time, at most
    device: str = "auto"  # cpu, cuda, or auto: a GPU if there is one


@dataclass(frozen=True)
class Record:
    """A recorded step, opened."""

    path: Path
    content: dict[str, Any]
    config: TrainConfig

    @property
    def step(self) -> int:
        return self.content["step"]


def replay(config: ReplayConfig) -> None:
    """Prints each sample's loss beside the recorded one, and the gradient's norm. Raises UserError."""
    if config.batch < 1:
        raise UserError(f"batch={config.batch} must be 1 or above")
    device, record = pick_device(config.device), read_record(Path(str(config.replay)))
    if config.root is not None:
        record.config.data.root = config.root
    shards = open_data(record.config)
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


def read_record(path: Path) -> Record:
    """Opens what the guard has written. Raises UserError when it is none, or of another version."""
    try:
        content = json.loads(path.read_text())
        config = TrainConfig.from_yaml((path.parent / CONFIG).read_text())
        if not {"step", "data", "samples", "reason", "norm"} <= set(content):
            raise ValueError("something is missing in it")
    except FileNotFoundError as error:
        raise UserError(f"there is no {error.filename}: give a {RECORD} such as RUN/guard/step-…/{RECORD}") from None
    except (OSError, ValueError, TypeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} is no step that this version has recorded ({error})") from error
    return Record(path, content, config)


def load_unet(record: Record) -> SpatioTemporalUNet:
    """The weights that the step was taken with; for a late record, which has none, those of the newest checkpoint."""
    unet = SpatioTemporalUNet(stage_unet(record.config.model, record.config.stage))
    file, run, customize = record.path.parent / UNET, record.path.parents[2], record.config.customize
    if customize.lora_rank is not None:
        load_base(unet, run, customize, record.config.seed)
    if file.exists():
        load_trained(unet, load_safetensors(file), str(file))
        return unet
    found = find_checkpoint(run)
    print(
        f"gen1-train: warning: {record.path.parent} has no weights (guard.records): those of step {found.info.step} "
        "are taken, so losses differ from the recorded ones",
        flush=True,
    )
    load_trained(unet, found.trained(), str(found.path))
    return unet


def run_again(record: Record, module: Gen1Module, schedule: Schedule, batch: int) -> list[dict[str, Any]]:
    """The rows of all samples, as the guard writes them; the gradients are added up in the module."""
    size = schedule.at(record.step).size
    parts = next(count for count in range(1, size + 1) if size % count == 0 and size // count <= batch)
    dataset = BatchDataset(schedule.shards, schedule, Place(0, 1, parts), module.fields)
    found: list[dict[str, Any]] = []
    with as_trained(record, module):
        for part in tqdm(range(parts), desc=f"step {record.step}", unit="part", leave=False):
            observed = module.observe(dataset[record.step, part].to(module.device))
            (observed.losses.sum() / size).backward()
            found += rows(observed)
    return found


def as_trained(record: Record, module: Gen1Module) -> AbstractContextManager[object]:
    """The precision in which the step was taken: ZeRO has the weights themselves in bfloat16."""
    if record.config.trainer.precision == "32-true":
        return nullcontext()
    if record.config.strategy.name in ZERO_STAGES:
        module.unet.bfloat16()
        return nullcontext()
    return torch.autocast(module.device.type, torch.bfloat16)


def print_table(record: Record, found: list[dict[str, Any]]) -> None:
    recorded = {row["slot"]: row for row in record.content["samples"]}
    print(f"gen1-train: step {record.step}: {record.content['reason']}")
    if strange := [row["key"] for row in found if row["key"] != recorded.get(row["slot"], row)["key"]]:
        print(f"gen1-train: warning: {len(strange)} samples are other ones than recorded: {listed(strange)}")
    print(f"{'slot':>6} {'timestep':>8} {'t_s':>3} {'content':>7} {'recorded':>10} {'now':>10}  key")
    for row in sorted(found, key=lambda row: -math.inf if row["loss"] is None else -row["loss"])[:SHOWN]:
        losses = [recorded.get(row["slot"], {}).get("loss"), row["loss"]]
        before, now = ("not finite" if loss is None else f"{loss:.4g}" for loss in losses)
        content = "none" if row["dropped"] else f"frame {row['frame']}"
        print(f"{row['slot']:6} {row['timestep']:8} {row['t_s']:3} {content:>7} {before:>10} {now:>10}  {row['key']}")
    if len(found) > SHOWN:
        print(f"       … and {len(found) - SHOWN} more, whose loss is smaller")


def print_gradient(record: Record, module: Gen1Module) -> None:
    gradients = dict(_gradients(module))
    norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients.values()))
    broken = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    before = record.content["norm"]
    print(f"gradient norm {norm:.6g}, recorded {'not finite' if before is None else f'{before:.6g}'}")
    if broken:
        print(f"{len(broken)} of {len(gradients)} gradients are not finite: {listed(broken)}")


def _gradients(module: Gen1Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.unet.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad

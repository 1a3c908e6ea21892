"""One start of a run that logs to W&B, in a separate process, because W&B has one run per process; and its records."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gen1_train.system.console import console
from gen1_train.training.callbacks.loggers import loggers
from gen1_train.training.config import TrainConfig
from gen1_train.training.stages import StageConfig
from tests.running import ENVIRONMENT, REPOSITORY

KEY = "0123456789abcdef" * 2 + "01234567"  # of no account


def config(**log: Any) -> TrainConfig:
    made = TrainConfig(StageConfig("3", "2", 8, True, False, 0, 0.125))
    for name, value in log.items():
        setattr(made.log, name, value)
    return made


def live(run: Path, first: int, last: int, killed: bool = False, **more: Any) -> subprocess.CompletedProcess[str]:
    """Logs the steps first+1..last in another process, as a run that resumes from `first`.

    `more`: settings of `log`, and `environment`.
    """
    environment = {**ENVIRONMENT, "WANDB_API_KEY": KEY, **more.pop("environment", {})}
    arguments = json.dumps({"run": str(run), "first": first, "last": last, "killed": killed, "log": more})
    return subprocess.run(
        [sys.executable, "-m", "tests.training.callbacks.wandb_life", arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=80,  # less than W&B's own timeouts: 90 s at the start and none at the end
    )


def main(run: str, first: int, last: int, killed: bool, log: dict[str, Any]) -> None:
    Path(run).mkdir(exist_ok=True)
    chosen = loggers(config(**log), Path(run), first)
    for logger in chosen:
        _ = getattr(logger, "experiment", None)  # as Lightning does
    for step in range(first + 1, last + 1):
        for logger in chosen:
            logger.log_metrics({"loss": 1 / step}, step=step)
    for logger in chosen:
        logger.log_metrics({"val_loss": 2.0}, step=last)
    if killed:
        os._exit(9)
    for logger in chosen:
        logger.finalize("success")


def records(file: Path) -> Iterator[Any]:
    """Yields the records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = file.read_bytes()
    place = 7
    whole = b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def rows(file: Path) -> list[dict[str, Any]]:
    """Returns the logged columns, without those of W&B except the step."""
    found = []
    for record in records(file):
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found.append({name: value for name, value in items.items() if name == "_step" or name[0] != "_"})
    return found


if __name__ == "__main__":
    with console("gen1-train"):
        main(**json.loads(sys.argv[1]))

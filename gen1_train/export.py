"""`gen1-export`: a checkpoint as a folder for others, checked before the folder gets its name."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gen1_train.cli import start
from gen1_train.cli.app import run_app
from gen1_train.errors import UserError
from gen1_train.exporting.card import CARD, card
from gen1_train.system.console import ConsoleConfig

NO_PRIOR = "none"

logger = logging.getLogger(__name__)


@dataclass
class ExportConfig:
    checkpoint: str | None = None  # a checkpoint folder, or a run folder (its newest); of any stage
    output: str | None = None  # the folder to write; it must not exist yet
    prior: str | None = None  # run folder of stage=prior; null: as gen1-edit finds it; none: export without one
    weights: str = "ema"  # which of its weights: ema (the first average, if there is one), raw, or an average's decay
    log: ConsoleConfig = field(default_factory=ConsoleConfig)  # lines on the terminal

    def destinations(self) -> list[tuple[str, Path]]:
        """The folder to write and the setting that names it."""
        return [("output", Path(self.output))] if self.output else []

    def check(self) -> None:
        """Raises UserError if a setting is missing, or if the output exists."""
        for name in ("checkpoint", "output"):
            if getattr(self, name) is None:
                raise UserError(f"{name} is not given: add {name}=…")
        output = Path(str(self.output))
        if output.exists() or output.is_symlink():
            raise UserError(f"output={output} exists already: give another folder, or remove it")


def export(config: ExportConfig) -> None:
    """Writes one checkpoint for others. Raises UserError; the output is whole and checked, or does not exist."""
    config.check()

    from gen1_train.exporting.folder import WHOLE, read_source, write_checked
    from gen1_train.exporting.prior import find_prior, write_prior

    output = Path(str(config.output))
    source = read_source(Path(str(config.checkpoint)), config.weights)
    prior = find_prior(source.checkpoint, config.prior) if config.prior != NO_PRIOR else None
    logger.info(source.summary())
    with atomic_folder(output) as folder:
        spatial, whole = write_checked(source, folder)
        if prior is not None:
            write_prior(prior, folder / WHOLE)
            logger.info(f"{WHOLE}/prior/ is {prior.path}, for edits by prompt")
        elif source.stage.structure:
            logger.warning("without a prior, the exported model edits by image= alone: prior=RUN names one")
        (folder / CARD).write_text(card(source, spatial, whole, prior is not None))
    logger.info("exported to %s; %s explains how to load it", output, output / CARD)


@contextmanager
def atomic_folder(output: Path) -> Iterator[Path]:
    """Yields a hidden folder next to `output`, which gets its name at the end or is removed. Raises UserError.

    What a killed export has left in it is removed; one that is running is not disturbed.
    """
    from safetensors import SafetensorError

    from gen1_train.system.files import refuse_link, sync
    from gen1_train.system.locks import LOCK, Lock
    from gen1_train.system.processes import leave_with

    temporary = output.with_name(f".{output.name}.tmp")
    refuse_link(temporary)
    try:
        with Lock(temporary, "wait until it has ended, or give another output=", leave_with) as lock:
            try:
                for path in temporary.iterdir():
                    if path.is_dir():
                        shutil.rmtree(path)
                    elif path.name != LOCK:
                        path.unlink()
                yield temporary
                for path in temporary.rglob("*"):
                    sync(path)
                lock.release()
                os.replace(temporary, output)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    except (OSError, SafetensorError) as error:
        raise UserError(f"output={output} cannot be written: {error}") from error


def main() -> None:
    run_app("gen1-export", "export", ExportConfig, export)


if __name__ == "__main__":
    start.export()

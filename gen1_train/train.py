"""`gen1-train`: runs a training stage, or one of COMMANDS."""

import sys
from pathlib import Path

from gen1_train.cli import start
from gen1_train.cli.app import run_app
from gen1_train.cli.completion import complete, typed_arguments
from gen1_train.cli.help import help_topic
from gen1_train.system.signals import signals_blocked

COMMANDS = {
    "stage=prior": "trains the prior from CLIP text to CLIP image embeddings, so that gen1-edit takes prompt=",
    "stage=customize": "fine-tunes a finished stage 5 on images=FOLDER, 15 to 30 of one subject: docs/customize.md",
    "replay=FILE": "repeats a step that the guard recorded (RUN/guard/step-…/guard.json), on one process",
    "report=RUN": "writes an HTML page about a run folder or a run tree, from its metrics.csv",
    "dashboard=ENTITY/PROJECT": "saves the same panels as a view of a W&B project",
}
# what --help shows of their settings
FIRST = (
    "data.root",
    "name",
    "output",
    "init.from",
    "init.checkpoint",
    "stage.steps",
    "data.batch_clips",
    "optim.lr",
    "trainer.devices",
    "trainer.nodes",
    "trainer.accumulate",
    "images",
    "customize.lora_rank",
    "plan_only",
)
PRIOR_FIRST = (
    "data.root",
    "name",
    "output",
    "stage.steps",
    "data.batch",
    "optim.lr",
    "optim.warmup_steps",
    "prior.width",
    "prior.layers",
    "sampling.candidates",
    "trainer.accelerator",
    "trainer.precision",
    "validation.every",
)


def main() -> None:
    """Runs the command that a setting names, or a stage. It imports only what that needs."""
    words = typed_arguments()
    chosen = {word.partition("=")[0] for word in words if "=" in word}
    topic = help_topic(words)
    if topic in ("report", "replay", "dashboard", "prior"):  # gen1-train --help report
        chosen.add(topic)
        sys.argv[1:] = ["--help"]
    if "report" in chosen:
        from gen1_train.reporting.page import RunReportConfig, report

        return run_app("gen1-train", "run_report", RunReportConfig, report)
    if "replay" in chosen:
        from gen1_train.training.replay import ReplayConfig, replay

        return run_app("gen1-train", "replay", ReplayConfig, replay)
    if "dashboard" in chosen:
        from gen1_train.reporting.dashboard import DashboardConfig, dashboard

        return run_app("gen1-train", "dashboard", DashboardConfig, dashboard)
    with signals_blocked():  # starts multiprocessing's tracker, which has to live as long as this process
        pass
    train_stage(prior="stage=prior" in words or "prior" in chosen)


def train(*settings: str) -> Path:
    """Trains a stage, or the prior, and returns its run folder; a run that has begun is resumed.

    `settings`: those of gen1-train's command line, such as "stage=4". On several GPUs, start your script with torchrun,
    so that each process calls this function. Raises UserError.
    """
    from gen1_train.cli.compose import compose_config
    from gen1_train.training.stages import run_folder

    if "stage=prior" in settings:
        from gen1_train.training.prior.config import PriorTrainConfig
        from gen1_train.training.prior.run import train_prior

        prior = compose_config("train_prior", PriorTrainConfig, settings)
        train_prior(prior)
        return run_folder(prior.tree, prior.stage.name)
    from gen1_train.training.config import TrainConfig
    from gen1_train.training.run import train as run_stage

    config = compose_config("train", TrainConfig, settings)
    run_stage(config)
    return run_folder(config.tree, config.stage.name)


def train_stage(prior: bool) -> None:
    """Runs a stage, or the prior, which has settings of its own."""
    if prior:
        if complete("train_prior"):
            return
        from gen1_train.training.prior.config import PriorTrainConfig
        from gen1_train.training.prior.run import train_prior

        return run_app("gen1-train", "train_prior", PriorTrainConfig, train_prior, ranks=True, first=PRIOR_FIRST)
    if complete("train", commands=list(COMMANDS)):
        return
    from gen1_train.training.config import TrainConfig
    from gen1_train.training.run import train

    return run_app("gen1-train", "train", TrainConfig, train, ranks=True, first=FIRST, commands=COMMANDS)


if __name__ == "__main__":
    start.train()

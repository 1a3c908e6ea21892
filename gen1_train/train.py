"""`gen1-train`: one training stage, or what a first setting of COMMANDS asks for."""

import sys

from gen1_train.cli import run_app
from gen1_train.stop import STOP

COMMANDS = {
    "stage=prior": "learns CLIP image embeddings from CLIP text embeddings, so that gen1-edit takes prompt=",
    "replay=FILE": "runs a step that the guard has recorded (RUN/guard/step-…/guard.json) again, on one process",
    "report=RUN": "one HTML page about a run folder or a run tree: all panels, from its metrics.csv",
    "dashboard=ENTITY/PROJECT": "the same panels as a saved view of a W&B project",
}


def main() -> None:
    """Runs the command that a setting names, else a stage; what is not needed is not imported."""
    for argument in sys.argv[1:]:
        match argument.partition("="):
            case "report", "=", _:
                from gen1_train.training.report_page import RunReportConfig, report

                return run_app("gen1-train", "run_report", RunReportConfig, report)
            case "replay", "=", _:
                from gen1_train.training.replay import ReplayConfig, replay

                return run_app("gen1-train", "replay", ReplayConfig, replay)
            case "dashboard", "=", _:
                from gen1_train.training.dashboard import DashboardConfig, dashboard

                return run_app("gen1-train", "dashboard", DashboardConfig, dashboard)
    STOP.listen()  # before torch is imported, which takes seconds
    try:
        train_stage(prior="stage=prior" in sys.argv[1:])
    finally:
        STOP.end()
    if {"--help", "-h"} & set(sys.argv[1:]) and "stage=prior" not in sys.argv[1:]:
        print(command_list())


def train_stage(prior: bool) -> None:
    """A stage of the chain, or the prior, which has settings of its own."""
    if prior:
        from gen1_train.training.prior_config import PriorTrainConfig
        from gen1_train.training.prior_run import train_prior

        return run_app("gen1-train", "train_prior", PriorTrainConfig, train_prior)
    from gen1_train.config import TrainConfig
    from gen1_train.training.run import train

    return run_app("gen1-train", "train", TrainConfig, train)


def command_list() -> str:
    """What stands at the end of `gen1-train --help`."""
    lines = [f"  {setting:25s} {meaning}" for setting, meaning in COMMANDS.items()]
    return "\n".join(["", "instead of one of the stages 1 to 5 (each with a --help of its own):", *lines])


if __name__ == "__main__":
    main()

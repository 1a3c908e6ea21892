"""`gen1-train`: one training stage, or what a first setting of COMMANDS asks for."""

import sys

from gen1_train.cli import run_app
from gen1_train.stop import STOP

COMMANDS = {
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
    from gen1_train.config import TrainConfig
    from gen1_train.training.run import train

    try:
        run_app("gen1-train", "train", TrainConfig, train)
    finally:
        STOP.end()
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(command_list())


def command_list() -> str:
    """What stands at the end of `gen1-train --help`."""
    lines = [f"  {setting:25s} {meaning}" for setting, meaning in COMMANDS.items()]
    return "\n".join(["", "instead of a stage (each with a --help of its own):", *lines])


if __name__ == "__main__":
    main()

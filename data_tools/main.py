"""The `gen1-data` command: makes a shard set (data_tools.prepare), or runs the command named before the settings."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from data_tools.commands import COMMANDS
from gen1_train.cli import start
from gen1_train.cli.app import run_app
from gen1_train.cli.completion import complete, typed_arguments
from gen1_train.cli.help import help_topic
from gen1_train.system.console import ConsoleConfig, show


def main() -> None:
    """Runs the command that the first argument names."""
    words = typed_arguments()
    word = words[0] if words else ""
    if (topic := help_topic(words)) in COMMANDS:  # gen1-data --help verify
        word = str(topic)
        sys.argv[1:] = [word, "--help"]
    if word in COMMANDS:
        if sys.argv[1] == word:  # not while a shell completes
            del sys.argv[1]
        run_command(word)
    elif word and "=" not in word and word[0] not in "-+~":  # those are settings and Hydra's overrides
        known = ", ".join(COMMANDS)
        print(f"gen1-data: error: there is no command {word}: give settings, KEY=VALUE, or {known}", file=sys.stderr)
        sys.exit(2)
    elif not complete("data", commands=list(COMMANDS)):
        from data_tools import prepare

        prepare.main()


def run_command(word: str) -> None:
    """Runs one of the COMMANDS. It imports nothing that the command does not need, so that --help is quick."""
    match word:
        case "report":
            run_app("gen1-data report", "report", ReportConfig, report)
        case "verify":
            from data_tools.sets import verify

            verify.main()
        case "order":
            from data_tools.sets import order

            order.main()
        case "refresh":
            from data_tools.sets import refresh

            refresh.main()


@dataclass
class ReportConfig:
    output: str = MISSING  # folder of the shard set
    samples: int = 24  # number of random samples on the page
    seed: int = 0  # selects the random samples
    log: ConsoleConfig = field(default_factory=ConsoleConfig)  # lines on the terminal


def report(config: ReportConfig) -> None:
    """Writes the page of a set and prints its path. Raises UserError."""
    from data_tools.sets.report import write_report

    show(str(write_report(Path(config.output), config.samples, config.seed)))


if __name__ == "__main__":
    start.data()

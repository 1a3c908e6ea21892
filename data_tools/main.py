"""`gen1-data`: makes a shard set (data_tools.prepare), or does what a word before the settings says."""

import sys
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from gen1_train.cli import run_app

COMMANDS = {
    "report": "one HTML page about a set: counts, what was dropped and why, histograms, random samples",
    "verify": "read every member of a set again, and list what is not as it was frozen",
    "order": "print which samples a training step reads",
    "refresh": "compute one layer of a set anew, into a new set",
}


def main() -> None:
    """Runs the command that the first argument names."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word in COMMANDS:
        del sys.argv[1]
        run_command(word)
    elif word and "=" not in word and word[0] not in "-+~":  # those are Hydra's, and settings
        known = ", ".join(COMMANDS)
        print(f"gen1-data: error: there is no command {word}: give settings, KEY=VALUE, or {known}", file=sys.stderr)
        sys.exit(2)
    else:
        from data_tools import prepare

        prepare.main()
        if {"--help", "-h"} & set(sys.argv[1:]):
            print(command_list())


def run_command(word: str) -> None:
    """Runs one of the COMMANDS; what it does not need is not imported, so that --help is quick."""
    match word:
        case "report":
            run_app("gen1-data report", "report", ReportConfig, report)
        case "verify":
            from data_tools import verify

            verify.main()
        case "order":
            from data_tools import order

            order.main()
        case "refresh":
            from data_tools import refresh

            refresh.main()


def command_list() -> str:
    """What stands at the end of `gen1-data --help`."""
    lines = [f"  {word:12s} {meaning}" for word, meaning in COMMANDS.items()]
    return "\n".join(["", "other commands (gen1-data COMMAND KEY=VALUE …, each with a --help of its own):", *lines])


@dataclass
class ReportConfig:
    output: str = MISSING  # folder of the shard set
    samples: int = 24  # random samples on the page
    seed: int = 0  # of the choice of samples


def report(config: ReportConfig) -> None:
    """Writes the page of a set and says where it is. Raises UserError."""
    from data_tools.report import write_report

    print(write_report(Path(config.output), config.samples, config.seed))


if __name__ == "__main__":
    main()

"""The first code of every command: it listens for signals before anything that takes time is imported."""

import sys
from importlib import import_module

from gen1_train.system.signals import STOP, Interrupted


def train() -> None:
    """`gen1-train`; this process is often a rank."""
    start("gen1-train", "gen1_train.train", is_rank=True)


def edit() -> None:
    """`gen1-edit`."""
    start("gen1-edit", "gen1_train.edit")


def evaluate() -> None:
    """`gen1-eval`."""
    start("gen1-eval", "gen1_train.evaluate")


def export() -> None:
    """`gen1-export`."""
    start("gen1-export", "gen1_train.export")


def data() -> None:
    """`gen1-data`."""
    start("gen1-data", "data_tools.main")


def start(command: str, module: str, is_rank: bool = False) -> None:
    """Imports a module and calls its `main`. A signal ends the process with one line, also during the import."""
    STOP.listen()
    try:
        try:
            main = import_module(module).main
            if is_rank:
                from gen1_train.system.processes import end_with_launcher, run_without_finalizing

                end_with_launcher()
                run_without_finalizing(main)
            else:
                main()
        except Exception:  # an import that is interrupted may fail with another error, as numpy's does
            STOP.check()
            raise
        STOP.check()
    except Interrupted as error:  # `run_app` has not begun; it prints the line otherwise
        STOP.caught()
        print(f"{command}: {error}", file=sys.stderr)
        sys.exit(error.code)
    finally:
        STOP.ignore()

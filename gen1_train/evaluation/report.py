"""The report, step=report: all results as results.jsonl, summary.json, the table, the plots and the page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gen1_train.errors import UserError
from gen1_train.evaluation.methods import Setting, SweepConfig
from gen1_train.evaluation.page import render
from gen1_train.evaluation.pairs import Pair
from gen1_train.evaluation.plots import draw_plots
from gen1_train.evaluation.results import RESULTS, read_results, units_of
from gen1_train.evaluation.summary import markdown, summarize
from gen1_train.system.files import write_atomically


def write_report(
    output: Path, plan: dict[str, Any], pairs: Sequence[Pair], settings: Sequence[Setting], sweep: SweepConfig
) -> str:
    """Writes the report; returns the table as Markdown. `plan`: the content of evaluation.json.

    Raises UserError if results are missing or damaged, or if the disk is full.
    """
    rows = read_results(output, units_of(pairs, settings))
    summary = summarize(rows, settings, sweep.seed)
    table = markdown(summary)
    facts = {
        "pairs": f"{len(pairs):,}",
        "settings": f"{len(settings) - 1:,}",
        "steps": f"{sweep.steps} {sweep.solver}",
        "omega": f"{sweep.omega:g}",
        "precision": plan["precision"],
        "checkpoint": f"stage {plan['checkpoint']['stage']}, step {plan['checkpoint']['step']:,}",
    }
    kept = plan["settings"]["keep_videos"]
    try:
        write_atomically(output / RESULTS, "".join(json.dumps(row) + "\n" for row in rows).encode())
        write_atomically(output / "summary.json", json.dumps({**plan, "summary": summary}, indent=1).encode())
        write_atomically(output / "table.md", table.encode())
        draw_plots(summary, {"omega_t": sweep.fixed_omega_t, "t_s": sweep.fixed_t_s}, output / "plots")
        write_atomically(output / "index.html", render(output, facts, summary, pairs, settings, kept))
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error}") from error
    return table

"""step=report: all results -> results.jsonl, summary.json, the table, the plots and the page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gen1_train.errors import UserError
from gen1_train.evaluation.methods import Setting, SweepConfig, held
from gen1_train.evaluation.page import render
from gen1_train.evaluation.pairs import Pair
from gen1_train.evaluation.plots import draw_plots
from gen1_train.evaluation.results import RESULTS, read_results, units_of
from gen1_train.evaluation.summary import markdown, summarise
from gen1_train.files import write_atomically


def write_report(
    output: Path, plan: dict[str, Any], pairs: Sequence[Pair], settings: Sequence[Setting], sweep: SweepConfig
) -> str:
    """Returns the table as Markdown. Raises UserError if results are missing or damaged, or the disk is full.

    `plan`: what evaluation.json says.
    """
    rows = read_results(output, units_of(pairs, settings))
    summary = summarise(rows, settings, sweep.seed)
    table = markdown(summary)
    facts = {
        "pairs": f"{len(pairs):,}",
        "settings": f"{len(settings) - 1:,}",
        "steps": f"{sweep.steps} {sweep.solver}",
        "omega": f"{sweep.omega:g}",
        "of the checkpoint": f"stage {plan['checkpoint']['stage']}, step {plan['checkpoint']['step']:,}",
    }
    kept = plan["settings"]["keep_videos"]
    try:
        write_atomically(output / RESULTS, "".join(json.dumps(row) + "\n" for row in rows).encode())
        write_atomically(output / "summary.json", json.dumps({**plan, "summary": summary}, indent=1).encode())
        write_atomically(output / "table.md", table.encode())
        draw_plots(summary, {"omega_t": held(sweep.omega_t, 1.0), "t_s": held(sweep.t_s, 0)}, output / "plots")
        write_atomically(output / "index.html", render(output, facts, summary, pairs, settings, kept))
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error}") from error
    return table

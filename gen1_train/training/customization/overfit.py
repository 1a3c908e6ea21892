"""Warns when a customization has trained for too long: when validation losses rise above their best."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gen1_train.training.checkpoints.checkpoint import checkpoints_dir
from gen1_train.training.checkpoints.info import STEP
from gen1_train.training.customization.customize import CustomizeConfig

logger = logging.getLogger(__name__)


@dataclass
class Best:
    loss: float
    step: int
    above: int = 0  # validations in a row since then that exceeded it by more than the config's share
    warned: bool = False


class Overfit:
    """Observes every validation, and warns once for each best that training has passed, with a way back."""

    def __init__(
        self,
        config: CustomizeConfig,
        meanings: Mapping[str, str],
        run: Path,
        past: Iterable[Mapping[str, str]] = (),
    ) -> None:
        """`meanings`: column of metrics.csv -> what its rise means; `past`: the rows so far, if the run resumes."""
        self.config = config
        self.meanings = meanings
        self.run = run
        self._best: dict[str, Best] = {}
        for row in past:
            for column in self.meanings:
                if row.get(column):
                    self._update(column, float(row[column]), int(row["step"]))

    def observe(self, row: Mapping[str, float], step: int) -> dict[str, float]:
        """Takes the losses of a validation, and returns columns to log: by what share each exceeds its best."""
        shares = {}
        for column in self.meanings:
            if column in row:
                best = self._update(column, row[column], step)
                shares[f"{column}_above_best"] = row[column] / best.loss - 1
                if best.above >= self.config.patience and not best.warned:
                    best.warned = True
                    logger.warning(self._message(column, row[column], step, best))
        return shares

    def _update(self, column: str, loss: float, step: int) -> Best:
        best = self._best.get(column)
        if best is None or loss < best.loss:
            best = self._best[column] = Best(loss, step)
        else:
            best.above = best.above + 1 if loss > best.loss * (1 + self.config.rise) else 0
        return best

    def _message(self, column: str, loss: float, step: int, best: Best) -> str:
        return (
            f"over-fitting: {column} was {best.loss:.4g} at step {best.step} and is {loss:.4g} at step {step}, "
            f"more than {self.config.rise:.0%} above it in {best.above} validations in a row: "
            f"{self.meanings[column]}; {self._remedy(best.step)}"
        )

    def _remedy(self, best: int) -> str:
        named = ((STEP.fullmatch(path.name), path) for path in checkpoints_dir(self.run).glob("step-*"))
        steps = {int(found[1]): path for found, path in named if found}
        if best == 0:
            return "no step has improved it: read more prior data (data.root=, data.image_ratio=), or lower optim.lr"
        if not steps:
            return f"there is no checkpoint yet: train again with stage.steps={best} and another name="
        nearest = min(steps, key=lambda step: (abs(step - best), step))
        note = "" if nearest == best else " (the nearest one that was kept, see checkpoint.keep)"
        return f"use the checkpoint of step {nearest}{note}: gen1-edit checkpoint={steps[nearest]}"

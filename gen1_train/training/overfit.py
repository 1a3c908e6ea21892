"""Says when a customization has gone on for too long: by validation losses that rise above their best."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gen1_train.training.checkpoint import checkpoints_dir
from gen1_train.training.customize import CustomizeConfig


@dataclass
class Best:
    loss: float
    step: int
    above: int = 0  # validations in a row, since, that were above it by more than the config's share
    said: bool = False


class Overfit:
    """Hears every validation; warns once for each best that is left behind, and names a way back."""

    def __init__(
        self,
        config: CustomizeConfig,
        meanings: Mapping[str, str],
        run: Path,
        say: Callable[[str], None],
        past: Iterable[Mapping[str, str]] = (),
    ) -> None:
        """`meanings`: column of metrics.csv -> what its rise means; `past`: its rows so far, for a resumed run."""
        self.config, self.meanings, self.run, self.say = config, meanings, run, say
        self._best: dict[str, Best] = {}
        for row in past:
            for column in self.meanings:
                if row.get(column):
                    self._hear(column, float(row[column]), int(row["step"]))

    def heard(self, row: Mapping[str, float], step: int) -> dict[str, float]:
        """Takes in the losses of one validation -> of each that is watched its share above its best, to be logged."""
        shares = {}
        for column in self.meanings:
            if column in row:
                best = self._hear(column, row[column], step)
                shares[f"{column}_above_best"] = row[column] / best.loss - 1
                if best.above >= self.config.patience and not best.said:
                    best.said = True
                    self.say(f"warning: {self._line(column, row[column], step, best)}")
        return shares

    def _hear(self, column: str, loss: float, step: int) -> Best:
        best = self._best.get(column)
        if best is None or loss < best.loss:
            best = self._best[column] = Best(loss, step)
        else:
            best.above = best.above + 1 if loss > best.loss * (1 + self.config.rise) else 0
        return best

    def _line(self, column: str, loss: float, step: int, best: Best) -> str:
        return (
            f"over-fitting: {column} was {best.loss:.4g} at step {best.step} and is {loss:.4g} at step {step}, "
            f"for {best.above} validations more than {self.config.rise:.0%} above it: {self.meanings[column]}; "
            f"{self._way_back(best.step)}"
        )

    def _way_back(self, best: int) -> str:
        steps = {int(path.name.removeprefix("step-")): path for path in checkpoints_dir(self.run).glob("step-*")}
        if best == 0:
            return "no step has made it better: read more prior data (data.root=, data.image_ratio=), or lower optim.lr"
        if not steps:
            return f"no checkpoint is there yet: train anew with stage.steps={best} and another name="
        nearest = min(steps, key=lambda step: (abs(step - best), step))
        kept = "" if nearest == best else " (the nearest that checkpoint.keep has left)"
        return f"to go back take that of step {nearest}{kept}: gen1-edit checkpoint={steps[nearest]}"

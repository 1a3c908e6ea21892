"""The page of the ablations: pairs of equal case and seed, and words that the numbers bear out."""

from pathlib import Path

import numpy as np

from miniature.ablate.arms import ARMS, BASE
from miniature.ablate.lab import AT_7, VALUES, Row
from miniature.ablate.page import cost, differences, page, write_page

NAMES = (*VALUES, *(f"{name}@7" for name in AT_7))


def row(arm: str, seed: int, shift: float = 0.0, seconds: float = 100.0) -> Row:
    """Cases differ much, and an arm differs from the base by `shift` in each."""
    noise = np.random.default_rng(seed).uniform(0, 1, (len(NAMES), 20))
    values = {name: [float(each) + shift for each in numbers] for name, numbers in zip(NAMES, noise)}
    return Row(arm, seed, {"3": 1}, ["a=b"], seconds, values)


def test_differences_are_paired_by_case_and_seed() -> None:
    base = {seed: row(BASE, seed) for seed in (0, 1)}
    found = differences([row("eps", seed, 0.1) for seed in (1, 0)], base, "hit")
    assert abs(found["mean"] - 0.1) < 1e-6 and found["interval"][1] - found["interval"][0] < 1e-3
    assert found["cases"] == 40


def test_the_page_names_what_got_better_and_worse() -> None:
    rows = [row(BASE, 0), row(BASE, 1), row("eps", 0, 0.1), row("eps", 1, 0.1, seconds=150), row("x0", 0), row("x0", 5)]
    text = "".join(page(rows))
    (eps,) = (line for line in text.splitlines() if line.startswith("- **the network predicts eps**"))
    assert "better in prompted color, mask IoU, depth correlation, frame consistency" in eps
    assert "worse in color error (Lab), mask IoU at t_s = 7, warp error" in eps and "`a=b`" in eps
    (x0,) = (line for line in text.splitlines() if line.startswith("- **the network predicts x0**"))
    assert "no difference is shown" in x0
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 5 and len({line.count("|") for line in table}) == 1
    assert "| the network predicts x0 | 1 |" in text  # seed 5 has no base
    assert "**0.100 [0.100, 0.100]**" in text and " 1.25 |" in text


def test_values_of_another_structure_are_not_compared() -> None:
    (table,) = (line for line in page([row(BASE, 0), row("edges", 0, 0.1)]) if "Canny edges as structure | 1 |" in line)
    cells = next(line for line in table.splitlines() if "Canny" in line).split(" | ")
    assert cells.count("—") == 1 and sum(cell.startswith("**0.100") for cell in cells) == len(NAMES) - 1


def test_the_page_says_which_arms_have_not_run() -> None:
    assert "Not run yet: x0, zero-snr" in "".join(page([row(BASE, 0), row("eps", 0)]))
    assert "Not run yet" not in "".join(page([row(arm.name, 0) for arm in ARMS]))


def test_arms_that_train_nothing_have_no_cost() -> None:
    assert cost([row("rescale", 0, seconds=0.0)], {0: row(BASE, 0)}) == "—"


def test_a_page_without_rows_says_so(tmp_path: Path) -> None:
    write_page(tmp_path / "page.md", [])
    assert "No run is finished yet" in (tmp_path / "page.md").read_text()

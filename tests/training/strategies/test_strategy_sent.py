"""What the table of docs/strategies.md says that a step sends, against the counted collectives of two ranks."""

import re
from itertools import product

import pytest

from benchmarks.communication import Case, Sent, sent
from tests.training.strategies.test_strategy import DOCS

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp")
ACCUMULATE = (1, 4)  # the last two columns
SETTINGS = ((1, "fp32"), (4, "fp32"), (4, "bf16"))  # accumulate, reduce
UNUSED = 0.04  # share of the weights without a gradient: with one content token, queries and keys of cross-attention


@pytest.fixture(scope="module")
def counted() -> dict[Case, Sent]:
    return sent([Case(name, accumulate, reduce=reduce) for name, (accumulate, reduce) in product(STRATEGIES, SETTINGS)])


def documented() -> dict[str, list[dict[str, float]]]:
    """By strategy, the numbers of each of the last two columns: of gradients, of weights."""
    rows = [line.split("|") for line in DOCS.read_text().splitlines() if re.match(r"\| `\w+` \|.*\|$", line)]
    pattern = re.compile(r"([\d.]+) (gradients|weights)")
    cells = {row[1].strip(" `"): row[-3:-1] for row in rows if len(row) == 12}
    return {
        name: [{kind: float(number) for number, kind in pattern.findall(cell)} for cell in columns]
        for name, columns in cells.items()
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("accumulate", "reduce"), SETTINGS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_sends_what_the_table_says(counted, strategy, accumulate, reduce):
    said = documented()[strategy][ACCUMULATE.index(accumulate)]
    real = counted[Case(strategy, accumulate, reduce=reduce)]
    assert real.gradients == pytest.approx(said["gradients"], rel=UNUSED)
    assert real.weights == pytest.approx(said.get("weights", 0.0), rel=UNUSED, abs=0.01)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_zero2_zero3_and_fsdp_send_more_when_micro_batches_accumulate(counted):
    grown = {name: counted[Case(name, 4)].bytes / counted[Case(name, 1)].bytes for name in STRATEGIES}
    assert grown["ddp"] == pytest.approx(1, abs=0.01) and grown["zero1"] == pytest.approx(1, abs=0.01)
    assert grown["zero2"] > 2.5 and grown["zero3"] == pytest.approx(4, abs=0.1)
    assert grown["fsdp"] == pytest.approx(4, abs=0.01)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("reduce", ["fp32", "bf16"])
def test_a_step_sends_the_bytes_per_weight_that_the_docs_say(counted, reduce):
    """A gradient in float32 has twice the bytes of one in bfloat16."""
    row = re.search(rf"\| `{reduce}` \|" + r" (\d+) \|" * len(STRATEGIES), DOCS.read_text())
    assert row is not None
    said = dict(zip(STRATEGIES, map(int, row.groups()), strict=True))
    assert said == {name: round(counted[Case(name, 4, reduce=reduce)].bytes) for name in STRATEGIES}


def test_every_strategy_is_in_the_table():
    assert set(documented()) == {"single", *STRATEGIES}

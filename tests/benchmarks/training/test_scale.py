"""What a start costs a cluster: the table of docs/training.md has the counted numbers."""

import re

import pytest

from benchmarks.training.scale import RANKS, watch
from tests.running import REPOSITORY


@pytest.mark.parametrize("ranks", RANKS)
def test_the_documented_requests_are_those_of_the_simulation(ranks: int) -> None:
    counted = watch(ranks)
    row = re.search(
        rf"\| {ranks} \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) s \|", (REPOSITORY / "docs/training.md").read_text()
    )
    assert row is not None
    at_start, per_second, news = (float(number.replace(",", "")) for number in row.groups())
    assert at_start == counted["store_requests_at_start"]
    assert (per_second, news) == (counted["store_requests_per_second"], counted["news_takes_s"])

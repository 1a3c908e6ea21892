"""Image steps: an exact share or independent draws; their number before any step is compared with counting."""

from fractions import Fraction

import pytest

from gen1_train.data.mix import CHUNK, MIXES, ExactMix, IndependentMix, share_of
from gen1_train.errors import UserError

EIGHTH = Fraction(1, 8)


@pytest.mark.parametrize("mix", MIXES.values())
@pytest.mark.parametrize("share", [EIGHTH, Fraction(3, 20), Fraction(0), Fraction(1)])
def test_images_before_agrees_with_counting(mix: type, share: Fraction) -> None:
    mixed = mix(5, share)
    count = 0
    for step in range(500):
        assert mixed.images_before(step) == count
        count += mixed.is_image(step)
    assert (count == 0) == (share == 0) and (count == 500) == (share == 1)


def test_independent_draws_have_the_share_on_average_but_not_in_each_block() -> None:
    independent = IndependentMix(5, EIGHTH)
    assert abs(independent.images_before(200_000) - 25_000) < 600  # standard deviation 148
    per_block = {
        independent.images_before(8 * block + 8) - independent.images_before(8 * block) for block in range(200)
    }
    assert {0, 1, 2, 3} <= per_block
    exact = ExactMix(5, EIGHTH)
    assert {exact.images_before(8 * block + 8) - exact.images_before(8 * block) for block in range(200)} == {1}


def test_images_before_does_not_depend_on_earlier_calls() -> None:
    """The counts of chunks are cached and must not depend on how they were reached."""
    fresh, used = IndependentMix(5, EIGHTH), IndependentMix(5, EIGHTH)
    far = 3 * CHUNK + 17
    used.images_before(7), used.images_before(5 * CHUNK)
    assert fresh.images_before(far) == used.images_before(far)
    assert fresh.images_before(far + 1) - fresh.images_before(far) == fresh.is_image(far)
    assert fresh.images_before(CHUNK + 1) - fresh.images_before(CHUNK - 1) == sum(
        map(fresh.is_image, (CHUNK - 1, CHUNK))
    )


@pytest.mark.parametrize("mix", MIXES.values())
def test_the_image_steps_depend_on_the_seed_alone(mix: type) -> None:
    one, same, two = ([mix(seed, EIGHTH).is_image(step) for step in range(200)] for seed in (1, 1, 2))
    assert one == same != two


@pytest.mark.parametrize(
    ("ratio", "share"),
    [(0, Fraction(0)), (1, Fraction(1)), (0.125, EIGHTH), (0.15, Fraction(3, 20)), (1 / 3, Fraction(1, 3))],
)
def test_a_ratio_becomes_the_nearest_fraction(ratio: float, share: Fraction) -> None:
    assert share_of(ratio) == share


@pytest.mark.parametrize("ratio", [0.0001, 0.9999])
def test_a_ratio_that_would_drop_a_kind_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match=rf"data\.image_ratio={ratio} is finer than 1 in 1000"):
        share_of(ratio)

"""Tests of guidance: Eq. 8 of the paper, and the passes that it takes."""

import pytest

from gen1_train.diffusion.guidance import GuidanceConfig, Term, terms

# (content, temporal)
CONTENT = (True, True)
EMPTY = (False, True)
FRAMES = (False, False)
FRAMES_CONTENT = (True, False)


def passes(config: GuidanceConfig, temporal: bool = True) -> list[tuple[bool, bool]]:
    return [(term.content, term.temporal) for term in terms(config, temporal)]


@pytest.mark.parametrize("omega", [0.0, 0.3, 1.0, 7.5])
@pytest.mark.parametrize("omega_t", [0.0, 0.5, 1.0, 1.5, 7.5])
def test_the_terms_sum_to_equation_8(omega: float, omega_t: float) -> None:
    mu = {CONTENT: 0.7, EMPTY: -0.2, FRAMES: 0.4}
    expected = mu[FRAMES] + omega_t * (mu[EMPTY] - mu[FRAMES]) + omega * (mu[CONTENT] - mu[EMPTY])
    parts = terms(GuidanceConfig(omega, omega_t))
    assert sum(term.weight * mu[term.content, term.temporal] for term in parts) == pytest.approx(expected, abs=1e-12)
    assert sum(term.weight for term in parts) == pytest.approx(1)


@pytest.mark.parametrize("omega", [0.0, 0.3, 1.0, 7.5])
def test_without_temporal_layers_the_terms_are_plain_guidance(omega: float) -> None:
    mu = {FRAMES_CONTENT: 0.7, FRAMES: 0.4}
    parts = terms(GuidanceConfig(omega, 1.3), temporal=False)
    expected = mu[FRAMES] + omega * (mu[FRAMES_CONTENT] - mu[FRAMES])
    assert sum(term.weight * mu[term.content, term.temporal] for term in parts) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("omega", "omega_t", "expected"),
    [
        (1, 1, [CONTENT]),
        (7.5, 1, [CONTENT, EMPTY]),
        (0, 1, [EMPTY]),
        (7.5, 1.5, [CONTENT, EMPTY, FRAMES]),
        (7.5, 0.5, [CONTENT, EMPTY, FRAMES]),
        (1.5, 1.5, [CONTENT, FRAMES]),
        (0, 0, [FRAMES]),
    ],
)
def test_terms_of_weight_zero_take_no_pass(omega: float, omega_t: float, expected: list[tuple[bool, bool]]) -> None:
    assert passes(GuidanceConfig(omega, omega_t)) == expected


def test_no_guidance_takes_one_pass_of_weight_one() -> None:
    assert terms(GuidanceConfig(1, 1)) == [Term(1, True, True)]
    assert terms(GuidanceConfig(0, 0)) == [Term(1, False, False)]
    assert terms(GuidanceConfig(1, 2), temporal=False) == [Term(1, True, False)]

"""Eq. 8 of the paper, written out, and the passes that it takes."""

import pytest

from gen1_train.diffusion.guidance import GuidanceConfig, Term, terms

CONTENT, EMPTY, FRAMES, FRAMES_CONTENT = (True, True), (False, True), (False, False), (True, False)


def passes(config: GuidanceConfig, temporal: bool = True) -> list[tuple[bool, bool]]:
    return [(term.content, term.temporal) for term in terms(config, temporal)]


@pytest.mark.parametrize("omega", [0.0, 0.3, 1.0, 7.5])
@pytest.mark.parametrize("omega_t", [0.0, 0.5, 1.0, 1.5, 7.5])
def test_it_is_equation_8(omega: float, omega_t: float) -> None:
    mu = {CONTENT: 0.7, EMPTY: -0.2, FRAMES: 0.4}
    expected = mu[FRAMES] + omega_t * (mu[EMPTY] - mu[FRAMES]) + omega * (mu[CONTENT] - mu[EMPTY])
    found = terms(GuidanceConfig(omega, omega_t))
    assert sum(term.weight * mu[term.content, term.temporal] for term in found) == pytest.approx(expected, abs=1e-12)
    assert sum(term.weight for term in found) == pytest.approx(1)


@pytest.mark.parametrize("omega", [0.0, 0.3, 1.0, 7.5])
def test_each_frame_alone_is_plain_guidance_without_temporal_layers(omega: float) -> None:
    mu = {FRAMES_CONTENT: 0.7, FRAMES: 0.4}
    found = terms(GuidanceConfig(omega, 1.3), temporal=False)
    expected = mu[FRAMES] + omega * (mu[FRAMES_CONTENT] - mu[FRAMES])
    assert sum(term.weight * mu[term.content, term.temporal] for term in found) == pytest.approx(expected, abs=1e-12)


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
def test_terms_of_weight_zero_cost_nothing(omega: float, omega_t: float, expected: list[tuple[bool, bool]]) -> None:
    assert passes(GuidanceConfig(omega, omega_t)) == expected


def test_no_guidance_is_one_pass_of_weight_one() -> None:
    assert terms(GuidanceConfig(1, 1)) == [Term(1, True, True)]
    assert terms(GuidanceConfig(0, 0)) == [Term(1, False, False)]
    assert terms(GuidanceConfig(1, 2), temporal=False) == [Term(1, True, False)]

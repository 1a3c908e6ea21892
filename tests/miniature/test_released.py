"""The released checkpoint itself: it fits the estimators beside it, and its edits show what was asked for."""

import numpy as np
import pytest

from gen1_train.editor import Gen1Editor
from miniature.cases import FIRST_SEED, Case, draw_case, render_case
from miniature.measure import measure_edit
from miniature.release import MEGABYTES, OUTPUT
from miniature.render import render_frame

CASES = 8


@pytest.fixture(scope="module")
def editor() -> Gen1Editor:
    return Gen1Editor.from_pretrained("miniature", "cpu")


def cases(solids: int) -> list[Case]:
    """The first cases with so many solids; of two, one is edited and the other can be mistaken for it."""
    found = (draw_case(FIRST_SEED + 1, number) for number in range(100))
    return [case for case in found if len(case.source().solids) == solids][:CASES]


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in OUTPUT.rglob("*") if path.is_file()) <= MEGABYTES * 1e6


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("solids", "least"), [(1, 6), (2, 4)])  # four of ten colours: by chance in 0.5 % of such tests
@pytest.mark.parametrize("by", ["picture", "text"])
def test_the_prompted_colour_comes(editor: Gen1Editor, by: str, solids: int, least: int) -> None:
    """docs/results.md has the shares over 64 cases with their intervals; these eight only say that it is the model."""
    hits, own, kept = [], [], []
    for case in cases(solids):
        frames = render_case(case.source(), 64, 112, supersample=2).frames
        content = (
            {"prompt": case.wanted().caption}
            if by == "text"
            else {"image": render_frame(case.prompt_scene(), 0.0, 256, 448).pixels}
        )
        measured = measure_edit(editor(frames, steps=10, solver="dpm++", omega=2, **content), case)
        hits.append(measured["hit"])
        own.append(measured["own"])
        kept.append(measured["mask_iou"])
    assert sum(hits) >= least and not any(own) and np.mean(kept) > 0.6

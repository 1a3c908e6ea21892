"""The panels cover every column, and docs/metrics.md agrees with them."""

import re

import pytest

from gen1_train.reporting.panels import OTHER, SECTIONS, Panel, Style, sections_for
from tests.running import REPOSITORY

DOCS = REPOSITORY / "docs" / "metrics.md"
PANELS = [panel for section in SECTIONS for panel in section.panels]
CONTRACT = [
    *("loss", "loss_image", "loss_video", "val_loss", "val_loss_ema", "grad_norm", "grad_norm_max", "lr"),
    *(f"{name}_t{quarter}" for name in ("loss", "val_loss", "val_loss_ema") for quarter in range(1, 5)),
    *(f"subject_loss{kind}" for kind in ("", "_ema")),
    *(f"{loss}{kind}_above_best" for loss in ("val_loss", "subject_loss") for kind in ("", "_ema")),
    *(f"loss_level_{level}" for level in range(8)),
    *("x_loss", "val_x_loss", "val_x_loss_ema", "epochs"),
    *(f"val_{score}{predictor}" for score in ("cosine", "own") for predictor in ("", "_ema", "_text", "_mean_image")),
    *("skipped_steps", "image_share", "content_dropped", "samples_replaced", "replaced_checksum", "replaced_read"),
    *("seconds", "samples_per_second", "frames_per_second", "tflops_per_second", "mfu", "mfu_peak", "data_wait"),
    *("time_forward", "time_backward", "time_optimizer", "time_ema", "time_checkpoint", "time_validation"),
    *("time_other", "slowest_rank", "slowest_excess", "memory_gigabytes"),
]


def documented() -> dict[str, tuple[str, str, str]]:
    """Returns column -> section, unit, panels, as in docs/metrics.md."""
    found: dict[str, tuple[str, str, str]] = {}
    section = ""
    for line in DOCS.read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        if line.startswith("| `"):
            columns, unit, measured, healthy, panels = (cell.strip() for cell in line.strip("|").split("|"))
            assert measured and healthy
            for column in re.findall(r"`([^`]+)`", columns):
                assert column not in found, f"{column} is listed twice"
                found[column] = (section, unit, panels)
    return found


def test_the_docs_agree_with_the_panels_on_every_column() -> None:
    defined: dict[str, tuple[str, str, str]] = {}
    for section in SECTIONS:
        for panel in section.panels:
            for column in panel.columns:
                before = defined[column][2] + ", " if column in defined else ""
                defined[column] = (section.title, panel.unit or "—", before + panel.title)
    assert documented() == defined


def test_every_column_that_a_run_logs_has_a_panel() -> None:
    shown = sections_for(CONTRACT)
    assert [section.title for section in shown] == [section.title for section in SECTIONS]
    assert {name for panel in PANELS for name in panel.matching(CONTRACT)} == set(CONTRACT)
    assert [panel for section in shown for panel in section.panels] == PANELS


def test_titles_are_unique_and_each_panel_has_a_description() -> None:
    assert len({panel.title for panel in PANELS}) == len(PANELS)
    assert all(panel.about.endswith(".") and "\n" not in panel.about for panel in PANELS)
    assert [panel.title for panel in PANELS if panel.style is Style.AREAS] == ["Where the time goes"]


def test_a_column_without_a_panel_gets_one_at_the_end() -> None:
    shown = sections_for(["step", "loss", "new_thing", "odd*name", "replaced_new"])
    assert [section.title for section in shown] == ["Loss", "Data", OTHER]
    assert [panel.title for panel in shown[-1].panels] == ["new_thing", "odd*name"]


def test_an_old_run_has_the_panels_of_its_columns() -> None:
    shown = sections_for(["loss", "seconds", "data_wait", "lr"])
    titles = [panel.title for section in shown for panel in section.panels]
    assert titles == ["Training loss", "Learning rate", "Where the time goes", "Waiting for data", "Time of a row"]


@pytest.mark.parametrize(
    ("patterns", "columns", "found"),
    [
        (("b", "a"), ["a", "b", "c"], ["b", "a"]),
        (("a", "a_*"), ["a_z", "a", "a_b", "ab"], ["a", "a_b", "a_z"]),
        (("a_*", "a_b"), ["a_b"], ["a_b"]),
        (("[a]",), ["a"], []),
    ],
)
def test_columns_of_a_panel_are_in_its_order(patterns: tuple[str, ...], columns: list[str], found: list[str]) -> None:
    assert Panel("title", patterns, "", "About.").matching(columns) == found

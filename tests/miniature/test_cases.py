"""Cases of edits, and their measures on frames whose truth is known."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from gen1_train.errors import UserError
from gen1_train.evaluation.methods import GEN1, INPUT, PER_FRAME, Setting
from gen1_train.evaluation.metrics import METRICS
from gen1_train.evaluation.pairs import read_pairs
from gen1_train.evaluation.results import RESULTS, Unit
from gen1_train.evaluation.summary import summarize
from gen1_train.video.encode import write_video
from miniature.cases import PAIRS, TEXT_PAIRS, draw_case, read_cases, render_case, write_cases
from miniature.measure import grabcut_mask, mask_iou, measure, measure_edit
from miniature.references import REFERENCES
from miniature.results import write_results
from miniature.texture_share import through_autoencoder
from miniature.world.scene import HELD_OUT, RICH, STYLES, TEXTURES

COUNT = 4
WANTED, OTHER = Setting(GEN1, 1.0, 0), Setting(PER_FRAME, t_s=0)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "cases"
    write_cases(folder, COUNT, size=(112, 64))
    return folder


def frames_of(case, scene):
    return render_case(scene, 64, 112, supersample=2).frames


def test_cases_depend_only_on_the_seed(cases):
    assert read_cases(cases) == [draw_case(900, index) for index in range(COUNT)]
    assert draw_case(901, 0) != draw_case(900, 0)
    for case in read_cases(cases):
        solids = case.source().solids
        assert all((solid.color, solid.shape) in HELD_OUT for solid in solids)
        assert solids[case.solid].color == case.own
        assert case.target not in {case.source().ground, *(solid.color for solid in solids)}


def test_cases_of_rich_scenes_are_stored_as_such_and_older_files_mean_plain_ones(tmp_path):
    write_cases(tmp_path, 2, size=(112, 64), style=RICH)
    assert read_cases(tmp_path) == [draw_case(900, index, style=RICH) for index in range(2)]
    assert "style" not in draw_case(900, 0).record()


@pytest.mark.parametrize("style", STYLES)
def test_a_prompt_picture_shares_only_the_caption_with_the_wanted_edit(style):
    for index in range(8):
        case = draw_case(900, index, style=style)
        wanted, other = case.wanted(), case.prompt_scene()
        assert other.caption == wanted.caption
        assert other.light != wanted.light and other.camera_turn != wanted.camera_turn
        for one, two in zip(wanted.solids, other.solids, strict=True):
            assert one.anchor != two.anchor and one.radius != two.radius and one.phase != two.phase


def test_gen1_eval_reads_the_lists(cases):
    pairs, texts = read_pairs(cases / PAIRS), read_pairs(cases / TEXT_PAIRS)
    for case, pair, text in zip(read_cases(cases), pairs, texts, strict=True):
        assert pair.prompt == text.prompt == case.wanted().caption
        assert Path(pair.video_path).is_file() and Path(str(pair.image_path)).is_file()
        assert text.image is None


def test_a_folder_holds_one_set_of_cases(cases):
    write_cases(cases, COUNT, size=(112, 64))
    with pytest.raises(UserError, match="holds other cases"):
        write_cases(cases, COUNT + 1, size=(112, 64))
    with pytest.raises(UserError, match="--seed 3"):
        write_cases(cases, COUNT, seed=3)
    with pytest.raises(UserError, match="--texture tartan"):
        write_cases(cases, COUNT, texture="tartan")


@pytest.mark.slow
def test_the_truth_has_the_wanted_color_and_the_input_does_not(cases):
    for case in read_cases(cases):
        truth = measure_edit(frames_of(case, case.wanted()), case)
        assert (truth["hit"], truth["own"], truth["colour"]) == (True, False, case.target)
        assert truth["mask_iou"] > 0.9 and truth["colour_error"] < 1 and truth["texture_hit"] is None
        assert truth["kept_error"] < 1 and truth["texture_nearest"]
        own = measure_edit(frames_of(case, case.source()), case)
        assert (own["hit"], own["own"]) == (False, True)
        assert own["mask_iou"] > 0.85 and own["kept_error"] < 1


@pytest.mark.slow
def test_grey_blurred_and_unrelated_frames_score_low(cases):
    chosen = [case for case in read_cases(cases) if case.target not in ("black", "white")]
    ious = []
    for case, other in zip(chosen, chosen[1:] + chosen[:1], strict=True):
        frames = frames_of(case, case.wanted())
        grey = np.repeat(frames.mean(-1, keepdims=True), 3, -1).astype(np.uint8)
        lost = measure_edit(grey, case)
        assert not lost["hit"] and lost["kept_error"] > 3
        flat = np.broadcast_to(frames.mean((1, 2), keepdims=True), frames.shape).astype(np.uint8)
        assert measure_edit(flat, case)["mask_iou"] < 0.4
        ious.append(measure_edit(frames_of(other, other.wanted()), case)["mask_iou"])
    assert np.mean(ious) < 0.4


def test_moved_solids_are_segmented_at_their_new_positions(cases):
    case = read_cases(cases)[0]
    clip = render_case(case.source(), 64, 112)
    truth = clip.solids > 0
    moved = np.roll(truth, 5, axis=2)
    segmented = grabcut_mask(np.roll(clip.frames, 5, axis=2), truth)
    assert mask_iou(moved, truth) < 0.75
    assert mask_iou(segmented, truth) == pytest.approx(mask_iou(moved, truth), abs=0.08)
    assert mask_iou(segmented, moved) > 0.85


@pytest.mark.slow
def test_the_texture_of_a_solid_is_found_in_any_color():
    for index in range(2):
        case = draw_case(900, index)
        for texture in TEXTURES:
            color = "cyan" if case.target != "cyan" else "yellow"
            frames = through_autoencoder(frames_of(case, case.repainted(color, texture)))
            measured = measure_edit(frames, case)
            assert (measured["texture"], measured["texture_nearest"]) == (texture, texture == case.texture)


@pytest.mark.slow
def test_texture_share_is_0_for_plain_and_1_for_textured_autoencoder_output():
    cases = [draw_case(900, index, texture="capped") for index in range(6)]
    for case in cases:
        assert (case.target, case.texture) == (case.own, "capped") and case.own_texture != "capped"
        before = measure_edit(through_autoencoder(frames_of(case, case.source())), case)
        assert (before["hit"], before["own"], before["texture_hit"]) == (True, True, False)
        after = measure_edit(through_autoencoder(frames_of(case, case.wanted())), case)
        assert after["texture_share"] == pytest.approx(1, abs=1e-3) and after["texture_hit"] is True
        plain = frames_of(case, case.repainted(case.target, "plain"))
        assert measure_edit(through_autoencoder(plain), case)["texture_share"] == pytest.approx(0, abs=1e-3)
    assert {case.own_texture for case in cases} == {
        "striped",
        "checkered",
        "dotted",
    }  # and none of these counts as capped


def write_evaluation(folder, cases, scenes):
    """Writes gen1-eval's folder, with videos of the scene that `scenes[setting]` returns for each case."""
    rows = []
    for case, pair in zip(read_cases(cases), read_pairs(cases / PAIRS), strict=True):
        for number, (setting, scene_of) in enumerate(scenes.items()):
            path = Unit(pair, setting).file(folder, "videos", ".mp4")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, frames_of(case, scene_of(case)), 6)
            measured = dict.fromkeys(METRICS, 0.9 - 0.1 * number + 0.001 * pair.line)
            row = {"line": pair.line, "video": pair.video, "prompt": pair.prompt, **asdict(setting), "frames": 8}
            rows.append(row | measured | {"seconds": 1.0})
    (folder / RESULTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"methods": ["gen1"], "omega_t": [1.0], "t_s": [0], "omega": 3.0, "steps": 2, "solver": "ddim"}
    plan = {"checkpoint": {"stage": "5", "step": 1}, "settings": settings}
    summary = summarize(rows, list(scenes), 0)
    (folder / "summary.json").write_text(json.dumps({**plan, "summary": summary}))


@pytest.mark.slow
def test_an_evaluation_is_measured_and_the_page_states_which_claims_hold(cases, tmp_path):
    evaluation = cases.parent / "evaluation" / "time"
    scenes = {
        WANTED: lambda case: case.wanted(),
        OTHER: lambda case: case.source(),
        Setting(INPUT): lambda case: case.source(),
    }
    write_evaluation(evaluation, cases, scenes)
    wanted, other, _ = measure(evaluation, read_cases(cases))
    assert wanted["values"]["hit"] == {"mean": 1.0, "interval": (1.0, 1.0), "cases": COUNT}
    assert (other["values"]["hit"]["mean"], other["values"]["own"]["mean"]) == (0.0, 1.0)
    assert wanted["values"]["mask_iou"]["mean"] > 0.85
    assert len((evaluation / "measured.jsonl").read_text().splitlines()) == 3 * COUNT

    row = {value: {"mean": 0.5, "interval": [0.4, 0.6], "cases": COUNT} for value in ("hit", "mask_iou")}
    (cases / REFERENCES).write_text(json.dumps({"autoencoder": row}))
    write_results(cases.parent, tmp_path)
    page = (tmp_path / "results.md").read_text()
    assert "**Holds**: image prompt: the edited solid shows the prompted color in at least 80%" in page
    assert "**Holds**: frame consistency at omega_t = 1 is above that of per-frame editing" in page
    assert "| autoencoder | 4 | 0.500 [0.400, 0.600] |" in page
    assert (
        "data=experiment/cases/pairs.csv output=evaluation/time 'methods=[gen1]'" in page
        and "Customization" not in page
    )
    assert {path.name for path in tmp_path.iterdir()} == {"results.md", "results.jpg", "results"}

    write_evaluation(evaluation, cases, {WANTED: scenes[OTHER], OTHER: scenes[WANTED]})
    measure(evaluation, read_cases(cases))
    write_results(cases.parent, tmp_path)
    assert "**Does not hold**: image prompt" in (tmp_path / "results.md").read_text()


def test_missing_files_are_named(cases, tmp_path):
    with pytest.raises(UserError, match="keep_videos=true"):
        measure(tmp_path, read_cases(cases))
    with pytest.raises(UserError, match=r"python -m miniature\.cases"):
        read_cases(tmp_path)
    with pytest.raises(UserError, match=r"python -m miniature\.experiment"):
        write_results(tmp_path, tmp_path / "docs")

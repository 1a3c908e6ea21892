"""Soft edges as structure, from a video to an edit: prepared, trained on for a step, and edited with."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.prepare import run as prepare
from gen1_train.data.manifest import Manifest
from gen1_train.data.shards import ShardSet
from gen1_train.frozen.structure.soft_edges import SoftEdgesConfig
from gen1_train.reporting.rows import read_metrics
from gen1_train.video.encode import write_video
from miniature.world.render import render_clip
from tests.data_tools.small_source import config
from tests.integration.test_faces import frames_of
from tests.made_checkpoint import edit_info, write_checkpoint
from tests.running import TRAIN, run_well

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_soft_edges_go_from_footage_through_training_into_an_edit(tmp_path: Path) -> None:
    source, shards, video = tmp_path / "source", tmp_path / "set", tmp_path / "source" / "a.mp4"
    source.mkdir()
    write_video(video, render_clip(3, 9, 64, 112).frames, 25)
    Image.fromarray(render_clip(5, 1, 64, 64).frames[0]).save(tmp_path / "example.png")
    edges = SoftEdgesConfig(contrast=30.0)
    buckets = {"video_buckets": ["112x64"], "image_buckets": ["112x64"]}
    settings = config(source, shards, structure="soft_edges", soft_edges=edges, stride=1, frames=8, **buckets)
    assert prepare(settings) == 0
    manifest = Manifest.load(shards)
    assert manifest.estimators["structure"]["kind"] == "soft_edges"
    assert manifest.estimators["structure"]["config"] == vars(edges)

    start = write_checkpoint(tmp_path / "stage4", stage="4")
    edit_info(start, lambda content: content.update(estimators=manifest.estimators))
    common = [each for each in TRAIN if not each.startswith(("model.", "data.workers"))]
    alone = ["strategy=single", "trainer.devices=1", "data.workers=0", "data.batch_clips=1", "data.image_ratio=0"]
    places = [f"data.root={shards}", f"output={tmp_path / 'runs'}", f"init.checkpoint={start}"]
    run_well("gen1_train.train", "stage=5", *common, *alone, *places, "stage.steps=1")
    run = tmp_path / "runs" / "demo" / "stage5"
    (row,) = read_metrics(run / "metrics.csv")
    assert np.isfinite(float(row["loss"]))

    words = [f"checkpoint={run}", f"input={video}", f"image={tmp_path / 'example.png'}", "device=cpu", "steps=1"]
    words += ["t_s=0", f"output={tmp_path / 'edit.mp4'}", f"structure_output={tmp_path / 'structure.mp4'}"]
    run_well("gen1_train.edit", *words)
    assert len(frames_of(tmp_path / "edit.mp4")) == 9
    seen = frames_of(tmp_path / "structure.mp4")[..., 0].astype(float) / 255
    structure = ShardSet(shards).read("video-112x64", 0, ("structure",)).structure
    assert structure is not None and structure.max() > 50_000
    stored = structure[0] / 65535  # that of the first frame, as there is one clip
    assert np.corrcoef(seen[0].ravel(), stored.ravel())[0, 1] > 0.98  # H.264 changes it a little
    assert abs(seen[0].mean() - stored.mean()) < 0.1 * stored.mean()

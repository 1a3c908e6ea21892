"""Several planes of structure, from a video to an edit: prepared, trained on with planes left out, edited, exported."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from data_tools.prepare import run as prepare
from gen1_train.data.manifest import Manifest
from gen1_train.data.shards import ShardSet
from gen1_train.export import ExportConfig, export
from gen1_train.reporting.rows import read_metrics
from gen1_train.video.encode import write_video
from miniature.world.render import render_clip
from tests.data_tools.small_source import config
from tests.integration.test_faces import frames_of
from tests.made_checkpoint import edit_info, write_checkpoint
from tests.running import TRAIN, run_well

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
KIND = "depth+soft_edges"


def test_planes_go_from_footage_through_training_into_an_edit(tmp_path: Path) -> None:
    source, shards, video = tmp_path / "source", tmp_path / "set", tmp_path / "source" / "a.mp4"
    source.mkdir()
    write_video(video, render_clip(3, 9, 64, 112).frames, 25)
    Image.fromarray(render_clip(5, 1, 64, 64).frames[0]).save(tmp_path / "example.png")
    buckets = {"video_buckets": ["112x64"], "image_buckets": ["112x64"]}
    assert prepare(config(source, shards, structure=KIND, stride=1, frames=8, **buckets)) == 0
    manifest = Manifest.load(shards)
    assert manifest.estimators["structure"]["kind"] == KIND

    start = write_checkpoint(tmp_path / "stage4", stage="4")
    edit_info(start, lambda content: content.update(estimators=manifest.estimators))
    common = [each for each in TRAIN if not each.startswith(("model.", "data.workers"))]
    alone = ["strategy=single", "trainer.devices=1", "data.workers=0", "data.batch_clips=1", "data.image_ratio=0"]
    places = [f"data.root={shards}", f"output={tmp_path / 'runs'}", f"init.checkpoint={start}"]
    train = ["stage=5", *common, *alone, *places]
    printed = run_well("gen1_train.train", *train, "stage.steps=1", "stage.drop_planes=0.6")
    assert "stage.drop_planes=0.6: the autoencoder encodes the structure of samples that lose a plane" in printed
    stage5 = tmp_path / "runs" / "demo" / "stage5"
    (row,) = read_metrics(stage5 / "metrics.csv")
    assert np.isfinite(float(row["loss"]))
    recorded = sorted((stage5 / "checkpoints").glob("step-*"))[-1] / "config.yaml"
    assert yaml.safe_load(recorded.read_text())["stage"]["drop_planes"] == 0.6

    words = [f"checkpoint={stage5}", f"input={video}", f"image={tmp_path / 'example.png'}", "device=cpu", "steps=1"]
    words += ["t_s=0", f"structure_output={tmp_path / 'structure.mp4'}"]
    run_well("gen1_train.edit", *words, f"output={tmp_path / 'edit.mp4'}", "structure=depth+soft_edges:0.5")
    seen = frames_of(tmp_path / "structure.mp4").astype(float) / 255
    stored = ShardSet(shards).read("video-112x64", 0, ("structure",)).structure
    assert stored is not None and stored.shape == (8, 2, 64, 112) and seen.shape == (9, 64, 112, 3)
    assert np.corrcoef(seen[0, ..., 0].ravel(), stored[0, 0].ravel())[0, 1] > 0.95  # H.264 changes colors
    assert np.corrcoef(seen[0, ..., 1].ravel(), stored[0, 1].ravel())[0, 1] > 0.9

    export(ExportConfig(checkpoint=str(stage5), output=str(tmp_path / "exported")))
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "encoded as one frame, whose red, green and blue are its planes, with 0 for an absent one, in -1..1" in card

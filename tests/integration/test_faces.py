"""Faces as structure, from real footage to an edit: prepared, trained on, and edited with, as a user does it."""

import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from data_tools.stats import Stats
from gen1_train.batch import Sample
from gen1_train.data.manifest import Manifest
from gen1_train.data.shards import ShardSet
from gen1_train.frozen.structure.face import FaceConfig
from gen1_train.reporting.rows import read_metrics
from tests.frozen.structure.test_face_mesh import CLIP
from tests.made_checkpoint import edit_info, write_checkpoint
from tests.running import REPOSITORY, TRAIN, run, run_well
from tests.video.files import make_video

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not CLIP.is_file(), reason="shared/media does not exist"),
]
POOL = "video-112x64"
RECIPE = ["recipe=tiny", "recipe.structure=face", "recipe.face.line=0.03", "recipe.stills=never"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source of the real clip (3 clips of 8 frames), and of noise (1 clip)."""
    root = tmp_path_factory.mktemp("faces")
    (root / "source").mkdir()
    shutil.copy(CLIP, root / "source" / "carphone.mp4")
    make_video(root / "source" / "noise.mp4", frames=40)
    return root


def train(root: Path, shards: str, output: str, start: Path) -> list[str]:
    """The settings of three steps of stage 5 on clips alone."""
    common = [each for each in TRAIN if not each.startswith("model.")]
    alone = ["strategy=single", "trainer.devices=1", "data.workers=0", "data.batch_clips=2", "data.image_ratio=0"]
    places = [f"data.root={root / shards}", f"output={root / output}", f"init.checkpoint={start}"]
    return ["stage=5", *common, *alone, *places, "stage.steps=3"]


def test_faces_go_from_footage_through_training_into_an_edit(root: Path) -> None:
    printed = run_well("data_tools.main", f"source={root / 'source'}", f"output={root / 'set'}", *RECIPE)
    manifest = Manifest.load(root / "set")
    recorded = manifest.estimators["structure"]
    assert recorded["kind"] == "face" and recorded["config"] == vars(FaceConfig(line=0.03))
    stats = Stats.load(root / "set")
    assert (stats.structure_frames, stats.empty_frames) == (32, 8)  # those of the noise
    line = "8 of 32 frames (25%) have no face: their structure is empty"
    assert line in printed and line in (root / "set" / "report.html").read_text()
    shards = ShardSet(root / "set")
    samples = [shards.read(POOL, index, ("frames", "structure", "meta")) for index in range(4)]
    for sample in samples:
        assert sample.structure is not None and sample.meta is not None
        empty = "noise" in sample.meta["source"]
        assert sample.meta["empty_frames"] == (8 if empty else 0)
        assert sample.structure.any(axis=(1, 2)).tolist() == [not empty] * 8

    start = write_checkpoint(root / "stage4", stage="4")
    edit_info(start, lambda content: content.update(estimators=manifest.estimators))
    run_well("gen1_train.train", *train(root, "set", "runs", start))
    stage5 = root / "runs" / "demo" / "stage5"
    rows = read_metrics(stage5 / "metrics.csv")
    assert len(rows) == 3 and all(np.isfinite(float(row["loss"])) for row in rows)

    edit = [f"checkpoint={stage5}", f"input={CLIP}", f"image={REPOSITORY / 'docs' / 'demo.jpg'}", "device=cpu"]
    edit += ["frames=8", "steps=1", "omega=1", "t_s=0"]
    run_well("gen1_train.edit", *edit, f"output={root / 'edit.mp4'}", f"structure_output={root / 'structure.mp4'}")
    seen = frames_of(root / "structure.mp4")[..., 0].astype(float) / 255
    assert len(frames_of(root / "edit.mp4")) == len(seen) == 8
    assert_as_in_training(seen, samples)
    blank = [each.replace(str(CLIP), str(root / "source" / "noise.mp4")) for each in edit]
    result = run("gen1_train.edit", *blank, f"output={root / 'noise.mp4'}")
    assert result.returncode == 0 and "8 of 8 frames have no face: the model sees no structure" in result.stdout

    refresh_and_refuse(root, start)


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def assert_as_in_training(seen: np.ndarray, samples: list[Sample]) -> None:
    """The edit's structure is that of the set's first clip, whose frames are 4 apart; H.264 changes it a little."""
    clips = [sample for sample in samples if sample.meta is not None and "carphone" in sample.meta["source"]]
    first = min(clips, key=lambda sample: sample.meta["seconds"][0])  # type: ignore[index]
    assert first.meta is not None and first.structure is not None
    start = round(first.meta["seconds"][0] * 30000 / 1001)
    assert start + 4 < len(seen)
    for in_edit, in_set in ((start, 0), (start + 4, 1)):
        drawn = first.structure[in_set] / 65535
        assert np.corrcoef(seen[in_edit].ravel(), drawn.ravel())[0, 1] > 0.95
        assert abs(seen[in_edit].mean() - drawn.mean()) < 0.1 * drawn.mean()


def refresh_and_refuse(root: Path, start: Path) -> None:
    """A set whose faces became depth is refused by the checkpoint, and becomes the same set again."""
    for layer, source, output in (("depth", "set", "depth"), ("face", "depth", "again")):
        places = [f"source={root / source}", f"output={root / output}"]
        run_well("data_tools.main", "refresh", f"layer={layer}", *places, *RECIPE)
    stats = {name: Stats.load(root / name) for name in ("set", "depth", "again")}
    assert (stats["depth"].structure_frames, stats["depth"].empty_frames) == (0, 0)
    assert (stats["again"].structure_frames, stats["again"].empty_frames) == (32, 8)
    fingerprints = {name: Manifest.load(root / name).estimators["structure"]["fingerprint"] for name in stats}
    assert fingerprints["set"] == fingerprints["again"] != fingerprints["depth"]
    meta = ShardSet(root / "depth").read(POOL, 0, ("meta",)).meta
    assert meta is not None and "empty_frames" not in meta and meta["structure"] == "depth"
    refused = run("gen1_train.train", *train(root, "depth", "other", start))
    assert refused.returncode == 2
    assert "another structure estimator" in refused.stderr.strip().splitlines()[-1]

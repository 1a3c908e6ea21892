"""The commands as functions of Python, in a script as docs/python.md shows it, twice in a row."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from gen1_train.video.encode import write_video
from miniature.world.render import render_clip
from tests.made import make_stable_diffusion
from tests.running import ENVIRONMENT, REPOSITORY, TRAIN

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
from data_tools.prepare import prepare
from gen1_train import Gen1Editor
from gen1_train.evaluate import evaluate
from gen1_train.train import train

if __name__ == "__main__":
    small = sys.argv[1:]
    for _ in range(2):
        shards = prepare("source=videos", "output=shards", "recipe=tiny", "workers=1")
        for stage in "12345":
            more = ["init.from=sd"] if stage == "1" else ["stage.steps=1", f"data.root={shards}"]
            run = train(f"stage={stage}", *small, *more)
        editor = Gen1Editor.from_pretrained(run, device="cpu")
        edited = editor("videos/0.mp4", image="videos/5.png", steps=1)
        report = evaluate(
            f"checkpoint={run}", "data=pairs.csv", "output=report", "methods=[gen1]", "t_s=[0]", "omega_t=[1]",
            "steps=1", "frames=2", "device=cpu", "workers=1",
        )
        print(shards, run, edited.shape, report)
"""


def test_a_script_makes_shards_trains_edits_and_evaluates(tmp_path: Path) -> None:
    make_stable_diffusion(tmp_path / "sd")
    (tmp_path / "videos").mkdir()
    for number in range(2):
        write_video(tmp_path / "videos" / f"{number}.mp4", render_clip(number, 33, 64, 112).frames, 25)
    (tmp_path / "script.py").write_text(SCRIPT)
    for number in range(8):
        Image.fromarray(render_clip(number, 1, 64, 112).frames[0]).save(tmp_path / "videos" / f"{number}.png")
    (tmp_path / "pairs.csv").write_text("video,prompt,image\nvideos/0.mp4,a solid,videos/5.png\n")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}
    settings = [word for word in TRAIN if not word.startswith("data.workers")]
    done = subprocess.run(
        [
            sys.executable,
            "script.py",
            *settings,
            "data.workers=0",
            "trainer.devices=1",
            "strategy=single",
            "data.batch_clips=1",
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = "shards runs/demo/stage5 (33, 64, 112, 3) report"
    assert [text for text in done.stdout.splitlines() if text.startswith("shards")] == [line] * 2
    assert (tmp_path / "report" / "index.html").exists() and (tmp_path / "shards" / "manifest.json").exists()

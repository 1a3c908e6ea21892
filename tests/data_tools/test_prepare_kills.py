"""After a kill -9 at any moment, the next run ends with the same set: no sample twice, none missing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gen1_train.data.shards import ShardSet
from tests.data_tools.small_source import make_source
from tests.digests import set_digests
from tests.running import ENVIRONMENT, REPOSITORY
from tests.video.files import make_video

KILLS = 12


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    make_video(source / "c.mp4", frames=120)
    command = [sys.executable, "-m", "tests.data_tools.killing", str(source), str(tmp_path), str(KILLS), "0"]
    done = subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr[-3000:]
    ends = json.loads(done.stdout)
    assert ends.count("killed") == KILLS
    straight = set_digests(tmp_path / "straight")
    assert ShardSet(tmp_path / "straight").manifest.pools["video-64x48"].samples == 9
    outputs = sorted(tmp_path.glob("killed-*"))
    assert outputs
    for output in outputs:
        assert set_digests(output) == straight

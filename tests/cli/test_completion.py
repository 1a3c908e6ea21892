"""TAB completion: bash asks our commands as it asks for any other, and gets what can be typed next."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gen1_train import train
from gen1_train.cli.completion import COMMANDS, candidates
from tests.forkserver import REPOSITORY

BIN = Path(sys.executable).parent
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
Complete = Callable[[str], list[str]]
# as bash does on TAB: it splits the line at the characters in COMP_WORDBREAKS and calls the registered function
ASK = r"""
eval "$(gen1-edit -sc install=bash)"
line=$1
set -- ${line%% *}
[[ $(complete -p "$1") == *"-F _gen1_complete"* ]] || exit 1
COMP_LINE=$line COMP_POINT=${#line}
_gen1_complete "$1"
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def complete(tmp_path: Path) -> Complete:
    """Returns the candidates for a line with the cursor at its end."""
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def call(line: str) -> list[str]:
        command = ["bash", "--norc", "-c", ASK, "bash", line]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return call


@pytest.mark.slow
def test_settings_values_and_files_are_completed(complete: Complete, tmp_path: Path) -> None:
    (tmp_path / "my clip.mp4").touch()
    (tmp_path / "clips").mkdir()
    assert complete("gen1-edit om") == ["omega=", "omega_t="]
    assert complete("gen1-edit checkpoint=x prompt='a red ball' init") == ["init_strength="]
    assert complete("gen1-edit audio=") == ["false ", "true "] or complete("gen1-edit audio=") == ["true ", "false "]
    assert complete("gen1-edit input=m") == ["'my clip.mp4' "]
    assert complete("gen1-edit input=c") == ["cache/", "clips/"]
    assert complete("gen1-edit log.") == ["log.format="]
    assert complete("gen1-edit --m") == ["--multirun "]
    assert complete("gen1-edit qqq") == [""]


@pytest.mark.slow
def test_commands_of_gen1_data_are_completed(complete: Complete) -> None:
    assert complete("gen1-data ver") == ["verify "]
    assert complete("gen1-data verify wor") == ["workers="]
    assert complete("gen1-data source=x ver") == [""]
    assert complete("gen1-data recipe=") == ["paper ", "sd21 ", "tiny "]
    assert complete("gen1-data recipe.cut.st") == ["recipe.cut.stride="]


@pytest.mark.slow
def test_a_stage_in_front_is_not_a_number(complete: Complete, tmp_path: Path) -> None:
    """Hydra's own completion ended in a traceback. The second time is answered from the cache."""
    for _ in range(2):
        assert complete("gen1-train stage=4 opt") == ["optim."]
        assert complete("gen1-train stage=4 optim.cl") == ["optim.clip_norm="]
        assert (tmp_path / "cache" / "gen1-train" / "settings-train.json").exists()
    assert complete("gen1-train st") == ["stage.", "stage=", "strategy.", "strategy="]
    assert complete("gen1-train stage=c") == ["customize "]
    assert "report=" in complete("gen1-train rep")
    assert complete("gen1-train stage=prior data.b") == ["data.batch="]
    assert complete("gen1-train report=x out") == ["output="]


@pytest.mark.slow
def test_a_cache_of_other_code_is_not_used(complete: Complete, tmp_path: Path) -> None:
    assert complete("gen1-export out") == ["output="]
    cache = tmp_path / "cache" / "gen1-train" / "settings-export.json"
    assert '"output": "text"' in cache.read_text()
    cache.write_text(
        re.sub(r'"code": \[.*?\]', '"code": ["/elsewhere", 1, 1]', cache.read_text()).replace("output", "x")
    )
    assert complete("gen1-export out") == ["output="]
    cache.write_text("[not json")
    assert complete("gen1-export out") == ["output="]


def test_the_names_are_sections_first() -> None:
    names = {"seed": "other", "recipe.cut.frames": "other", "recipe.seed": "other"}
    assert list(candidates("", names, {"recipe": ["paper"]})) == ["recipe.", "recipe=", "seed="]
    assert list(candidates("recipe.", names, {})) == ["recipe.cut.", "recipe.seed="]


def test_the_script_registers_all_commands() -> None:
    scripts = (REPOSITORY / "pyproject.toml").read_text().partition("[project.scripts]")[2].partition("\n\n")[0]
    assert sorted(COMMANDS) == sorted(re.findall(r"^([\w-]+) = ", scripts, re.MULTILINE))


@pytest.mark.parametrize("arguments", [["-sc", "install=fish"], ["-sc"], ["--shell-completion", "query=zsh"]])
def test_other_shells_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gen1-train", *arguments])
    with pytest.raises(SystemExit) as ended:
        train.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1) and "completion is for bash" in err

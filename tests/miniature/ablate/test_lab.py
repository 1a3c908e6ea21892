"""The ablations: which commands an arm needs, what is not run again, and rows as they are written and read."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from gen1_train.cli.compose import compose_config
from gen1_train.errors import UserError
from gen1_train.evaluate import EvaluateConfig
from gen1_train.system.console import console
from gen1_train.training.config import TrainConfig
from miniature.ablate import lab
from miniature.ablate.arms import ARMS, BASE, LAST, Arm
from miniature.ablate.lab import AT_7, BY_NAME, STEPS, VALUES, Lab, read_rows

CASES = 3


class Commands:
    """Records commands, and leaves what the measures would."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []
        self.fail_at: int | None = None

    def __call__(self, module: str, arguments: Sequence[str]) -> int:
        self.calls.append((module, list(arguments)))
        if len(self.calls) == self.fail_at:
            return 1
        if module == "miniature.measure":
            edits = Path(arguments[0])
            edits.mkdir(parents=True, exist_ok=True)
            values = dict.fromkeys(VALUES, 0.5)
            lines = [{"line": line, "t_s": level, **values} for level in (7, 0) for line in range(CASES, 0, -1)]
            (edits / "measured.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return 0

    def trained(self) -> list[str]:
        """Run and stage of each call of gen1-train."""
        found = []
        for module, arguments in self.calls:
            if module == "gen1_train.train":
                given = dict(argument.split("=", 1) for argument in arguments)
                found.append(f"{given['name']}/{given['stage']}")
        return found


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setattr(lab, "write_world", lambda folder, world: None)
    monkeypatch.setattr(lab, "write_stable_diffusion", lambda folder, **settings: None)
    return Commands()


def test_an_arm_trains_from_the_stage_on_at_which_it_differs(tmp_path: Path, commands: Commands) -> None:
    made = Lab(tmp_path / "lab", tmp_path / "rows.jsonl", CASES, commands)
    assert made.run(["shared", "rescale"], [7])
    base = [f"base-7/{stage}" for stage in range(1, LAST + 1)]
    assert commands.trained() == [*base, *base[:2], *(f"shared-7/{stage}" for stage in (3, 4, 5)), *base]
    for module, arguments in commands.calls:
        if module == "gen1_train.train" and "name=shared-7" in arguments:
            assert "diffusion.noise.shared=0.5" in arguments
        elif module == "gen1_train.train":
            assert not any(argument.startswith("diffusion") for argument in arguments)
    starts = [word for _, words in commands.calls for word in words if word.startswith("init.checkpoint=")]
    assert f"init.checkpoint={tmp_path}/lab/runs/base-7/stage2" in starts
    evaluated = [arguments for module, arguments in commands.calls if module == "gen1_train.evaluate"]
    assert f"checkpoint={tmp_path}/lab/runs/base-7/stage5" in evaluated[2] and "rescale=0.7" in evaluated[2]
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [(row.arm, row.seed) for row in rows] == [(BASE, 7), ("shared", 7), ("rescale", 7)]
    assert set(rows[0].values) == {*VALUES, *(f"{name}@7" for name in AT_7)}
    assert all(len(numbers) == CASES for numbers in rows[0].values.values())


def test_arms_that_differ_in_their_edits_share_a_model(tmp_path: Path, commands: Commands) -> None:
    made = Lab(tmp_path / "lab", tmp_path / "rows.jsonl", CASES, commands)
    assert made.run(["zero-snr-rescale"], [7])
    assert set(commands.trained()[LAST:]) == {"base-7/1", *(f"zero-snr-7/{stage}" for stage in range(2, LAST + 1))}
    (evaluated,) = [
        words for module, words in commands.calls if module == "gen1_train.evaluate" and "rescale=0.7" in words
    ]
    assert f"checkpoint={tmp_path}/lab/runs/zero-snr-7/stage5" in evaluated


def test_every_model_that_is_edited_is_that_of_an_arm() -> None:
    for arm in ARMS:
        assert (arm.since > LAST) == bool(arm.trained)
        assert not arm.trained or not BY_NAME[arm.trained].trained


def test_a_finished_arm_is_not_run_again_and_a_failed_one_is(tmp_path: Path, commands: Commands) -> None:
    made = Lab(tmp_path / "lab", tmp_path / "rows.jsonl", CASES, commands)
    assert made.run(["rescale"], [0])
    before = len(commands.calls)
    assert made.run(["rescale"], [0]) and len(commands.calls) == before
    commands.fail_at = before + 5
    with pytest.raises(SystemExit):
        made.run(["rescale"], [0, 1])
    assert len(read_rows(tmp_path / "rows.jsonl")) == 2
    assert made.run(["rescale"], [0, 1])
    assert [(row.arm, row.seed) for row in read_rows(tmp_path / "rows.jsonl")][2:] == [(BASE, 1), ("rescale", 1)]


def test_no_arm_is_begun_after_the_minutes(tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture) -> None:
    made = Lab(tmp_path / "lab", tmp_path / "rows.jsonl", CASES, commands)
    with console("ablate"):
        assert not made.run(["rescale"], [0, 1], minutes=-1)
    assert not commands.calls and "4 of 4 runs are left" in capsys.readouterr().out


def test_an_unknown_arm_and_a_foreign_file_are_refused(tmp_path: Path, commands: Commands) -> None:
    with pytest.raises(UserError, match="there is no arm 'bake'; choose from base, eps"):
        Lab(tmp_path / "lab", tmp_path / "rows.jsonl", CASES, commands).run(["bake"], [0])
    (tmp_path / "rows.jsonl").write_text('{"arm": "base"}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl is not a file of ablations"):
        Lab(tmp_path / "lab", tmp_path / "rows.jsonl", CASES, commands).run([], [0])
    assert not (tmp_path / "lab").exists() and not commands.calls


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_the_settings_of_an_arm_exist_and_change_something(arm: Arm) -> None:
    for stage in range(arm.since, LAST + 1):
        settings = [f"stage={stage}", "experiment=miniature", "data.root=x", f"stage.steps={STEPS[stage]}"]
        own = [*settings, *(arm.settings if stage in arm.stages else ())]
        made = compose_config("train", TrainConfig, own)
        made.check()
        changed = made != compose_config("train", TrainConfig, settings)
        assert changed == bool(arm.settings and stage in arm.stages)
    if arm.edits:
        compose_config("evaluate", EvaluateConfig, ["checkpoint=c", "data=d", "output=o", *arm.edits])
    assert arm.name == BASE or arm.settings or arm.refresh or arm.edits


def test_names_are_unique_and_the_base_comes_first() -> None:
    assert len({arm.name for arm in ARMS}) == len({arm.change for arm in ARMS}) == len(ARMS)
    assert ARMS[0].name == BASE and not ARMS[0].settings

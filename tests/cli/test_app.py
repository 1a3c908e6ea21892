"""The command line: arguments arrive unchanged; a mistake ends in one line that names the remedy, and exit code 2."""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from gen1_train.cli.app import explain, quoted, run_app, settings
from gen1_train.editing.config import EditConfig
from gen1_train.errors import INCOMPLETE, UserError
from gen1_train.export import ExportConfig
from gen1_train.training.config import TrainConfig
from gen1_train.training.run import train
from tests.forkserver import REPOSITORY
from tests.running import run as run_command

Run = Callable[..., Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    """Runs an app in an empty folder and returns the config that its task receives."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # run_app sets it; monkeypatch restores it
    monkeypatch.chdir(tmp_path)
    schemas = {"train": TrainConfig, "edit": EditConfig, "export": ExportConfig}

    def call(app: str, *arguments: str, task: Callable[[Any], int | None] | None = None) -> Any:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [f"gen1-{app}", *arguments])
        received: list[Any] = []
        run_app(f"gen1-{app}", app, schemas[app], task or received.append)
        return received[0] if received else None

    yield call
    GlobalHydra.instance().clear()


@pytest.fixture
def error_line(run: Run, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs an app that must end with exit code 2 and one line on standard error, and returns that line."""

    def call(app: str, *arguments: str, task: Callable[[Any], None] | None = None) -> str:
        with pytest.raises(SystemExit) as ended:
            run(app, *arguments, task=task)
        out, err = capsys.readouterr()
        assert ended.value.code == 2 and out == ""
        assert err.count("\n") == 1 and err.endswith("\n") and err.startswith(f"gen1-{app}: error: ")
        return err.removeprefix(f"gen1-{app}: error: ").strip()

    return call


TEXTS = [
    "a red ball, on (wet) grass = nice",
    "it's a ball",
    "'tis a ball",
    "'a' and 'b'",
    'a "red" ball',
    '"red" ball',
    "[red] ball",
    "{red} ball: wet",
    "$5, 50 %",
    "/data/my clips/it's [1], {2}.mp4",
    "C:\\clips\\a.mp4",
    "ends with \\",
    "quote after backslash \\' here",
    "two \\\\ of them\\\\",
    " spaces at both ends ",
    "größe, 大きい",
    "true",
    "4",
    "1e-5",
    "~tilde, +plus, -minus, !bang, @at, #hash, *star",
    "tab\tand\nline",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_arrives_as_it_is_typed(text: str) -> None:
    """Checked with Hydra's own parser. The shell has already removed its quotes: users need not quote twice."""
    [override] = OverridesParser.create().parse_overrides([quoted(f"prompt={text}", EditConfig)])
    assert override.key_or_group == "prompt" and str(override.value()) == text


@pytest.mark.parametrize("text", ["'quoted twice'", '"quoted twice"'])
def test_quotes_inside_the_shells_quotes_are_removed(text: str) -> None:
    [override] = OverridesParser.create().parse_overrides([quoted(f"prompt={text}", EditConfig)])
    assert str(override.value()) == "quoted twice"


@pytest.mark.parametrize(
    ("typed", "passed"),
    [
        ("stage=4", "stage='4'"),  # names of groups are text, even if they look like numbers
        ("stage=4,5", "stage='4','5'"),  # a sweep
        ("init.from=a b", "init.from_='a b'"),  # `from` cannot be the name of a Python field
        ("init.from=null", "init.from_=null"),
        ("data.root=null", "data.root=null"),
        ("optim.lr=1e-5", "optim.lr=1e-5"),  # numbers and lists are left to Hydra
        ("model.channels=[1,2]", "model.channels=[1,2]"),
        ("seed=1,2", "seed=1,2"),
        ("data.root=", "data.root="),
        ("no.such.setting=a b", "no.such.setting=a b"),
        ("--multirun", "--multirun"),
        ("--config-dir=a b", "--config-dir=a b"),
        ("a red ball", "a red ball"),
    ],
)
def test_only_text_is_quoted(typed: str, passed: str) -> None:
    assert quoted(typed, TrainConfig) == passed


def test_an_edit_command_arrives_unchanged(run: Run) -> None:
    config = run(
        "edit",
        "prompt=a red ball, on (wet) grass = nice",
        'input=/my clips/it\'s [1], "b".mp4',
        "output=out put.mp4",
        "omega=3",
        "frames=null",
        "t_s=2",
        "prior=runs/a b/prior",
        "sweep=prompt=a|b, c",
    )
    assert isinstance(config, EditConfig)
    assert config.prompt == "a red ball, on (wet) grass = nice"
    assert (config.input, config.output) == ('/my clips/it\'s [1], "b".mp4', "out put.mp4")
    assert (config.prior, config.sweep) == ("runs/a b/prior", "prompt=a|b, c")
    assert (config.omega, config.frames, config.t_s) == (3.0, None, 2) and isinstance(config.omega, float)


def test_a_training_command_arrives_unchanged(run: Run, tmp_path: Path) -> None:
    config = run(
        "train", "stage=3", "model=tiny", "strategy=zero1", "init.from=/sd 1,5", "name=4", "optim.betas=[0.9,0.95]"
    )
    assert isinstance(config, TrainConfig)
    assert (config.stage.name, config.stage.predecessor, config.stage.temporal) == ("3", "2", True)
    assert (config.model.context_dim, config.strategy.name) == (64, "zero1")
    assert (config.init.from_, config.name, config.optim.betas) == ("/sd 1,5", "4", [0.9, 0.95])
    assert list(tmp_path.iterdir()) == []  # Hydra creates no folders: the run folder is ours


def test_values_may_refer_to_other_settings_and_to_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/my set")
    config = run("train", "stage=3", "data.root=${oc.env:SCRATCH}/shards", "name=seed${seed}", "seed=7")
    assert (config.data.root, config.name) == ("/scratch/my set/shards", "seed7")


MISTAKES: dict[str, tuple[list[str], str]] = {
    "misspelt setting": (["stage=4", "optim.lrr=1"], "there is no setting optim.lrr; did you mean optim.lr?"),
    "misspelt section": (["stage=4", "trainer.acelerator=cpu"], "did you mean trainer.accelerator?"),
    "misspelt group": (["stage=4", "modle=tiny"], "there is no setting modle; did you mean model?"),
    "group of another app": (["stage=4", "recipe=tiny"], "there is no setting recipe"),
    "added setting": (["stage=4", "+optim.lrr=1"], "there is no setting optim.lrr"),
    "nothing like it": (["stage=4", "qqqq=1"], "there is no setting qqqq; see --help"),
    "another tool's name": (
        ["stage=4", "optim.learning_rate=1"],
        "no setting optim.learning_rate; did you mean optim.lr?",
    ),
    "resuming": (["stage=4", "resume=true"], "the same command, called again, resumes what it began"),
    "two modes": (["--multirun", "--cfg", "job", "stage=4"], "--multirun and --cfg do not go together"),
    "half a mode": (["--resolve", "stage=4"], "--resolve needs --cfg job"),
    "not a choice": (["--cfg", "jobs", "stage=4"], "invalid choice: 'jobs'"),
    "a sweep without --multirun": (["stage=2,3"], "To sweep over it, add --multirun"),
    "unknown stage": (["stage=9"], "there is no stage=9; choose from: 1, 2, 3, 4, 5"),
    "unknown model": (["stage=4", "model=sd16"], "there is no model=sd16; choose from: miniature, sd15, sd21"),
    "unknown strategy": (["stage=4", "strategy=zero9"], "choose from: auto, ddp, fsdp, single, zero1, zero2, zero3"),
    "unknown experiment": (["stage=4", "experiment=nosuch"], "there is no experiment=nosuch"),
    "no stage": ([], "You must specify 'stage'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported_in_one_line_with_the_remedy(error_line: Callable[..., str], mistake: str) -> None:
    arguments, message = MISTAKES[mistake]
    assert message in error_line("train", *arguments)


@pytest.mark.parametrize(
    ("argument", "type_name"),
    [
        ("optim.lr=fast", "[Ff]loat"),
        ("seed=1.5", "[Ii]nteger"),
        ("data.batch_clips=many", "[Ii]nteger"),
        ("data.image_ratio=half", "[Ff]loat"),
        ("model.channels=[a,b]", "[Ii]nteger"),
        ("model.channels=5", "list"),
        ("model.temporal=maybe", "[Bb]ool"),
        ("name=null", "not Optional"),
    ],
)
def test_a_value_of_the_wrong_type_is_reported_with_the_type(
    error_line: Callable[..., str], argument: str, type_name: str
) -> None:
    message = error_line("train", "stage=4", argument)
    key, _, value = argument.partition("=")
    assert key in message and value in message
    assert re.search(type_name, message.replace(argument, "")), message


@pytest.mark.parametrize(
    "argument", ["data.root=${oc.env:NOT_THERE}", "name=${no.such.setting}", "model.channels=[1,2", "checkpoint=1"]
)
def test_an_argument_that_hydra_cannot_read_is_reported_in_one_line(
    error_line: Callable[..., str], argument: str
) -> None:
    message = error_line("train", "stage=4", argument)
    assert any(part in message for part in ("NOT_THERE", "no.such.setting", "[1,2", "checkpoint"))


UNQUOTED = {
    ("prompt=a", "red", "ball"): "put quotes around it: 'prompt=a red ball'",
    ("t_s=2", "prompt=a", "red", "ball", "omega=3"): "put quotes around it: 'prompt=a red ball'",
    ("input=my", "clip.mp4"): "put quotes around it: 'input=my clip.mp4'",
    ("a red ball",): "'a red ball' is not a setting: write KEY=VALUE, see --help",
    ("clip.mp4", "prompt=a ball"): "clip.mp4 is not a setting: write KEY=VALUE, see --help",
    ("omega=3", "5"): "5 is not a setting: write KEY=VALUE, see --help",
}


@pytest.mark.parametrize("arguments", UNQUOTED)
def test_words_without_an_equals_sign_are_reported_with_quotes(
    error_line: Callable[..., str], arguments: tuple[str, ...]
) -> None:
    assert error_line("edit", *arguments).endswith(UNQUOTED[arguments])


DASHED = {
    ("--input", "x"): "--input is not an option: write input=x, without dashes",
    ("prompt=a", "--input=my clip.mp4"): "write 'input=my clip.mp4', without dashes",
    ("--t-s", "3"): "write t_s=3, without dashes",
    ("-omega", "3"): "write omega=3, without dashes",
    ("--ui",): "write ui=…, without dashes",
    ("--guidance-scale", "3"): "settings are KEY=VALUE, without dashes; did you mean omega=3?",
    ("--frobnicate",): "settings are KEY=VALUE, without dashes; see --help",
}


@pytest.mark.parametrize("arguments", DASHED)
def test_settings_with_dashes_are_reported_with_the_setting(
    error_line: Callable[..., str], arguments: tuple[str, ...]
) -> None:
    assert DASHED[arguments] in error_line("edit", *arguments)


def test_groups_with_dashes_are_reported_with_the_group(error_line: Callable[..., str]) -> None:
    assert "write stage=4, without dashes" in error_line("train", "--stage", "4")


def test_options_may_follow_settings(run: Run) -> None:
    """Hydra's own parser takes them only before."""
    seeds: list[int] = []
    run("edit", "t_s=2", "-m", "seed=0,1", "output=${seed}.mp4", task=lambda config: seeds.append(config.seed))
    assert seeds == [0, 1]


@pytest.mark.parametrize("app", ["train", "edit", "export"])
def test_the_version_is_ours(run: Run, capsys: pytest.CaptureFixture[str], app: str) -> None:
    run(app, "--version", task=lambda config: pytest.fail("the task was run"))
    version = re.search(r'^version = "(.+)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None and capsys.readouterr().out == f"gen1-{app} {version[1]}\n"


def test_missing_data_is_reported_with_the_remedy(error_line: Callable[..., str]) -> None:
    assert error_line("train", "stage=2", "model=tiny", task=train) == (
        "data.root is not given: add data.root=FOLDER, a shard set made by gen1-data"
    )


def test_an_unknown_accelerator_is_reported_before_anything_starts(error_line: Callable[..., str]) -> None:
    message = error_line("train", "stage=2", "model=tiny", "trainer.accelerator=gpuu", task=train)
    assert message == "trainer.accelerator=gpuu is not one of auto, cpu, cuda"


def fail(error: BaseException) -> Callable[[Any], None]:
    def task(config: Any) -> None:
        raise error

    return task


def test_a_message_of_several_lines_becomes_one(error_line: Callable[..., str]) -> None:
    assert error_line("edit", task=fail(UserError("first:\n   second\n"))) == "first: second"


def test_file_names_are_unchanged_in_a_message(error_line: Callable[..., str]) -> None:
    """Users may copy them from there."""
    assert error_line("edit", task=fail(UserError("no file input=my  clip.mp4"))) == "no file input=my  clip.mp4"


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("a bug"), KeyError("a bug")])
def test_a_bug_keeps_its_traceback(run: Run, error: Exception) -> None:
    with pytest.raises(type(error), match="a bug"):
        run("edit", task=fail(error))
    assert explain(error, EditConfig) is None


def test_an_interrupt_is_reported_and_ends_with_130(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("edit", task=fail(KeyboardInterrupt()))
    assert ended.value.code == 130 and capsys.readouterr().err == "gen1-edit: interrupted\n"


@pytest.mark.parametrize("code", [None, 0])
def test_a_successful_task_ends_without_an_exit_code(run: Run, code: int | None) -> None:
    run("edit", task=lambda config: code)  # no SystemExit


def test_the_exit_code_is_the_return_value_of_the_task(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("edit", task=lambda config: INCOMPLETE)
    assert ended.value.code == INCOMPLETE == 3 and capsys.readouterr() == ("", "")


def test_the_exit_code_of_several_runs_is_the_highest(run: Run) -> None:
    seeds: list[int] = []

    def task(config: EditConfig) -> int:
        seeds.append(config.seed)
        return INCOMPLETE if config.seed == 1 else 0

    with pytest.raises(SystemExit) as ended:
        run("edit", "--multirun", "seed=0,1,2", task=task)
    assert ended.value.code == INCOMPLETE and seeds == [0, 1, 2]  # the runs after it were started


def test_a_mistake_ends_a_process_with_2(tmp_path: Path) -> None:
    """The command runs without patches."""
    done = run_command(
        "gen1_train.edit", "checkpoint=a b", "input=it's.mp4", "output=x.mp4", "t_s=1", cwd=tmp_path, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gen1-edit: error: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@dataclass
class Inner:
    deep: int = 0
    text: str | None = None


@dataclass
class Middle:
    inner: Inner = field(default_factory=Inner)
    numbers: list[int] = field(default_factory=list)


@dataclass
class Outer:
    middle: Middle = field(default_factory=Middle)
    name: str = ""


def test_settings_of_nested_sections_are_listed() -> None:
    assert settings(Outer) == {
        "middle.inner.deep": int,
        "middle.inner.text": str | None,
        "middle.numbers": list[int],
        "name": str,
    }


def leaves(config: DictConfig, prefix: str = "") -> set[str]:
    """The dotted names of all values of a config."""
    names = set()
    for key in config:
        node = config._get_node(key)
        names |= leaves(node, f"{prefix}{key}.") if isinstance(node, DictConfig) else {f"{prefix}{key}"}
    return names


@pytest.mark.parametrize("schema", [TrainConfig, EditConfig, ExportConfig])
def test_settings_lists_the_same_names_as_hydra(schema: type) -> None:
    config = OmegaConf.structured(schema)
    if schema is TrainConfig:
        from gen1_train.training.stages import StageConfig

        config.stage = OmegaConf.structured(StageConfig)
    assert set(settings(schema)) == leaves(config)

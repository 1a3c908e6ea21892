"""The commands of `gen1-data`: each first word runs its own command, and its exit code is that of the process."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hydra.core.global_hydra import GlobalHydra

import data_tools
from data_tools import sets
from data_tools.main import COMMANDS, ReportConfig, main
from data_tools.sets.order import OrderConfig
from data_tools.sets.verify import VERIFIED, VerifyConfig
from gen1_train.cli.app import conf_dir, settings
from gen1_train.cli.help import help_text
from gen1_train.errors import INCOMPLETE
from gen1_train.system.console import console
from tests.made import make_shard_set
from tests.running import REPOSITORY


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Replaces all commands with stand-ins that record their arguments."""
    calls: dict[str, list[str]] = {}

    def stand_in(name: str) -> ModuleType:
        module = ModuleType(f"data_tools.{name}")
        module.main = lambda: calls.update({name: sys.argv[1:]})  # type: ignore[attr-defined]
        return module

    for package, name in ((data_tools, "prepare"), (sets, "verify"), (sets, "order"), (sets, "refresh")):
        module = stand_in(name)
        monkeypatch.setitem(sys.modules, f"{package.__name__}.{name}", module)
        monkeypatch.setattr(package, name, module, raising=False)
    monkeypatch.setattr("data_tools.main.run_app", lambda *_: calls.update(report=sys.argv[1:]))
    return calls


@pytest.mark.parametrize("word", COMMANDS)
def test_the_first_word_runs_its_command(
    word: str, called: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gen1-data", word, "output=a", "--cfg"])
    main()
    assert called == {word: ["output=a", "--cfg"]}


@pytest.mark.parametrize(
    "arguments",
    [[], ["source=verify"], ["--help"], ["-h"], ["+a=1"], ["++a"], ["~a"], ["", "verify"], ["source=a", "verify"]],
)
def test_without_a_command_a_set_is_made(
    arguments: list[str], called: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gen1-data", *arguments])
    main()
    assert called == {"prepare": arguments}


def test_help_names_the_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gen1-data", "--help"])
    main()
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("instead of these settings (each has a --help of its own):") + 1
    listed = [line.split()[0] for line in lines[start : start + len(COMMANDS)]]
    assert listed == list(COMMANDS) == ["report", "verify", "order", "refresh"]


def test_an_unknown_command_is_one_line_that_lists_the_commands(
    called: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gen1-data", "verifi", "output=a"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, called) == (2, "", {})
    assert err.count("\n") == 1 and err.startswith("gen1-data: error: there is no command verifi: ")
    assert all(word in err for word in COMMANDS)


@pytest.mark.parametrize(
    ("word", "schema"), [("verify", VerifyConfig), ("order", OrderConfig), ("report", ReportConfig)]
)
def test_help_explains_every_setting_of_a_command(word: str, schema: type) -> None:
    text = help_text(f"gen1-data {word}", conf_dir() / f"{word}.yaml", schema)
    lines = {line.split()[0]: line for line in text.partition("settings (KEY=VALUE):")[2].splitlines() if line}
    assert set(lines) == set(settings(schema)) and text.startswith(f"gen1-data {word}:")
    assert all(len(line.split()) > 4 for line in lines.values())  # each with an explanation


@pytest.mark.parametrize("word", ["verify", "order", "report"])
def test_help_does_not_import_torch(word: str) -> None:
    code = "import sys; from data_tools.main import main; main(); sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, word, "--help"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and f"usage: gen1-data {word} KEY=VALUE" in done.stdout


def test_the_exit_code_shows_whether_the_set_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # run_app sets it; this restores it afterwards
    monkeypatch.chdir(tmp_path)
    root = make_shard_set(tmp_path / "my set", clips=2, images=2, frames=1)

    def verify(output: Path) -> int | str | None:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["gen1-data", "verify", f"output={output}", "workers=1"])
        try:
            main()
        except SystemExit as ended:
            return ended.code
        return 0

    assert verify(root) == 0
    (root / "shards" / "stray").touch()
    assert verify(root) == INCOMPLETE
    assert (root / VERIFIED).exists() and "error" not in capsys.readouterr().err
    assert verify(tmp_path / "nowhere") == 2
    assert capsys.readouterr().err.startswith("gen1-data verify: error: no shard set at ")


def test_report_passes_its_settings_and_prints_the_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from data_tools.main import report

    stand_in = SimpleNamespace(write_report=lambda root, samples, seed: root / f"{samples}-{seed}.html")
    monkeypatch.setitem(sys.modules, "data_tools.sets.report", stand_in)  # type: ignore[arg-type]
    with console("gen1-data report"):
        report(ReportConfig("set", samples=5, seed=7))
    assert capsys.readouterr().out == "set/5-7.html\n"

"""The words of `gen1-data`: each reaches its own command, and its exit code is the process's."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hydra.core.global_hydra import GlobalHydra

import data_tools
from data_tools.main import COMMANDS, ReportConfig, main
from data_tools.order import OrderConfig
from data_tools.verify import VERIFIED, VerifyConfig
from gen1_train.cli import conf_dir, settings
from gen1_train.cli_help import help_text
from gen1_train.exits import INCOMPLETE
from tests.made import make_shard_set

ROOT = Path(__file__).parents[2]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Puts stand-ins for all commands in place, which note the arguments that they see."""
    seen: dict[str, list[str]] = {}

    def stand_in(name: str) -> ModuleType:
        module = ModuleType(f"data_tools.{name}")
        module.main = lambda: seen.update({name: sys.argv[1:]})  # type: ignore[attr-defined]
        return module

    for name in ("prepare", "verify", "order", "refresh"):
        module = stand_in(name)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(data_tools, name, module, raising=False)
    monkeypatch.setattr("data_tools.main.run_app", lambda *_: seen.update(report=sys.argv[1:]))
    return seen


@pytest.mark.parametrize("word", COMMANDS)
def test_a_word_reaches_its_command(word: str, called: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gen1-data", word, "output=a", "--cfg"])
    main()
    assert called == {word: ["output=a", "--cfg"]}


@pytest.mark.parametrize(
    "arguments",
    [[], ["source=verify"], ["--help"], ["-h"], ["+a=1"], ["++a"], ["~a"], ["", "verify"], ["source=a", "verify"]],
)
def test_without_a_word_a_set_is_made(
    arguments: list[str], called: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gen1-data", *arguments])
    main()
    assert called == {"prepare": arguments}


def test_help_ends_with_the_words(
    called: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gen1-data", "--help"])
    main()
    told = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert told == list(COMMANDS) == ["report", "verify", "order", "refresh"]


def test_a_word_that_is_none_is_one_line_with_those_that_are(
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
def test_every_setting_of_a_word_is_told(word: str, schema: type) -> None:
    text = help_text(f"gen1-data {word}", conf_dir() / f"{word}.yaml", schema)
    told = {line.split()[0]: line for line in text.partition("settings (KEY=VALUE):")[2].splitlines() if line}
    assert set(told) == set(settings(schema)) and text.startswith(f"gen1-data {word}:")
    assert all(len(line.split()) > 4 for line in told.values())  # each with its meaning


@pytest.mark.parametrize("word", ["verify", "order", "report"])
def test_help_does_not_wait_for_torch(word: str) -> None:
    code = "import sys; from data_tools.main import main; main(); sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, word, "--help"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and f"usage: gen1-data {word} KEY=VALUE" in done.stdout


def test_the_exit_code_tells_whether_the_set_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # run_app sets it: so it is put back afterwards
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
    assert (root / VERIFIED).exists() and capsys.readouterr().err == ""
    assert verify(tmp_path / "nowhere") == 2
    assert capsys.readouterr().err.startswith("gen1-data verify: error: no shard set at ")


def test_report_hands_its_settings_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from data_tools.main import report

    stand_in = SimpleNamespace(write_report=lambda root, samples, seed: root / f"{samples}-{seed}.html")
    monkeypatch.setitem(sys.modules, "data_tools.report", stand_in)  # type: ignore[arg-type]
    report(ReportConfig("set", samples=5, seed=7))
    assert capsys.readouterr().out == "set/5-7.html\n"

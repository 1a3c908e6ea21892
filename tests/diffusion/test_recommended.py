"""The settings that a checkpoint recommends: checked like the user's, from a file that may be a stranger's."""

from pathlib import Path

import pytest

from gen1_train.diffusion.guidance import GuidanceConfig
from gen1_train.diffusion.recommended import Recommended, read_recommended
from gen1_train.diffusion.sampling import SamplingConfig
from gen1_train.errors import UserError


def test_dials_and_prompts_are_read_and_others_are_as_usual(tmp_path: Path) -> None:
    path = tmp_path / "recommended.yaml"
    path.write_text("omega: 3\nsteps: 12\nsolver: dpm++\nprompts:\n  - ' a fox '\n  - ein Kätzchen, grün\n")
    recommended = read_recommended(path)
    assert recommended == Recommended({"omega": 3.0, "steps": 12, "solver": "dpm++"}, ("a fox", "ein Kätzchen, grün"))
    assert recommended.sampling == SamplingConfig(steps=12, solver="dpm++", guidance=GuidanceConfig(omega=3.0))
    path.write_text("# nothing\n")
    assert read_recommended(path) == read_recommended(None) == Recommended()
    assert Recommended().sampling == SamplingConfig()


MISTAKES = [
    (
        "device: cuda",
        "it sets 'device'; choose from omega, omega_t, rescale, t_s, init_strength, steps, solver, prompts",
    ),
    ("precision: bf16", "it sets 'precision'; choose from omega"),
    ("compile: true", "it sets 'compile'; choose from omega"),
    ("[1]: 2", "it is not YAML of plain values at line 1"),
    ("1: 2", "it sets a name that is no text"),
    ("omega: 1000", "omega=1000.0 is out of range"),
    ("omega: 1" + "0" * 400, "omega must be a number"),
    ("steps: 1" + "0" * 400, "is out of range"),
    ("omega: .nan", "omega=nan is out of range"),
    ("omega: true", "omega must be a number"),
    ("omega: '3'", "omega must be a number"),
    ("steps: 12.5", "steps must be a whole number"),
    ("steps: null", "steps must be a whole number"),
    ("steps: 0", "steps=0 is out of range"),
    ("t_s: 8", "t_s=8 is out of range"),
    ("solver: euler", "solver=euler is not one of"),
    ("solver: [ddim]", "solver must be a name"),
    ("prompts: a fox", "prompts must be a list"),
    ("prompts: [a fox, 3]", "number 2 must be a text of one line"),
    ("prompts: ['']", "number 1 must be a text of one line"),
    ('prompts: ["a\\nfox"]', "number 1 must be a text of one line"),
    ("prompts: [" + "a" * 501 + "]", "number 1 must be a text of one line"),
    ("prompts: [" + "a, " * 51 + "]", "prompts must be a list of up to 50 texts"),
    ("- omega", "it must have NAME: VALUE lines"),
    ("omega: [", "it is not YAML of plain values at line 1"),
    ("omega: !!python/object/apply:os.getcwd []", "it is not YAML of plain values at line 1"),
    ("[" * 60000, "it is nested too deeply"),
    ("#" * 70000, "it is larger than 64 KiB"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_a_mistake_is_one_line_that_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recommended.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_recommended(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"omega: \xff\xfe")
    for path in (tmp_path, tmp_path / "bytes.yaml"):
        with pytest.raises(UserError, match=str(path)):
            read_recommended(path)

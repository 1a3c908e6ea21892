"""Files in parts: every element is written once, and readers see whole tensors and open only what they need."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gen1_train.errors import UserError
from gen1_train.training.checkpoints.parts import (
    INDEX,
    Index,
    Piece,
    Tensors,
    elements,
    layouts,
    part_name,
    pieces_by_name,
    shape_of,
    write_part,
)

FILE = "x.safetensors"
WHOLE = {
    "a": torch.arange(15.0).view(3, 5),  # in two parts
    "b": torch.arange(20.0).view(2, 2, 5) / 7,  # in all four
    "c": torch.tensor(3.0),  # a scalar
    "none": torch.zeros(0, 4),
}
PARTS: list[list[tuple[str, int, int]]] = [
    [("a", 0, 4), ("b", 0, 1), ("none", 0, 0)],
    [("a", 4, 15), ("b", 1, 9)],
    [("b", 9, 10)],
    [("b", 10, 20), ("c", 0, 1)],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file in four parts, with its index."""
    parts = [
        [Piece(name, start, WHOLE[name].flatten()[start:end].clone()) for name, start, end in part] for part in PARTS
    ]
    for number, part in enumerate(parts):
        write_part(tmp_path / part_name(FILE, number, 4), part)
    shapes = {name: list(tensor.shape) for name, tensor in WHOLE.items()}
    write_index(tmp_path, layouts(shapes, [pieces_by_name(part) for part in parts]))
    return tmp_path


def write_index(folder: Path, content: dict[str, Any], parts: Any = 4) -> None:
    (folder / INDEX).write_text(json.dumps({"parts": parts, "files": {FILE: content}}))


def opened(folder: Path) -> Tensors:
    return Tensors(folder, FILE, 4, Index.read(folder).files[FILE])


def test_readers_see_whole_tensors(folder: Path) -> None:
    tensors = opened(folder)
    save_file(WHOLE, folder / "whole")
    assert list(tensors) == list(load_file(folder / "whole"))
    for name, tensor in WHOLE.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].shape == shape_of(tensors, name) == tensor.shape


@pytest.mark.parametrize("name", ["a", "b"])
def test_any_range_of_elements_can_be_read(folder: Path, name: str) -> None:
    tensors, flat = opened(folder), WHOLE[name].flatten()
    for start in range(len(flat)):
        for count in range(len(flat) - start + 1):
            assert torch.equal(elements(tensors, name, start, count), flat[start : start + count])
            assert torch.equal(elements(WHOLE, name, start, count), flat[start : start + count])


def test_only_the_parts_that_are_needed_are_opened(folder: Path) -> None:
    for number in (0, 3):
        (folder / part_name(FILE, number, 4)).unlink()
    tensors = opened(folder)
    assert torch.equal(tensors.flat("b", 2, 8), WHOLE["b"].flatten()[2:10])
    with pytest.raises(UserError, match=r"x\.00003-of-00004\.safetensors: the file is missing"):
        tensors.flat("b", 2, 9)


def test_a_part_is_an_ordinary_safetensors_file_and_hashed_as_it_is_written(tmp_path: Path) -> None:
    big = torch.arange(5_000_000, dtype=torch.float32)
    written = write_part(tmp_path / "part", [Piece("big", 7, big), Piece("small", 0, torch.ones(3))])
    data = (tmp_path / "part").read_bytes()
    assert written == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    found = load_file(tmp_path / "part")
    assert torch.equal(found["big"], big) and torch.equal(found["small"], torch.ones(3))
    assert load_file(tmp_path / "part")["big"].data_ptr() % 4 == 0  # it can be memory-mapped
    empty = write_part(tmp_path / "empty", [])
    assert load_file(tmp_path / "empty") == {} and empty["bytes"] == (tmp_path / "empty").stat().st_size


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ([{"a": 0}, {}, {"a": 4}], "a is missing in part 1"),
        ([{"a": 0}, {"a": 4}, {"a": 4}], "the pieces of a are not in order"),
        ([{"a": 0}, {"a": 15}], "the pieces of a are not in order"),
        ([{"a": 1}], "a does not begin with its first element"),
        ([{}, {}], "a tensor is in no part"),
    ],
)
def test_elements_that_nobody_or_two_have_written_are_noticed(starts: list[dict[str, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layouts({"a": [3, 5]}, starts)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"shape": [3, 5], "first": 0, "starts": [0, 40]}, "not in order"),
        ({"shape": [3, 5], "first": 0, "starts": []}, "does not begin"),
        ({"shape": [3, -5], "first": 0, "starts": [0]}, "shape of a"),
        ({"shape": [3, 5], "first": -1, "starts": [0]}, "parts that are not there"),
        ({"shape": [3, 5], "first": 3, "starts": [0, 4]}, "parts that are not there"),
        ({"shape": [3, 5], "first": "0", "starts": [0]}, "first"),
        ({"shape": [3, 5], "starts": [0]}, "has no first"),
        ({"shape": [3, 5], "first": 0, "starts": [0], "file": "../x"}, "unknown entry"),
        ([], "instead of an object"),
    ],
)
def test_an_index_that_describes_something_else_is_refused(folder: Path, layout: Any, message: str) -> None:
    write_index(folder, {"a": layout})
    with pytest.raises(UserError, match=rf"{INDEX} cannot be read \(.*{message}.*\); use another checkpoint"):
        opened(folder)


def test_a_part_that_the_index_does_not_describe_is_refused(folder: Path) -> None:
    write_index(
        folder, {"a": {"shape": [3, 6], "first": 0, "starts": [0, 4]}, "d": {"shape": [], "first": 0, "starts": [0]}}
    )
    tensors = opened(folder)
    for name in ("a", "d"):
        with pytest.raises(UserError, match=rf"does not hold the \d+ elements of {name} that {INDEX} lists"):
            tensors[name]

import os
from pathlib import Path

import pytest
import webdataset

from data_tools.pack import open_tar


def fill(path: Path) -> bytes:
    with open_tar(path) as write:
        write("a", {"caption.txt": b"a ball", "meta.json": b"{}"})
        write("k" * 150, {"caption.txt": b"long keys too"})
    return path.read_bytes()


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    assert fill(tmp_path / "a.tar") == fill(tmp_path / "b.tar")
    samples = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [(sample["__key__"], sample["caption.txt"]) for sample in samples] == [
        ("a", b"a ball"),
        ("k" * 150, b"long keys too"),
    ]


def test_a_tar_that_was_not_finished_has_no_name(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_tar(tmp_path / "a.tar") as write:
        write("a", {"caption.txt": b"a ball"})
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []

from pathlib import Path

from gen1_train.files import clear_killed, write_atomically


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "plan.json", b"whole")
    (tmp_path / ".plan.json.0011.tmp").write_bytes(b"ha")
    (tmp_path / ".step-00000001.tmp").mkdir()
    clear_killed(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".step-00000001.tmp", "plan.json"]
    clear_killed(tmp_path / "nowhere")

import pytest

from gen1_train.training.metrics import MetricsCSV, read_metrics


def test_rows_and_new_columns(tmp_path):
    log = MetricsCSV(tmp_path / "metrics.csv", 0)
    log.log_metrics({"loss": 1.0, "epoch": 0}, step=1)
    log.log_metrics({"loss": 0.5, "loss_image": 0.25}, step=2)
    log.log_metrics({"loss": 0.125}, step=3)
    assert read_metrics(tmp_path / "metrics.csv") == [
        {"step": "1", "loss": "1"},
        {"step": "2", "loss": "0.5", "loss_image": "0.25"},
        {"step": "3", "loss": "0.125"},
    ]


def test_a_resume_drops_the_rows_that_it_makes_again(tmp_path):
    before = MetricsCSV(tmp_path / "metrics.csv", 0)
    for step in (10, 20, 30):
        before.log_metrics({"loss": 1.0}, step=step)
    after = MetricsCSV(tmp_path / "metrics.csv", 20)
    after.log_metrics({"loss": 2.0}, step=30)
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "metrics.csv")] == [
        ("10", "1"),
        ("20", "1"),
        ("30", "2"),
    ]


def test_a_line_torn_by_a_kill_is_left_out(tmp_path):
    log = MetricsCSV(tmp_path / "metrics.csv", 0)
    log.log_metrics({"loss": 1.0}, step=10)
    with (tmp_path / "metrics.csv").open("a") as stream:
        stream.write("2")  # of "20,0.9"
    after = MetricsCSV(tmp_path / "metrics.csv", 10)
    after.log_metrics({"loss": 0.5}, step=20)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == ["10", "20"]


@pytest.mark.parametrize("torn", ["2", "20,0.", "20,0.9,0.2"])  # of "20,0.9,0.25"
def test_no_part_of_a_torn_line_is_taken_for_a_number(tmp_path, torn):
    log = MetricsCSV(tmp_path / "metrics.csv", 0)
    log.log_metrics({"loss": 1.0, "lr": 0.5}, step=10)
    with (tmp_path / "metrics.csv").open("a") as stream:
        stream.write(torn)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == ["10"]


def test_what_is_logged_twice_at_a_step_is_one_row(tmp_path):
    """Validation comes at a step where a row may stand, or may not."""
    log = MetricsCSV(tmp_path / "metrics.csv", 0)
    log.log_metrics({"loss": 1.0, "lr": 0.5}, step=10)
    log.log_metrics({"val_loss": 2.0}, step=10)
    log.log_metrics({"val_loss": 3.0}, step=15)
    log.log_metrics({"loss": 0.25, "val_loss": 4.0}, step=15)
    wanted = [
        {"step": "10", "loss": "1", "lr": "0.5", "val_loss": "2"},
        {"step": "15", "loss": "0.25", "val_loss": "4"},
    ]
    assert read_metrics(tmp_path / "metrics.csv") == wanted
    MetricsCSV(tmp_path / "metrics.csv", 15).log_metrics({"loss": 0.125}, step=20)
    assert read_metrics(tmp_path / "metrics.csv") == [*wanted, {"step": "20", "loss": "0.125"}]
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 4  # the header and three rows

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

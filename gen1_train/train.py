"""`gen1-train`: one training stage."""

from gen1_train.cli import run_app


def main() -> None:
    from gen1_train.config import TrainConfig
    from gen1_train.training.run import train

    run_app("gen1-train", "train", TrainConfig, train)


if __name__ == "__main__":
    main()

"""`gen1-edit`: the content of a prompt in the structure of a video."""

from gen1_train.cli import start
from gen1_train.cli.app import run_app
from gen1_train.editing.config import EditConfig

# the settings that --help shows
FIRST = (
    "checkpoint",
    "input",
    "prompt",
    "image",
    "output",
    "overwrite",
    "frames",
    "mask",
    "omega",
    "omega_t",
    "t_s",
    "sweep",
    "precision",
    "ui",
)


def edit(config: EditConfig) -> None:
    """Edits files, or serves the page. Raises UserError; each output is whole or does not exist."""
    if config.ui:
        from gen1_train.editing.ui.server import serve

        return serve(config)
    from gen1_train.editing.run import edit_files

    edit_files(config)


def main() -> None:
    run_app("gen1-edit", "edit", EditConfig, edit, first=FIRST)


if __name__ == "__main__":
    start.edit()

"""`gen1-edit ui=true`: a page in the browser that makes the same edits as gen1-edit, by the same calls."""

import atexit
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

from gen1_train.editing.config import EditConfig
from gen1_train.editing.editor import Gen1Editor
from gen1_train.editing.ui.form import Limits
from gen1_train.editing.ui.hosts import Hosts
from gen1_train.editing.ui.studio import Studio
from gen1_train.errors import UserError
from gen1_train.system.signals import exit_code

logger = logging.getLogger(__name__)
REAPING = 5.0  # seconds between two searches for tabs that are gone; ours


def serve(config: EditConfig) -> None:
    """Serves the page until Ctrl-C. Raises UserError, also when the address is in use."""
    if config.checkpoint is None:
        raise UserError("checkpoint is not given: add checkpoint=…")
    if config.images:
        raise UserError("images= is not for the page, which takes one example image: leave it out")
    Limits.of(config)
    Hosts.of(config.ui_host, config.ui_names)
    with tempfile.TemporaryDirectory(prefix="gen1-edit-ui-") as name:
        os.environ |= {"GRADIO_TEMP_DIR": name, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        try:
            from gen1_train.editing.ui.page import build, launch
        except ModuleNotFoundError as error:
            raise UserError(
                "ui=true needs Gradio: make install has it; or pip install -e '.[ui]' in the checkout"
            ) from error
        editor = Gen1Editor.of(config)
        studio = Studio(config, editor, Path(name))
        address = launch(build(studio), config, studio)
        logger.info("the page is at %s (Ctrl-C ends it)", address)
        try:
            while True:
                time.sleep(REAPING)
                studio.reap()
        except KeyboardInterrupt as interrupt:
            studio.leave_all()
            shutil.rmtree(name, ignore_errors=True)
            logger.error(str(interrupt) or "interrupted", extra={"label": ""})
            atexit._run_exitfuncs()  # libraries have temporary folders too
            # a step of the sampler cannot be interrupted, and Python would wait for its thread
            os._exit(exit_code(interrupt))

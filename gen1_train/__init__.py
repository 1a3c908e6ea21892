"""Gen-1 (arXiv 2302.03011): video diffusion that edits the content of a video and keeps its structure.

The Python interface is `from gen1_train import Gen1Editor`, and `from gen1_train.model import SpatioTemporalUNet`.
"""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gen1_train.editing.editor import Gen1Editor

__all__ = ["Gen1Editor"]

logging.getLogger(__name__).addHandler(logging.NullHandler())  # prints nothing until a command opens its console
for noisy in ("torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
    # where torchao is installed, diffusers imports it, and both warn of what nobody here uses
    logging.getLogger(noisy).setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    """Imports the editor when it is asked for: torch and the networks' libraries take seconds."""
    if name == "Gen1Editor":
        from gen1_train.editing.editor import Gen1Editor

        return Gen1Editor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

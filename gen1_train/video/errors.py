"""The error of video and image files."""

from gen1_train.errors import one_line


class VideoError(Exception):
    """A video or image file cannot be read or written; the message is the reason, without the path.

    Args:
        transient: another attempt may succeed (after a full disk, a lost mount, a killed decoder); otherwise, the file
            itself is at fault.
        unsupported: the decoder cannot read the file at all: it returned no frame and found no damage. Another decoder
            may read it.
    """

    def __init__(self, reason: str, transient: bool = False, unsupported: bool = False) -> None:
        super().__init__(one_line(reason))
        self.transient = transient
        self.unsupported = unsupported

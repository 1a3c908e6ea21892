"""The table of everything that reads a file which may be a stranger's."""

from tests.fuzzing.binaries import BINARIES
from tests.fuzzing.documents import DOCUMENTS
from tests.fuzzing.lines import LINES
from tests.fuzzing.media import MEDIA
from tests.fuzzing.target import Target

TARGETS: dict[str, Target] = {target.name: target for target in [*DOCUMENTS, *BINARIES, *MEDIA, *LINES]}

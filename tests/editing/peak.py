"""Edits and prints the peak memory of Python and numpy, in MiB: `python -m tests.editing.peak CONFIG`, as JSON.

That of the whole process, with torch's scratch memory, varies by 80 MiB from run to run. A fork (tests/forkserver.py)
has imported the networks' libraries already; with tracemalloc, that would take longer than the edit.
"""

import json
import sys
import tracemalloc

import gen1_train.editing.run  # noqa: F401  imported before the count
from gen1_train.edit import EditConfig, edit

if __name__ == "__main__":
    tracemalloc.start()
    edit(EditConfig(**json.loads(sys.argv[1])))
    print("PEAK", tracemalloc.get_traced_memory()[1] >> 20)

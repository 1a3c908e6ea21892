"""The miniature world: rendered clips with captions and true depth, and small estimators fitted on them.

Pretrained weights take gigabytes. The demo and the tests need the same *formats* and realistic signals in megabytes.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"  # of the fitted estimators

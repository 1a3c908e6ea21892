"""The miniature world: rendered clips with captions and true depth, and small estimators fitted on them.

Pretrained weights are gigabytes; the demo and the tests need the same *formats* and honest signals in megabytes.
"""

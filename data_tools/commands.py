"""What gen1-data does besides making a set: the first word of a call, and what it does."""

COMMANDS = {
    "report": "write an HTML page about a set: counts, what was dropped and why, histograms, random samples",
    "verify": "read every member of a set again and list what differs from what was frozen",
    "order": "print the samples that a training step reads",
    "refresh": "recompute one layer of a set into a new set",
}

"""Gen-1 from nothing but this repository: `python -m miniature.experiment [--output DIR] [--only STEP ...]`.

World, shards, the five stages, the prior, the ablation without images, customization, and the evaluations that
docs/results.md shows; two CPU cores take less than two hours. Called again, it goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from miniature.demo import Road, command_name
from miniature.world import World, write_world

TRAIN = World(clips=800, images=3200, split="train", frames=32, height=128, width=224)
STEPS = {2: 1500, 3: 700, 4: 1200, 5: 1000}  # of the stages; stage 2 learns to draw, which Stable Diffusion brings along
PRIOR_STEPS = 3000
PAIRS = 64
SAMPLING = ["omega=3", "steps=20", "solver=dpm++"]
OMEGA_T, T_S = "[0.5,1,1.5]", "[0,2,4,7]"

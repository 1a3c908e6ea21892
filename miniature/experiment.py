"""Gen-1 from nothing but this repository: `python -m miniature.experiment [--output DIR] [--only STEP ...]`.

World, shards, the five stages, the prior, the ablation without images, customization, and the evaluations that
docs/results.md shows; two CPU cores take less than two hours. Called again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from miniature.road import Road
from miniature.tiny import write_stable_diffusion
from miniature.world import SOURCES, World, write_world

TRAIN = World(clips=800, images=3200, split="train", frames=32, height=128, width=224)
STEPS = {2: 1500, 3: 500, 4: 1000, 5: 700}  # of the stages; stage 2 learns to draw, which Stable Diffusion brings along
PRIOR = ["prior_model=tiny", "stage.steps=1500", "data.batch=256", "optim.lr=1e-3", "optim.warmup_steps=50"]
PRIOR += ["trainer.accelerator=cpu", "trainer.precision=32-true", "ema.decays=[0.99]"]


class Experiment:
    """The commands of the experiment in one folder; each step is a method that may be called again."""

    def __init__(self, output: Path) -> None:
        output.mkdir(parents=True, exist_ok=True)
        self.output, self.road = output, Road(output, "miniature.experiment", "the same command")
        self.shards, self.runs = output / "shards", output / "runs"

    def data(self) -> None:
        """The training split as real files, and their shards."""
        videos = self.output / "videos"
        with self.road.timed("world", f"rendering {TRAIN.clips} clips and {TRAIN.images} images into {videos}"):
            write_world(videos, TRAIN)
        source = [f"source={videos / SOURCES}", f"output={self.shards}", "recipe=tiny", "workers=2"]
        self.road.call("data", "data_tools.main", *source)

    def train(self, stage: int, *more: str) -> None:
        settings = [f"stage={stage}", "experiment=miniature", f"output={self.runs}", *more]
        if stage > 1:
            settings += [f"data.root={self.shards}", f"stage.steps={STEPS[stage]}"]
        self.road.call(f"stage {stage}", "gen1_train.train", *settings)

    def stages(self) -> None:
        """A Stable Diffusion of random weights, since none can be downloaded, and what the five stages make of it."""
        start = self.output / "stable-diffusion"
        if not (start / "unet" / "config.json").exists():
            write_stable_diffusion(start, widths=(64, 96, 128), attention=(True,) * 3, layers=1, heads=2)
        self.train(1, f"init.from={start}")
        for stage in STEPS:
            self.train(stage)

    def prior(self) -> None:
        place = [f"data.root={self.shards}", f"output={self.runs}", "name=miniature"]
        self.road.call("prior", "gen1_train.train", "stage=prior", *place, *PRIOR)

    def without_images(self) -> None:
        """The ablation: stages 3 to 5 once more from the same stage 2, on clips alone."""
        start = f"init.checkpoint={self.runs / 'miniature' / 'stage2'}"
        for stage in (3, 4, 5):
            more = ["name=no-images", "data.image_ratio=0", *([start] if stage == 3 else [])]
            self.train(stage, *more, title=f"no images, stage {stage}")

    def customized(self) -> None:
        """The model once more, fine-tuned on a few images of a texture that the world does not have."""
        images, start = self.output / "texture", f"init.checkpoint={self.runs / 'miniature' / 'stage5'}"
        write_texture(images)
        place = [f"images={images}", f"data.root={self.shards}", f"output={self.runs}", "name=texture", start]
        self.road.call("customization", "gen1_train.train", "stage=customize", "experiment=miniature", *place, *CUSTOM)

    def cases(self) -> None:
        """What is evaluated: held-out clips, each with a prompt by image and by text."""
        with self.road.timed("cases", f"rendering {PAIRS} held-out clips and their prompts"):
            write_cases(self.output / "cases", PAIRS)

    def evaluations(self) -> None:
        for name, evaluation in EVALUATIONS.items():
            place = self.output / "evaluation" / name
            settings = [
                f"checkpoint={self.runs / evaluation.run}",
                f"prior={self.runs / 'miniature' / 'prior'}",
                f"data={self.output / 'cases' / evaluation.data}",
                f"output={place}",
                *(*SAMPLING, *evaluation.dials),
            ]
            self.road.call(f"evaluation: {name}", "gen1_train.evaluate", *settings)
            self.road.call(f"measures: {name}", "miniature.measure", str(place), str(self.output / "cases"))

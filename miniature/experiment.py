"""Gen-1 from nothing but this repository: `python -m miniature.experiment [STEP ...] [--output DIR]`.

World, shards, the five stages, the prior, the ablation without images, customization, and the evaluations whose numbers
docs/results.md shows; two CPU cores take 96 minutes. Without STEP all of it. Called again, it goes on where it
was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gen1_train.errors import UserError
from miniature.arguments import Parser
from miniature.render import render_frame
from miniature.road import Road
from miniature.scene import sample_scene
from miniature.tiny import write_stable_diffusion
from miniature.world import SEEDS, SOURCES, World, write_image, write_world

TRAIN = World(clips=800, images=6400, split="train", frames=32, height=128, width=224)
STEPS = {2: 1500, 3: 500, 4: 1000, 5: 1400}  # stage 2 learns to draw, which Stable Diffusion brings along; 5 settles
PRIOR = ["prior_model=tiny", "stage.steps=1500", "data.batch=256", "optim.lr=1e-3", "optim.warmup_steps=50"]
PRIOR += ["trainer.accelerator=cpu", "trainer.precision=32-true", "ema.decays=[0.99]"]
# on the pictures alone: with clips of the world beside them less of the texture came (benchmarks/RESULTS.md)
CUSTOM = ["stage.steps=300", "optim.lr=1e-3", "data.batch_clips=4", "data.image_ratio=1"]
PAIRS = 64
TEXTURE, TEXTURE_IMAGES, TEXTURE_SEED = "capped", 15, 800  # none of the world's; pictures of it, and their world
SAMPLING = ["omega=3", "steps=12", "solver=dpm++", "keep_videos=true", "workers=2"]
BOTH = ("methods=[gen1,per_frame]", "omega_t=[1]", "t_s=[0]")


@dataclass(frozen=True)
class Evaluation:
    """A call of gen1-eval."""

    run: str  # whose last checkpoint, in runs/
    cases: str = "cases"
    pairs: str = "pairs.csv"
    settings: tuple[str, ...] = ("methods=[gen1]", "omega_t=[1]", "t_s=[0]")


EVALUATIONS = {
    "time": Evaluation("miniature/stage5", settings=("methods=[gen1,per_frame]", "omega_t=[0.5,1,1.5]", "t_s=[0]")),
    "structure": Evaluation("miniature/stage5", settings=("methods=[gen1]", "omega_t=[1]", "t_s=[0,2,4,7]")),
    "text": Evaluation("miniature/stage5", pairs="pairs-text.csv"),
    "stage3": Evaluation("miniature/stage3"),
    "stage4": Evaluation("miniature/stage4", settings=BOTH),
    "no-images": Evaluation("no-images/stage4", settings=BOTH),
    "texture-before": Evaluation("miniature/stage5", cases="texture-cases"),
    "texture-after": Evaluation("texture/customize", cases="texture-cases"),
}


class Experiment:
    """The commands of the experiment in one folder; each step may be called again."""

    def __init__(self, output: Path) -> None:
        self.output, self.road = output, Road(output, "miniature.experiment", "the same command")
        self.shards, self.runs, self.images = output / "shards", output / "runs", output / "texture-images"
        self.steps: dict[str, Callable[[], None]] = {
            "data": self.data,
            "stages": self.stages,
            "prior": self.prior,
            "no-images": self.without_images,
            "texture": self.customize,
            "cases": self.cases,
            "evaluations": self.evaluations,
            "results": self.results,
        }

    def run(self, names: Sequence[str]) -> None:
        """These steps, or all. Raises UserError for one that there is not, before anything is made."""
        if unknown := [name for name in names if name not in self.steps]:
            raise UserError(f"there is no step {unknown[0]!r}; choose from {', '.join(self.steps)}")
        self.output.mkdir(parents=True, exist_ok=True)
        for name in names or self.steps:
            self.steps[name]()

    def data(self) -> None:
        """The training split as real files, and their shards."""
        videos = self.output / "videos"
        with self.road.timed("world", f"rendering {TRAIN.clips} clips and {TRAIN.images} images into {videos}"):
            write_world(videos, TRAIN)
        source = [f"source={videos / SOURCES}", f"output={self.shards}", "recipe=tiny", "workers=2"]
        self.road.call("data", "data_tools.main", *source)

    def train(self, stage: int, *more: str, title: str | None = None) -> None:
        settings = [f"stage={stage}", "experiment=miniature", f"output={self.runs}", *more]
        if stage > 1:
            settings += [f"data.root={self.shards}", f"stage.steps={STEPS[stage]}"]
        self.road.call(title or f"stage {stage}", "gen1_train.train", *settings)

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
        """The ablation: stages 3 and 4 once more from the same stage 2, on clips alone; to be compared with stage 4."""
        start = [f"init.checkpoint={self.runs / 'miniature' / 'stage2'}"]
        for stage in (3, 4):
            more = ["name=no-images", "data.image_ratio=0", *(start if stage == 3 else [])]
            self.train(stage, *more, title=f"no images, stage {stage}")

    def customize(self) -> None:
        """The model once more, fine-tuned on a few images of a texture that the world does not have."""
        write_texture(self.images)
        start = f"init.checkpoint={self.runs / 'miniature' / 'stage5'}"
        place = [f"images={self.images}", f"data.root={self.shards}", f"output={self.runs}", "name=texture", start]
        self.road.call("customization", "gen1_train.train", "stage=customize", "experiment=miniature", *place, *CUSTOM)

    def cases(self) -> None:
        """What is evaluated: held-out clips, each with a prompt by image and by text."""
        for name, more in (("cases", []), ("texture-cases", ["--texture", TEXTURE])):
            self.road.call(name, "miniature.cases", str(self.output / name), "--pairs", str(PAIRS), *more)

    def evaluations(self) -> None:
        for name, evaluation in EVALUATIONS.items():
            cases, place = self.output / evaluation.cases, self.output / "evaluation" / name
            settings = [
                f"checkpoint={self.runs / evaluation.run}",
                f"prior={self.runs / 'miniature' / 'prior'}",
                f"data={cases / evaluation.pairs}",
                f"output={place}",
                *(*SAMPLING, *evaluation.settings),
            ]
            self.road.call(f"evaluation: {name}", "gen1_train.evaluate", *settings)
            self.road.call(f"measures: {name}", "miniature.measure", str(place), str(cases))

    def results(self) -> None:
        """The page, like docs/results.md: OUTPUT/docs/results.md."""
        for name in ("cases", "texture-cases"):
            self.road.call(f"references: {name}", "miniature.references", str(self.output / name))
        self.road.call("page", "miniature.results", str(self.output), str(self.output / "docs"))


def write_texture(folder: Path) -> None:
    """Pictures of solids that are alike in their texture alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(TEXTURE_IMAGES):
        scene = sample_scene(TEXTURE_SEED * SEEDS + number, "train")
        scene = replace(scene, solids=tuple(replace(solid, texture=TEXTURE) for solid in scene.solids))
        write_image(folder / f"{number:02d}.png", render_frame(scene, 0.0, TRAIN.height, TRAIN.width).pixels)


def main() -> None:
    parser = Parser(prog="python -m miniature.experiment", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "steps", nargs="*", metavar="STEP", help="data, stages, prior, no-images, texture, cases, evaluations, results"
    )
    parser.add_argument("--output", type=Path, default=Path("experiment"))
    given = parser.parse_args()
    with parser.mistakes():
        Experiment(given.output).run(given.steps)


if __name__ == "__main__":
    main()

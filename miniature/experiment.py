"""Gen-1 from nothing but this repository: `python -m miniature.experiment [STEP ...] [--output DIR]`.

The steps are the world, its shards, the five stages, the prior, the ablation without images, customization, and the
evaluations whose numbers docs/results.md shows. Without STEP, all of them run; two CPU cores take 96 minutes. Called
again, it continues where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gen1_train.errors import UserError
from miniature.arguments import Parser
from miniature.tiny import write_stable_diffusion
from miniature.workflow import Runner, Workflow, run_in_process
from miniature.world.render import render_frame
from miniature.world.scene import sample_scene
from miniature.world.world import SCENES_PER_SEED, SOURCES, World, write_image, write_world

TRAIN = World(clips=800, images=6400, split="train", frames=32, height=128, width=224)
# stage 2 learns to draw, which a real Stable Diffusion can already; stage 5 converges
STEPS = {2: 1500, 3: 500, 4: 1000, 5: 1400}
PRIOR = ["prior_model=tiny", "stage.steps=1500", "data.batch=256", "optim.lr=1e-3", "optim.warmup_steps=50"]
PRIOR += ["trainer.accelerator=cpu", "trainer.precision=32-true", "ema.decays=[0.99]"]
# on the pictures alone: mixed with clips of the world, they teach less of the texture (benchmarks/RESULTS.md)
CUSTOM = ["stage.steps=300", "optim.lr=1e-3", "data.batch_clips=4", "data.image_ratio=1"]
PAIRS = 64
TEXTURE = "capped"  # no world has it
TEXTURE_IMAGES = 15
TEXTURE_SEED = 800  # of the world that the pictures of the texture come from
SAMPLING = ["omega=3", "steps=12", "solver=dpm++", "keep_videos=true", "workers=2"]
BOTH = ("methods=[gen1,per_frame]", "omega_t=[1]", "t_s=[0]")


@dataclass(frozen=True)
class Evaluation:
    """The arguments of a gen1-eval call."""

    run: str  # folder in runs/ whose last checkpoint is evaluated
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
    """The commands of the experiment in one folder. Each step can be called again."""

    def __init__(self, output: Path, run_command: Runner = run_in_process) -> None:
        self.output = output
        self.workflow = Workflow(output, "the same command", run_command)
        self.shards = output / "shards"
        self.runs = output / "runs"
        self.images = output / "texture-images"
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
        """Runs these steps, or all if none are given. Raises UserError for an unknown step, and then writes nothing."""
        if unknown := [name for name in names if name not in self.steps]:
            raise UserError(f"there is no step {unknown[0]!r}; choose from {', '.join(self.steps)}")
        self.output.mkdir(parents=True, exist_ok=True)
        for name in names or self.steps:
            self.steps[name]()

    def data(self) -> None:
        """Writes the training split as real files, and prepares their shards."""
        videos = self.output / "videos"
        with self.workflow.timed("world", f"rendering {TRAIN.clips} clips and {TRAIN.images} images into {videos}"):
            write_world(videos, TRAIN)
        source = [f"source={videos / SOURCES}", f"output={self.shards}", "recipe=tiny", "workers=2"]
        self.workflow.call("data", "data_tools.main", *source)

    def train(self, stage: int, *more: str, title: str | None = None) -> None:
        settings = [f"stage={stage}", "experiment=miniature", f"output={self.runs}", *more]
        if stage > 1:
            settings += [f"data.root={self.shards}", f"stage.steps={STEPS[stage]}"]
        self.workflow.call(title or f"stage {stage}", "gen1_train.train", *settings)

    def stages(self) -> None:
        """Trains the five stages from a Stable Diffusion with random weights, since no pretrained one is downloaded."""
        start = self.output / "stable-diffusion"
        if not (start / "unet" / "config.json").exists():
            write_stable_diffusion(start, widths=(64, 96, 128), attention=(True,) * 3, layers=1, heads=2)
        self.train(1, f"init.from={start}")
        for stage in STEPS:
            self.train(stage)

    def prior(self) -> None:
        settings = [f"data.root={self.shards}", f"output={self.runs}", "name=miniature", *PRIOR]
        self.workflow.call("prior", "gen1_train.train", "stage=prior", *settings)

    def without_images(self) -> None:
        """Trains the ablation, to be compared with stage 4: stages 3 and 4 from the same stage 2, on clips alone."""
        start = [f"init.checkpoint={self.runs / 'miniature' / 'stage2'}"]
        for stage in (3, 4):
            more = ["name=no-images", "data.image_ratio=0", *(start if stage == 3 else [])]
            self.train(stage, *more, title=f"no images, stage {stage}")

    def customize(self) -> None:
        """Fine-tunes the model on a few images of a texture that the world does not have."""
        write_texture(self.images)
        settings = [
            "stage=customize",
            "experiment=miniature",
            f"images={self.images}",
            f"data.root={self.shards}",
            f"output={self.runs}",
            "name=texture",
            f"init.checkpoint={self.runs / 'miniature' / 'stage5'}",
            *CUSTOM,
        ]
        self.workflow.call("customization", "gen1_train.train", *settings)

    def cases(self) -> None:
        """Writes the cases to evaluate: held-out clips, each with an image prompt and a text prompt."""
        for name, more in (("cases", []), ("texture-cases", ["--texture", TEXTURE])):
            self.workflow.call(name, "miniature.cases", str(self.output / name), "--pairs", str(PAIRS), *more)

    def evaluations(self) -> None:
        for name, evaluation in EVALUATIONS.items():
            cases = self.output / evaluation.cases
            edits = self.output / "evaluation" / name
            settings = [
                f"checkpoint={self.runs / evaluation.run}",
                f"prior={self.runs / 'miniature' / 'prior'}",
                f"data={cases / evaluation.pairs}",
                f"output={edits}",
                *SAMPLING,
                *evaluation.settings,
            ]
            self.workflow.call(f"evaluation: {name}", "gen1_train.evaluate", *settings)
            self.workflow.call(f"measures: {name}", "miniature.measure", str(edits), str(cases))

    def results(self) -> None:
        """Writes OUTPUT/docs/results.md, the page of docs/results.md."""
        for name in ("cases", "texture-cases"):
            self.workflow.call(f"references: {name}", "miniature.references", str(self.output / name))
        self.workflow.call("page", "miniature.results", str(self.output), str(self.output / "docs"))


def write_texture(folder: Path) -> None:
    """Writes pictures of solids that have nothing but their texture in common."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(TEXTURE_IMAGES):
        scene = sample_scene(TEXTURE_SEED * SCENES_PER_SEED + number, "train")
        scene = replace(scene, solids=tuple(replace(solid, texture=TEXTURE) for solid in scene.solids))
        write_image(folder / f"{number:02d}.png", render_frame(scene, 0.0, TRAIN.height, TRAIN.width).pixels)


def main() -> None:
    parser = Parser(prog="python -m miniature.experiment", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "steps", nargs="*", metavar="STEP", help="data, stages, prior, no-images, texture, cases, evaluations, results"
    )
    parser.add_argument("--output", type=Path, default=Path("experiment"))
    arguments = parser.parse_args()
    with parser.command():
        Experiment(arguments.output).run(arguments.steps)


if __name__ == "__main__":
    main()

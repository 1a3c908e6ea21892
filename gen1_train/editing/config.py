"""The settings of `gen1-edit`."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gen1_train.diffusion.recommended import DIALS, Recommended, with_dials
from gen1_train.diffusion.sampling import SamplingConfig
from gen1_train.errors import UserError, check_choice, check_share
from gen1_train.system.console import ConsoleConfig
from gen1_train.video.selection import Selection, nearest_stride

NO_CONTENT = "the content is not given: add prompt=TEXT or image=FILE"
MAX_FPS = 1000
INPUT_SIZE = "input"  # the value of size= that means the input's own
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class ComputeConfig:
    """How the networks compute in an edit, shared by gen1-edit, its page, gen1-eval and `Gen1Editor`."""

    precision: str = "auto"  # see `gen1_train.editing.precision`
    compile: bool = False  # torch.compile for the UNet's blocks
    tf32: bool = True  # GPUs, precision=fp32: products and convolutions in TF32

    def check(self) -> None:
        """Raises UserError for an unknown precision."""
        check_choice("precision", self.precision, PRECISIONS)


@dataclass
class EditConfig:
    checkpoint: str | None = None  # a checkpoint folder, a run folder (its newest), or a package that carries one
    weights: str = "ema"  # which of its weights: ema (the first average, if there is one), raw, or an average's decay
    prior: str | None = None  # run folder of stage=prior; null: `prior` in the checkpoint, or next to its run folder
    input: str | None = None  # the video whose structure is kept, or an image as a video of one frame
    prompt: str | None = None  # the content, as a text
    image: str | None = None  # the content, as an example image; with a prompt, both are mixed
    images: list[str] = field(default_factory=list)  # several example images instead of image, as FILE or FILE:WEIGHT
    image_share: float = 0.5  # of the images in that mixture
    negative_prompt: str | None = None  # what the edit should lead away from
    prompts: str | None = None  # a text file with one prompt per line: an edit of each, OUTPUT-1.mp4, OUTPUT-2.mp4, …
    output: str | None = None  # the edited video, .mp4
    overwrite: bool = False  # replace outputs that exist already; never a file that the edit reads
    structure_output: str | None = None  # also write the structure as the model sees it, as a gray or colored video
    sweep: str | None = None  # a labeled comparison over a dial: omega_t, omega_t=0.5,1,1.5, t_s=0,3,7, prompt=a|b, …
    bucket: str | None = None  # WIDTHxHEIGHT to edit at; null: the trained bucket with the nearest aspect
    size: str | None = None  # of the output: input (its own), or WIDTHxHEIGHT, in windows of a bucket; null: the bucket
    start: int = 0  # first frame of the input
    frames: int | None = None  # how many frames to edit; null: to the end
    stride: int | None = None  # frames of the input from one edited frame to the next; null: as learned, or 1
    fps: float | None = None  # edited frames a second, picked by time; null: all of the input's, or by stride
    audio: bool = True  # the output keeps the input's sound
    mask: str | None = None  # limits the edit: an image or a video, white is edited; or foreground, background by depth
    # dials that are null are as the checkpoint recommends (recommended.yaml in its folder), else as in SamplingConfig
    omega: float | None = None  # content: higher follows the prompt more strongly; null: as recommended, else 7.5
    omega_t: float | None = None  # time: below 1 flickers, above 1 is smoother; null: as recommended, else 1
    rescale: float | None = None  # 0 to 1: takes back the contrast that a high omega adds; null: as recommended, else 0
    t_s: int | None = None  # structure: 0 keeps all of it, 7 is freest; null: as recommended, else 0
    structure: str | None = None  # its planes and their strengths, such as depth+face:0.5; null: all, at strength 1
    init_strength: float | None = None  # below 1: from the noised input; 1: from noise; null: as recommended, else 1
    temporal: bool = SamplingConfig.temporal  # false: each frame alone, without the temporal layers
    steps: int | None = None  # of the sampler; null: as recommended, else 50
    solver: str | None = None  # ddim, or dpm++: as good in fewer steps; null: as recommended, else ddim
    seed: int = SamplingConfig.seed  # of all noise: same seed, same frames
    space_overlap: float = SamplingConfig.space_overlap  # size=: share of a window's sides in common with the next
    batch: int = SamplingConfig.batch  # clips that go through the UNet together: bounds memory, changes rounding only
    device: str = "auto"  # cpu, cuda, or auto: a GPU if there is one
    precision: str = ComputeConfig.precision  # fp32, bf16, fp16, or auto: bf16 or fp16 on GPUs, fp32 on CPUs
    compile: bool = ComputeConfig.compile  # torch.compile the UNet, once for each size of frames: pays for many steps
    tf32: bool = ComputeConfig.tf32  # precision=fp32 on GPUs: float32 products and convolutions with 10-bit mantissas
    ui: bool = False  # serve a page in the browser to edit from; the settings above are its initial values
    ui_host: str = "127.0.0.1"  # the address that the page is served at: by default, for this machine only
    ui_names: str | None = None  # further host names that the page answers to, as of a proxy, separated by commas
    ui_port: int = 7860
    ui_megabytes: int = 200  # the largest file that can be uploaded to the page
    ui_seconds: float = 30.0  # the longest part of a video that the page edits
    log: ConsoleConfig = field(default_factory=ConsoleConfig)  # lines on the terminal

    def destinations(self) -> list[tuple[str, Path]]:
        """The files that no other edit may write, and the settings that name them."""
        named = [("output", self.output), ("structure_output", self.structure_output)]
        return [(name, Path(path)) for name, path in named if path is not None]

    def check(self) -> None:
        """Raises UserError for files and frames that are missing or cannot be. Variants are checked one by one."""
        from gen1_train.video.geometry import parse_bucket  # not needed for --help

        for name in ("checkpoint", "input", "output"):
            if getattr(self, name) is None:
                raise UserError(f"{name} is not given: add {name}=…")
        self.compute.check()
        for name in ("output", "structure_output"):
            path = getattr(self, name)
            if path is not None and Path(path).suffix != ".mp4":
                raise UserError(f"{name}={path} must end with .mp4")
        if self.size not in (None, INPUT_SIZE):
            try:
                parse_bucket(str(self.size))
            except ValueError:
                raise UserError(f"size={self.size}: give size=input, or WIDTHxHEIGHT in pixels") from None
        stride = 1 if self.stride is None else self.stride
        if self.start < 0 or stride < 1 or (self.frames is not None and self.frames < 1):
            raise UserError(f"start={self.start}, frames={self.frames}, stride={stride}: must be at least 0, 1 and 1")
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise UserError(f"fps={self.fps:g} is out of range: give frames a second, above 0 and up to {MAX_FPS}")
        if self.fps is not None and stride > 1:
            raise UserError("fps= and stride= both choose the frames to edit: give only one of them")

    def check_variant(self) -> None:
        """Raises UserError for a dial that is out of its range, or if there is no content. A sweep changes both."""
        self.sampling.check()
        check_share(image_share=self.image_share)
        if self.image is not None and self.images:
            raise UserError("give image= or images=, not both")
        if self.prompt is None and not self.examples:
            raise UserError(NO_CONTENT)
        for name in ("prompt", "negative_prompt"):
            text = getattr(self, name)
            if text is not None and not text.strip():
                raise UserError(f"{name}= is empty: describe the video, or leave it out and give image=FILE")

    def at_pace(self, learned: float | None, source: float) -> "EditConfig":
        """Returns the settings for an input of `source` frames a second, with the stride of clips of `learned` ones.

        A stride or fps= that is given stays. Without a pace that was learned, all frames are edited.
        """
        if self.stride is not None or self.fps is not None:
            return self
        return replace(self, stride=1 if learned is None else nearest_stride(source, learned))

    @property
    def examples(self) -> list[tuple[str, float]]:
        """The files of example images and their weights. Raises UserError for a weight that is not above 0."""
        return [(self.image, 1.0)] if self.image is not None else [read_weighted(text) for text in self.images]

    @property
    def selection(self) -> Selection:
        """The frames of the input that are edited; raises UserError for invalid ones."""
        return Selection(self.start, self.frames, self.stride or 1, self.fps)

    @property
    def compute(self) -> ComputeConfig:
        return ComputeConfig(self.precision, self.compile, self.tf32)

    @property
    def given(self) -> dict[str, Any]:
        """The dials that are not null, by name."""
        return {name: getattr(self, name) for name in DIALS if getattr(self, name) is not None}

    @property
    def sampling(self) -> SamplingConfig:
        """The settings of the sampler without a checkpoint's recommendations."""
        return self.sampling_from(Recommended())

    def sampling_from(self, recommended: Recommended) -> SamplingConfig:
        """Returns the settings of the sampler; dials that are not given are as recommended."""
        sampling = SamplingConfig(
            structure=self.structure,
            seed=self.seed,
            temporal=self.temporal,
            batch=self.batch,
            space_overlap=self.space_overlap,
        )
        return with_dials(sampling, {**recommended.dials, **self.given})


def read_weighted(text: str) -> tuple[str, float]:
    """Parses FILE or FILE:WEIGHT. A colon that no number follows belongs to the name. Raises UserError."""
    path, colon, number = text.rpartition(":")
    try:
        weight = float(number) if colon and path else math.nan
    except ValueError:
        weight = math.nan
    if math.isnan(weight):
        return text, 1.0
    if not 0 < weight < math.inf:
        raise UserError(f"images={text}: give a weight above 0, as in {path}:0.5")
    return path, weight

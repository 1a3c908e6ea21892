"""What the ablations compare: the base, and runs that differ from it by one change."""

from __future__ import annotations

from dataclasses import dataclass

BASE = "base"
LAST = 5  # the stage that is evaluated


@dataclass(frozen=True)
class Arm:
    """One change. Stages before `since` are those of the base; those of `edits` alone have the model of `trained`."""

    name: str
    change: str  # for the reader of the page
    since: int  # the first stage that is trained with it
    trained: str = ""  # the arm whose model is edited; "": its own
    settings: tuple[str, ...] = ()  # of gen1-train
    stages: tuple[int, ...] = (2, 3, 4, 5)  # those that the settings apply to
    refresh: tuple[str, ...] = ()  # of gen1-data refresh, which makes a set of its own
    edits: tuple[str, ...] = ()  # of gen1-eval
    incomparable: tuple[str, ...] = ()  # values that mean something else than the base's
    full_size: str = ""  # whether it should carry over to full size, and why


NOISE = "diffusion.noise"
ARMS = (
    Arm(BASE, "v-prediction, Stable Diffusion's schedule, plain loss, 12.5 % image steps", since=2),
    Arm(
        "eps",
        "the network predicts eps",
        since=2,
        settings=(f"{NOISE}.prediction=eps",),
        full_size="not seen here, where stage 2 starts from nothing: Stable Diffusion 1.5 has learned eps",
    ),
    Arm("x0", "the network predicts x0", since=2, settings=(f"{NOISE}.prediction=x0",)),
    Arm(
        "zero-snr",
        "the last noise level has no signal",
        since=2,
        settings=(f"{NOISE}.zero_terminal_snr=true",),
        full_size="yes: the mean that sampling loses depends on the schedule alone",
    ),
    Arm(
        "zero-snr-rescale",
        "the same, and edits with rescale=0.7",
        since=LAST + 1,
        trained="zero-snr",
        settings=(f"{NOISE}.zero_terminal_snr=true",),
        edits=("rescale=0.7",),
        full_size="yes, with the omega of 5 to 7.5 that is usual there rather more than with 3",
    ),
    Arm("rescale", "edits with rescale=0.7", since=LAST + 1, trained=BASE, edits=("rescale=0.7",)),
    Arm("offset", "offset noise of 0.1", since=2, settings=(f"{NOISE}.offset=0.1",)),
    Arm(
        "shared",
        "half of the noise's variance is common to all frames",
        since=3,
        settings=(f"{NOISE}.shared=0.5",),
        full_size="open: its paper measures a gain with models that generate motion, which structure gives here",
    ),
    Arm("min-snr", "min-SNR weights, gamma 5", since=2, settings=("diffusion.loss.weighting=min_snr",)),
    Arm("logit-normal", "logit-normal timesteps", since=2, settings=("diffusion.timesteps.sampling=logit_normal",)),
    Arm(
        "shifted",
        "timesteps shifted by resolution",
        since=2,
        settings=("diffusion.timesteps.sampling=shifted",),
        full_size="no: at 448x256 the shift is nearly none, and here it is far to the other side",
    ),
    Arm(
        "drop-content",
        "content is dropped from 20 % of the samples instead of 10 %",
        since=2,
        settings=("diffusion.drop_content=0.2",),
    ),
    Arm(
        "new-layers",
        "temporal layers learn at three times the rate",
        since=3,
        settings=("optim.lr_scales=[*temporal*:3]",),
        full_size="more there, where the other layers are pretrained on far more than a stage sees",
    ),
    Arm(
        "temporal-only",
        "stage 3 trains the temporal layers alone, on clips",
        since=3,
        stages=(3,),
        settings=("stage.trains=[*temporal*]", "data.image_ratio=0"),
        full_size="likely: the spatial layers there are better than a short stage could make them",
    ),
    Arm("no-images", "no image steps from stage 3 on", since=3, settings=("data.image_ratio=0",)),
    Arm(
        "half-images", "half of the steps are image steps from stage 3 on", since=3, settings=("data.image_ratio=0.5",)
    ),
    Arm(
        "8bit",
        "AdamW with moments of 8 bits",
        since=2,
        settings=("optim.name=adamw8bit",),
        full_size="yes: published results at larger sizes agree (arXiv 2110.02861)",
    ),
    Arm("constant", "a constant learning rate instead of a cosine", since=2, settings=("optim.schedule=constant",)),
    Arm("ema-slow", "an average of decay 0.999 instead of 0.995", since=2, settings=("ema.decays=[0.999]",)),
    Arm(
        "squash",
        "CLIP sees whole frames, squashed",
        since=2,
        refresh=("layer=clip", "recipe.clip.fit=squash"),
        full_size="see benchmarks/RESULTS.md: this world's CLIP was fitted on crops, OpenAI's sees 57 % of 448x256",
    ),
    Arm(
        "edges",
        "Canny edges as structure",
        since=4,
        refresh=("layer=edges",),
        incomparable=("structure_correlation",),
    ),
    Arm(
        "soft-edges",
        "soft edges as structure",
        since=4,
        refresh=("layer=soft_edges",),
        incomparable=("structure_correlation",),
    ),
)

"""`gen1-edit`: the content of a prompt in the structure of a video."""

from dataclasses import dataclass

from gen1_train.cli import run_app


@dataclass
class EditConfig:
    checkpoint: str | None = None  # a checkpoint folder, a run folder (its newest), or a package that carries one
    weights: str = "ema"  # which of its weights: ema (the first average, if there is one), raw, or an average's decay
    prior: str | None = None  # run folder of stage=prior, for prompts; null: `prior` beside the checkpoint's, or in it
    input: str | None = None  # the video whose structure is kept, or an image as a video of one frame
    prompt: str | None = None  # the content, by a text
    image: str | None = None  # the content, by an example image; with a prompt both are mixed
    image_share: float = 0.5  # of the image in that mixture
    negative_prompt: str | None = None  # what the edit is to lead away from
    prompts: str | None = None  # a text file with a prompt a line: an edit of each, OUTPUT-1.mp4, OUTPUT-2.mp4, …
    output: str | None = None  # the edited video, .mp4
    structure_output: str | None = None  # also write what the model saw of the structure, as a grey video
    sweep: str | None = None  # a labelled comparison over a dial: omega_t, omega_t=0.5,1,1.5, t_s=0,3,7, prompt=a|b, …
    bucket: str | None = None  # WIDTHxHEIGHT to edit at; null: of those trained, the nearest in aspect
    start: int = 0  # first frame of the input
    frames: int | None = None  # how many frames to edit; null: to the end
    stride: int = 1  # frames of the input from one edited frame to the next; the output keeps the input's pace
    fps: float | None = None  # edited frames a second, picked by time; null: all of the input's, or by stride
    audio: bool = True  # the output keeps the input's sound
    mask: str | None = None  # limits the edit: an image or a video, white is edited; or foreground, background by depth
    omega: float = 7.5  # content: higher follows the prompt harder
    omega_t: float = 1.0  # time: below 1 flickers like hand-drawn, above 1 is smoother
    t_s: int = 0  # structure: 0 keeps all of it, 7 is freest
    init_strength: float = 1.0  # 1: from pure noise; less: from the input, noised for that share of the steps
    temporal: bool = True  # false: each frame alone, without the temporal layers
    steps: int = 50  # of the sampler
    solver: str = "ddim"  # or dpm++: as good in fewer steps
    seed: int = 0  # of all noise: same seed, same frames
    batch: int = 4  # clips that go through the UNet at a time: bounds memory, changes no picture
    device: str = "auto"  # cpu, cuda, or auto: a GPU if there is one
    ui: bool = False  # serve a page in the browser to edit from; the settings above are what it starts with
    ui_host: str = "127.0.0.1"  # the address that it listens at: by default of this machine alone
    ui_port: int = 7860
    ui_megabytes: int = 200  # the largest file that can be uploaded to it
    ui_seconds: float = 30.0  # the longest video


def edit(config: EditConfig) -> None:
    """Runs what the settings ask for, as files or as a page. Raises UserError; each output is whole or not there."""
    if config.ui:
        from gen1_train.ui import serve

        return serve(config)
    from gen1_train.edit_files import edit_files

    edit_files(config)


def main() -> None:
    run_app("gen1-edit", "edit", EditConfig, edit)


if __name__ == "__main__":
    main()

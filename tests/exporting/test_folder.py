"""gen1-export: both written forms equal the model, or nothing is written."""

import json
import re
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from gen1_train import export as app
from gen1_train.cli.app import conf_dir
from gen1_train.diffusion.prediction import v_from
from gen1_train.diffusion.sampler import ddim, timesteps
from gen1_train.diffusion.schedule import NoiseConfig, NoiseSchedule
from gen1_train.diffusion.structure import level_channels
from gen1_train.errors import UserError
from gen1_train.export import ExportConfig, export
from gen1_train.exporting import folder
from gen1_train.model.stable_diffusion import read_stable_diffusion
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.system.console import console
from gen1_train.training.checkpoints.checkpoint import (
    INFO,
    OPTIMIZER,
    UNET,
    CheckpointConfig,
    CheckpointInfo,
    find_checkpoint,
    read_checkpoint,
    sha256,
)
from gen1_train.training.checkpoints.writing import begin, commit, write
from gen1_train.training.config import TrainConfig
from gen1_train.training.stages import InitConfig, StageConfig, build_unet, predecessor, stage_unet
from tests.digests import digests
from tests.made_checkpoint import edit_info
from tests.model.reference import SD1, SD2, frame_by_frame, inputs
from tests.tensors_of import assert_same_tensors, split

CPU = torch.device("cpu")
MODEL = UNetConfig(**{**SD1, "layers": 1, "max_frames": 4})
LIKE_SD2 = replace(MODEL, **SD2)
ESTIMATORS = {
    "autoencoder": {"config": {"path": "none"}, "fingerprint": "tests", "scale": 0.5, "factor": 8},
    "structure": {"kind": "depth", "config": {"path": "none"}, "fingerprint": "tests", "normalise": "1 is nearest"},
    "clip": {"config": {"model": "none"}, "fingerprint": "tests", "width": 24},
}


@cache
def stage(name: str) -> StageConfig:
    return StageConfig(**yaml.safe_load((conf_dir() / "stage" / f"{name}.yaml").read_text()))


def write_checkpoint(run: Path, name: str, model: UNetConfig = MODEL) -> Path:
    """Writes a checkpoint of a stage with random weights, a different average, and moments; returns its folder.

    Stage 1, which is not trained, has only weights.
    """
    torch.manual_seed(int(name))
    config = TrainConfig(stage=stage(name), model=model)
    weights = SpatioTemporalUNet(stage_unet(model, config.stage)).state_dict()
    weights = {k: v + 0.1 * torch.randn_like(v) if ".temporal_" in k else v for k, v in weights.items()}
    steps = config.stage.steps
    info = CheckpointInfo(name, steps, True, {"step": steps} if steps else {}, ESTIMATORS if steps else {}, ["32x16"])
    tensors = {UNET: weights}
    if steps:
        info.counters = {"updates": steps, "averaged": {"ema_0.5": steps}}
        tensors |= {"ema_0.5.safetensors": {k: v / 2 for k, v in weights.items()}, OPTIMIZER: {"m": torch.zeros(1)}}
    return commit(begin(run, steps), tensors, config.to_yaml(), info, CheckpointConfig())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of stage 5."""
    return write_checkpoint(tmp_path_factory.mktemp("run"), "5")


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    output = checkpoint.parents[1] / "exported"
    export(ExportConfig(str(checkpoint), str(output)))
    return output


def refusal(checkpoint: Path, output: Path) -> str:
    """Returns the error message of an export, which must leave the output's folder unchanged."""
    before = sorted(output.parent.rglob("*")) if output.parent.is_dir() else None
    with pytest.raises(UserError) as error:
        export(ExportConfig(str(checkpoint), str(output)))
    assert (sorted(output.parent.rglob("*")) if output.parent.is_dir() else None) == before
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", "12345")
@pytest.mark.parametrize("model", [MODEL, replace(MODEL, content_dim=40), LIKE_SD2], ids=["SD 1", "projected", "SD 2"])
def test_both_forms_equal_the_model_of_every_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, model: UNetConfig
) -> None:
    """`unet/` in diffusers equals the model frame by frame, also in float64; `gen1/` has the same weights exactly."""
    source = write_checkpoint(tmp_path / "run", name, model)
    with console("gen1-export"):
        export(ExportConfig(str(tmp_path / "run"), str(tmp_path / "a" / "out")))
    out = tmp_path / "a" / "out"
    assert sorted(digests(out)) == [
        "README.md",
        "gen1/checkpoint.json",
        "gen1/config.json",
        "gen1/config.yaml",
        "gen1/unet.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]  # no hidden folder is left
    config = UNetConfig(**json.loads((out / "gen1" / "config.json").read_text()))
    assert config == stage_unet(model, stage(name))
    ours = SpatioTemporalUNet(config)
    file = source / ("unet.safetensors" if name == "1" else "ema_0.5.safetensors")
    ours.load_state_dict(load_file(file))
    exported = load_file(out / "gen1" / "unet.safetensors")
    assert list(exported) == list(load_file(file))
    assert all(torch.equal(v, exported[k]) for k, v in ours.state_dict().items())
    theirs = UNet2DConditionModel.from_pretrained(out / "unet").double().eval()
    assert theirs.config.in_channels == (12 if name in "45" else 4)
    again = read_stable_diffusion(out)
    assert again.config == replace(config, temporal=False, max_frames=UNetConfig.max_frames) and not again.assumed
    with torch.no_grad():
        batch = inputs(config, tokens=2)
        expected = ours.double()(*batch, temporal=False)
        assert (frame_by_frame(theirs, *batch) - expected).abs().max() < 1e-9 * expected.abs().max()
    lines = capsys.readouterr().out.splitlines()
    without_prior = [line for line in lines if "without a prior, the exported model edits by image= alone" in line]
    assert len(without_prior) == stage(name).structure  # stages that can edit
    assert len(lines) == 4 + stage(name).structure and all(line.startswith("gen1-export: ") for line in lines)
    assert f"is of stage {name}, step {stage(name).steps}, {file.name}: " in lines[0]
    assert "largest difference" in lines[1] and "largest difference 0.0e+00, 0.0e+00" in lines[2]


def test_the_whole_form_is_a_checkpoint(checkpoint: Path, exported: Path) -> None:
    whole = find_checkpoint(exported / "gen1")
    source = read_checkpoint(checkpoint)
    same = {"files": {}, "saved": 0.0, "counters": {}}
    assert replace(whole.info, **same) == replace(source.info, **same)
    torch.testing.assert_close(whole.weights(), source.weights("0.5"), rtol=0, atol=0)
    assert {path.name for path in whole.path.iterdir()} == {"unet.safetensors", "config.yaml", "config.json", INFO}
    assert set(whole.info.files) == {"unet.safetensors", "config.yaml", "config.json"} and not whole.averages
    assert whole.config.read_text() == source.config.read_text() and not (whole.path / OPTIMIZER).exists()


def test_exporting_an_export_gives_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    export(ExportConfig(str(exported / "gen1"), str(tmp_path / "again")))
    second = digests(tmp_path / "again")
    first = digests(exported)
    assert second.pop("README.md") == first.pop("README.md").replace("`ema_0.5.safetensors`", "`unet.safetensors`")
    assert second == first


@pytest.mark.parametrize("parts", [2, 7])
def test_a_checkpoint_in_parts_is_exported_in_one_piece(
    checkpoint: Path, exported: Path, tmp_path: Path, parts: int
) -> None:
    """The export is that of the checkpoint in one piece, except for what it says of its source."""
    shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    split(tmp_path / checkpoint.name, parts)
    assert read_checkpoint(tmp_path / checkpoint.name).info.parts == parts
    assert_same_tensors(tmp_path / checkpoint.name, checkpoint)
    export(ExportConfig(str(tmp_path / checkpoint.name), str(tmp_path / "again")))
    made, wanted = digests(tmp_path / "again"), digests(exported)
    assert made.keys() == wanted.keys()
    assert [name for name in made if made[name] != wanted[name]] in ([], ["README.md"])


def test_a_truncated_export_is_refused(exported: Path, tmp_path: Path) -> None:
    export(ExportConfig(str(exported / "gen1"), str(tmp_path / "out")))
    weights = tmp_path / "out" / "gen1" / "unet.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(UserError, match="is incomplete"):
        find_checkpoint(tmp_path / "out" / "gen1")


def test_the_next_stage_starts_from_an_export(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "run", "4")
    export(ExportConfig(str(source), str(tmp_path / "out")))
    init = InitConfig(checkpoint=str(tmp_path / "out" / "gen1"))
    start = predecessor(stage("5"), init, tmp_path / "tree")
    unet, report = build_unet(MODEL, stage("5"), init, start, seed=0)
    expected = load_file(source / "ema_0.5.safetensors")
    assert report.new == report.widened == []
    assert all(torch.equal(v, expected[k]) for k, v in unet.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"linear_projection": True, "heads": [1, 2, 2, 2]}], ids=["SD 1", "SD 2"])
def test_an_export_and_a_checkpoint_in_parts_edit_as_the_whole_one_does(tmp_path: Path, changes: dict) -> None:
    from gen1_train import Gen1Editor  # imports open_clip, which takes seconds
    from tests import made_checkpoint

    source = made_checkpoint.write_checkpoint(tmp_path / "run", model=changes)
    export(ExportConfig(str(source), str(tmp_path / "out")))
    shutil.copytree(source, tmp_path / "parts")
    split(tmp_path / "parts", 3)
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 112, 3), dtype=np.uint8)
    edits = [
        Gen1Editor.from_pretrained(path, "cpu")(frames, image=frames[0], steps=2)
        for path in (source, tmp_path / "out" / "gen1", tmp_path / "parts")
    ]
    assert edits[0].shape == (3, 64, 112, 3) and all((edit == edits[0]).all() for edit in edits)


def test_other_users_may_read_the_files(exported: Path) -> None:
    """safetensors makes its files readable for their owner only."""
    modes = {stat.S_IMODE(path.stat().st_mode) for path in exported.rglob("*") if path.is_file()}
    assert modes == {stat.S_IMODE(exported.stat().st_mode) & 0o666}


def test_the_card_describes_the_model(exported: Path, tmp_path: Path) -> None:
    text = (exported / "README.md").read_text()
    assert text.startswith("# Gen-1 UNet, stage 5\n") and "stage 5, step 10000 of 10000" in text
    for fact in (
        "times 0.5",
        "v = alpha_t eps - sigma_t x",
        "| 0-3 |",
        "the structure: depth in 0..1 (1 is nearest)",
        '- clip: `{"model": "none"}`',
    ):
        assert fact in text
    assert "{" not in re.sub(r"`\{.*\}`", "", text)  # every placeholder is filled
    write_checkpoint(tmp_path / "run", "1")
    export(ExportConfig(str(tmp_path / "run"), str(tmp_path / "out")))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Stage 1 trains nothing" in text and '"epsilon"' in text and "| 4-7 |" not in text


def test_the_card_describes_the_channels_of_t_s(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert "after t_s rounds of blurring and downsampling of the frame itself, encoded" in card
    (row,) = re.findall(r"\| 8-11 \| (.*) at every pixel; t_s is 0 to 7 \|", card)
    names = {"sin": torch.sin, "cos": torch.cos, "t_s": torch.tensor(5.0)}
    described = torch.stack([eval(part, names) for part in row.split(", ")])
    torch.testing.assert_close(level_channels(torch.tensor([5]), (1, 1, 1)).flatten(), described)


@pytest.fixture(scope="module")
def blocks(exported: Path) -> list[dict[str, object]]:
    """Runs the code blocks of the card in the folder; returns the variables of each."""
    codes = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    namespaces: list[dict[str, object]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(exported)
        for code in codes:
            namespaces.append({})
            exec(code, namespaces[-1])
    return namespaces


def test_the_code_of_the_card_runs(blocks: list[dict[str, object]]) -> None:
    spatial, whole = blocks
    assert spatial["prediction"].shape == (4, 4, 32, 56)  # type: ignore[attr-defined]
    assert whole["prediction"].shape == (1, 4, 4, 32, 56)  # type: ignore[attr-defined]


def test_the_scheduler_of_the_card_equals_our_schedule_and_sampler(blocks: list[dict[str, object]]) -> None:
    scheduler = blocks[0]["scheduler"]
    assert isinstance(scheduler, DDIMScheduler)
    schedule = NoiseSchedule(NoiseConfig())
    torch.testing.assert_close(scheduler.alphas_cumprod.sqrt(), schedule.alphas, rtol=1e-4, atol=0)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def denoise(z: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        alpha, sigma = schedule.at(timesteps, z)
        return v_from(z.tanh(), z.sin(), alpha, sigma)

    expected = ddim(denoise, noise, schedule, timesteps(schedule, 20))
    scheduler.set_timesteps(20)
    z = noise
    for t in scheduler.timesteps:
        z = scheduler.step(denoise(z, t.repeat(2)), t, z).prev_sample
    torch.testing.assert_close(z, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "missing"), [({"output": "out"}, "checkpoint"), ({"checkpoint": "run"}, "output")]
)
def test_a_missing_setting_is_named(settings: dict[str, str], missing: str) -> None:
    with pytest.raises(UserError, match=f"^{missing} is not given: add {missing}="):
        export(ExportConfig(**settings))


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_an_existing_output_is_not_touched(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    output = tmp_path / "out"
    {
        "file": lambda: output.write_text("mine"),
        "folder": output.mkdir,
        "link": lambda: output.symlink_to(tmp_path / "nowhere"),
    }[kind]()
    assert refusal(checkpoint, output) == f"output={output} exists already: give another folder, or remove it"


def test_a_folder_that_cannot_be_created_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written: " in refusal(checkpoint, tmp_path / "file" / "out")


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    assert "there is no such folder" in refusal(tmp_path / "nowhere", tmp_path / "out")


def damaged(tmp_path: Path, change: Callable[[Path], None]) -> Path:
    """Writes a stage 5 checkpoint, changes it, and updates its hashes."""
    path = write_checkpoint(tmp_path / "run", "5")
    change(path)
    edit_info(path, lambda content: None)
    return path


def without_a_weight(path: Path) -> None:
    weights = load_file(path / "ema_0.5.safetensors")
    del weights["up_blocks.0.resnets.0.temporal_conv1.weight"]
    save_file(weights, path / "ema_0.5.safetensors")


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path: Path) -> None:
    line = refusal(damaged(tmp_path, without_a_weight), tmp_path / "out")
    assert "missing" in line and "temporal_conv1.weight" in line


@pytest.mark.parametrize("text", ["stage: {}\n", "", "[", "stage: {name: '5'}\nmodel: {depth: 3}\n"])
def test_an_unreadable_config_is_refused(tmp_path: Path, text: str) -> None:
    path = damaged(tmp_path, lambda path: path.joinpath("config.yaml").write_text(text) and None)
    assert f"{path / 'config.yaml'} cannot be read" in refusal(path, tmp_path / "out")


def another_config(patch: pytest.MonkeyPatch, **changes: object) -> None:
    original = folder.config_to_diffusers
    patch.setattr(folder, "config_to_diffusers", lambda config: {**original(config), **changes})


def other_names(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(folder, "weights_to_diffusers", lambda w: {k.replace("conv_out", "conv_end"): w[k] for k in w})


def rounded_weights(patch: pytest.MonkeyPatch) -> None:
    def rounded(temporary: Path, tensors: dict[str, dict[str, torch.Tensor]], *rest: object) -> None:
        rough = {k: v.bfloat16().float() for k, v in tensors[UNET].items()}
        write(temporary, {UNET: rough}, *rest)  # type: ignore[arg-type]

    patch.setattr(folder, "write", rounded)


def not_a_number(patch: pytest.MonkeyPatch) -> None:
    original = folder.weights_to_diffusers
    patch.setattr(
        folder, "weights_to_diffusers", lambda w: original({**w, "conv_out.bias": w["conv_out.bias"] * torch.nan})
    )


BUGS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "another function": (lambda patch: another_config(patch, flip_sin_to_cos=False), "unet/ is not the model in "),
    "a larger epsilon": (lambda patch: another_config(patch, norm_eps=1e-3), "unet/ is not the model in "),
    "another layer": (lambda patch: another_config(patch, time_cond_proj_dim=8), "time_embedding.cond_proj.weight"),
    "another shape": (lambda patch: another_config(patch, in_channels=4), "unet/ cannot be read by diffusers"),
    "other names": (other_names, "conv_end.weight"),
    "no numbers": (not_a_number, "largest difference nan"),
    "rounded weights": (rounded_weights, "gen1/ is not the model in "),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BUGS)
def test_an_export_that_is_not_the_model_is_removed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Tests the check: each of these bugs writes a wrong export, which is found when it is read back."""
    damage, message = BUGS[what]
    damage(monkeypatch)
    line = refusal(checkpoint, tmp_path / "out")
    assert message in line and "nothing was exported: this is a bug, please report it" in line


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug"), OSError(28, "No space left on device")])
def test_an_interrupted_export_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*arguments: object) -> None:
        assert (tmp_path / ".out.tmp" / "unet").is_dir()
        raise error

    monkeypatch.setattr(folder, "check_whole", fail)
    with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
        export(ExportConfig(str(checkpoint), str(tmp_path / "out")))
    assert list(tmp_path.iterdir()) == []


def test_the_remains_of_a_killed_export_are_removed(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.tmp" / "unet").mkdir(parents=True)
    (tmp_path / ".out.tmp" / "leftover").write_text("")
    export(ExportConfig(str(checkpoint), str(tmp_path / "out")))
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not (tmp_path / "out" / "leftover").exists()


def test_an_output_of_another_process_is_not_touched(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "card", lambda *arguments: write_other_files(tmp_path / "out"))
    with pytest.raises(UserError, match="cannot be written"):
        export(ExportConfig(str(checkpoint), str(tmp_path / "out")))
    assert digests(tmp_path).keys() == {"out/theirs"}


def write_other_files(output: Path) -> str:
    output.mkdir()
    (output / "theirs").write_text("x")
    return "card"


def test_a_hidden_folder_that_is_a_link_leads_nowhere(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "victim" / "folder").mkdir(parents=True)
    (tmp_path / "victim" / "file").write_text("mine")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / ".out.tmp").symlink_to(tmp_path / "victim")
    for _ in range(2):
        with pytest.raises(UserError, match=r"\.out\.tmp is a link"):
            export(ExportConfig(str(checkpoint), str(tmp_path / "theirs" / "out")))
    assert sorted(path.name for path in (tmp_path / "victim").iterdir()) == ["file", "folder"]


def test_an_export_hands_on_no_secret_of_an_older_config(checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    text = (copy / "config.yaml").read_text().replace("root: null", "root: https://me:hush@host/set", 1)
    assert "hush" in text
    (copy / "config.yaml").write_text(text)
    info = json.loads((copy / "checkpoint.json").read_text())
    for entry in ("format", "sha256"):  # as older versions wrote it
        info.pop(entry, None)
    info["files"]["config.yaml"] = {"bytes": len(text.encode()), "sha256": sha256(copy / "config.yaml")}
    (copy / "checkpoint.json").write_text(json.dumps(info))
    export(ExportConfig(str(copy), str(tmp_path / "out")))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and b"hush" in path.read_bytes()]


def test_the_card_quotes_no_markup_of_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    def change(info: dict[str, object]) -> None:
        hostile = "1\n```\n<script>x</script>\n[here](https://evil)"
        info["stage"] = "`4` <img src=x>"
        info["estimators"] = {"autoencoder": {"scale": hostile, "config": {"path": "`<b>`"}}, "<i>": {"kind": hostile}}

    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    edit_info(copy, change)
    export(ExportConfig(str(copy), str(tmp_path / "out")))
    text = (tmp_path / "out" / "README.md").read_text()
    assert not [markup for markup in ("<script", "<img", "<b>", "<i>", "[here]", "1\n") if markup in text]

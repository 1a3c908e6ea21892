"""gen1-export: what it writes is the model, in diffusers and in ours, or it is not there."""

import json
import re
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
from gen1_train import exporter
from gen1_train.cli import conf_dir
from gen1_train.config import TrainConfig
from gen1_train.diffusion.prediction import v_from
from gen1_train.diffusion.sampler import ddim, timesteps
from gen1_train.diffusion.schedule import NoiseConfig, NoiseSchedule
from gen1_train.diffusion.structure import level_channels
from gen1_train.errors import UserError
from gen1_train.export import ExportConfig, export
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.checkpoint import (
    INFO,
    OPTIMIZER,
    UNET,
    CheckpointConfig,
    CheckpointInfo,
    begin,
    commit,
    find_checkpoint,
    read_checkpoint,
    sha256,
    write,
)
from gen1_train.training.stages import InitConfig, StageConfig, build_unet, stage_unet
from tests.model.reference import SD1, frame_by_frame, inputs

CPU = torch.device("cpu")
MODEL = UNetConfig(**{**SD1, "layers": 1, "max_frames": 4})
ESTIMATORS = {
    "autoencoder": {"config": {"path": "none"}, "fingerprint": "made", "scale": 0.5, "factor": 8},
    "structure": {"kind": "depth", "config": {"path": "none"}, "fingerprint": "made", "normalise": "1 is nearest"},
    "clip": {"config": {"model": "none"}, "fingerprint": "made", "width": 24},
}


@cache
def stage(name: str) -> StageConfig:
    return StageConfig(**yaml.safe_load((conf_dir() / "stage" / f"{name}.yaml").read_text()))


def write_checkpoint(run: Path, name: str, model: UNetConfig = MODEL) -> Path:
    """A checkpoint of a stage with random weights, their average, which is other ones, and moments; returns its folder.

    Stage 1, which is not trained, has weights alone.
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
    """Of stage 5."""
    return write_checkpoint(tmp_path_factory.mktemp("run"), "5")


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    output = checkpoint.parents[1] / "exported"
    export(ExportConfig(str(checkpoint), str(output)))
    return output


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(checkpoint: Path, output: Path) -> str:
    """The line of an export that has to leave its folder as it was."""
    before = sorted(output.parent.rglob("*")) if output.parent.is_dir() else None
    with pytest.raises(UserError) as error:
        export(ExportConfig(str(checkpoint), str(output)))
    assert (sorted(output.parent.rglob("*")) if output.parent.is_dir() else None) == before
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", "12345")
@pytest.mark.parametrize("content_dim", [24, 40])
def test_every_stage_is_exported_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content_dim: int
) -> None:
    """`unet/` in diffusers is the model frame by frame, in float64 as well; `gen1/` has all weights to the bit."""
    source = write_checkpoint(tmp_path / "run", name, replace(MODEL, content_dim=content_dim))
    export(ExportConfig(str(tmp_path / "run"), str(tmp_path / "a" / "out")))
    out = tmp_path / "a" / "out"
    assert sorted(files(out)) == [
        "README.md",
        "gen1/checkpoint.json",
        "gen1/config.json",
        "gen1/config.yaml",
        "gen1/unet.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]  # nothing hidden is left
    config = UNetConfig(**json.loads((out / "gen1" / "config.json").read_text()))
    assert config == stage_unet(replace(MODEL, content_dim=content_dim), stage(name))
    ours = SpatioTemporalUNet(config)
    file = source / ("unet.safetensors" if name == "1" else "ema_0.5.safetensors")
    ours.load_state_dict(load_file(file))
    again = load_file(out / "gen1" / "unet.safetensors")
    assert list(again) == list(load_file(file))
    assert all(torch.equal(v, again[k]) for k, v in ours.state_dict().items())
    theirs = UNet2DConditionModel.from_pretrained(out / "unet").double().eval()
    assert theirs.config.in_channels == (12 if name in "45" else 4)
    with torch.no_grad():
        given = inputs(config, tokens=2)
        expected = ours.double()(*given, temporal=False)
        assert (frame_by_frame(theirs, *given) - expected).abs().max() < 1e-9 * expected.abs().max()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4 and all(line.startswith("gen1-export: ") for line in said)
    assert f"is of stage {name}, step {stage(name).steps}, {file.name}: " in said[0]
    assert "largest difference" in said[1] and "largest difference 0.0e+00, 0.0e+00" in said[2]


def test_the_whole_is_a_checkpoint(checkpoint: Path, exported: Path) -> None:
    found, source = find_checkpoint(exported / "gen1"), read_checkpoint(checkpoint)
    same = {"files": {}, "saved": 0.0, "counters": {}}
    assert replace(found.info, **same) == replace(source.info, **same)
    torch.testing.assert_close(found.weights(), source.weights("0.5"), rtol=0, atol=0)
    assert {path.name for path in found.path.iterdir()} == {"unet.safetensors", "config.yaml", "config.json", INFO}
    assert set(found.info.files) == {"unet.safetensors", "config.yaml", "config.json"} and not found.averages
    assert found.config.read_text() == source.config.read_text() and not (found.path / OPTIMIZER).exists()


def test_an_export_is_exported_to_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    export(ExportConfig(str(exported / "gen1"), str(tmp_path / "again")))
    again, once = files(tmp_path / "again"), files(exported)
    assert again.pop("README.md") == once.pop("README.md").replace(b"`ema_0.5.safetensors`", b"`unet.safetensors`")
    assert again == once


def test_a_cut_off_export_is_no_checkpoint(exported: Path, tmp_path: Path) -> None:
    export(ExportConfig(str(exported / "gen1"), str(tmp_path / "out")))
    weights = tmp_path / "out" / "gen1" / "unet.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(UserError, match="is not whole"):
        find_checkpoint(tmp_path / "out" / "gen1")


def test_the_next_stage_starts_from_it(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "run", "4")
    export(ExportConfig(str(source), str(tmp_path / "out")))
    init = InitConfig(checkpoint=str(tmp_path / "out" / "gen1"))
    unet, report = build_unet(MODEL, stage("5"), init, tmp_path / "tree", seed=0)
    wanted = load_file(source / "ema_0.5.safetensors")
    assert report.new == report.widened == []
    assert all(torch.equal(v, wanted[k]) for k, v in unet.state_dict().items())


@pytest.mark.slow
def test_an_edit_by_it_is_an_edit_by_the_checkpoint(tmp_path: Path) -> None:
    from gen1_train.editor import Gen1Editor  # it imports open_clip: seconds
    from tests import made_checkpoint

    source = made_checkpoint.write_checkpoint(tmp_path / "run")
    export(ExportConfig(str(source), str(tmp_path / "out")))
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 112, 3), dtype=np.uint8)
    edits = [
        Gen1Editor.from_pretrained(path, "cpu")(frames, image=frames[0], steps=2)
        for path in (source, tmp_path / "out" / "gen1")
    ]
    assert edits[0].shape == (3, 64, 112, 3) and (edits[0] == edits[1]).all()


def test_others_may_read_it(exported: Path) -> None:
    """safetensors gives its files to their owner alone."""
    modes = {stat.S_IMODE(path.stat().st_mode) for path in exported.rglob("*") if path.is_file()}
    assert modes == {stat.S_IMODE(exported.stat().st_mode) & 0o666}


def test_the_card_tells_what_it_is(exported: Path, tmp_path: Path) -> None:
    text = (exported / "README.md").read_text()
    assert text.startswith("# Gen-1 UNet, stage 5\n") and "stage 5, step\n10000 of 10000" in text
    for fact in (
        "times 0.5",
        "v = alpha_t eps - sigma_t x",
        "| 0-3 |",
        "the structure: depth in 0..1 (1 is nearest)",
        '- clip: `{"model": "none"}`',
    ):
        assert fact in text
    assert "{" not in re.sub(r"`\{.*\}`", "", text)  # every place was filled
    write_checkpoint(tmp_path / "run", "1")
    export(ExportConfig(str(tmp_path / "run"), str(tmp_path / "out")))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Stage 1 trains nothing" in text and '"epsilon"' in text and "| 4-7 |" not in text


def test_the_cards_channels_of_t_s_are_ours(exported: Path) -> None:
    (row,) = re.findall(r"\| 8-11 \| (.*) at every pixel; t_s is 0 to 7 \|", (exported / "README.md").read_text())
    names = {"sin": torch.sin, "cos": torch.cos, "t_s": torch.tensor(5.0)}
    told = torch.stack([eval(part, names) for part in row.split(", ")])
    torch.testing.assert_close(level_channels(torch.tensor([5]), (1, 1, 1)).flatten(), told)


@pytest.fixture(scope="module")
def blocks(exported: Path) -> list[dict[str, object]]:
    """What the code of the card makes, run as it stands in the folder."""
    codes = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    made: list[dict[str, object]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(exported)
        for code in codes:
            made.append({})
            exec(code, made[-1])
    return made


def test_the_cards_code_runs(blocks: list[dict[str, object]]) -> None:
    spatial, whole = blocks
    assert spatial["prediction"].shape == (4, 4, 32, 56)  # type: ignore[attr-defined]
    assert whole["prediction"].shape == (1, 4, 4, 32, 56)  # type: ignore[attr-defined]


def test_the_cards_scheduler_is_our_schedule_and_sampler(blocks: list[dict[str, object]]) -> None:
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


@pytest.mark.parametrize(("given", "missing"), [({"output": "out"}, "checkpoint"), ({"checkpoint": "run"}, "output")])
def test_what_is_not_given_is_named(given: dict[str, str], missing: str) -> None:
    with pytest.raises(UserError, match=f"^{missing} is not given: add {missing}="):
        export(ExportConfig(**given))


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_an_output_that_is_there_is_left_alone(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    output = tmp_path / "out"
    {
        "file": lambda: output.write_text("mine"),
        "folder": output.mkdir,
        "link": lambda: output.symlink_to(tmp_path / "nowhere"),
    }[kind]()
    assert refused(checkpoint, output) == f"output={output} is there already: give another folder, or remove it"


def test_a_folder_that_cannot_be_made_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written: " in refused(checkpoint, tmp_path / "file" / "out")


def test_no_checkpoint_is_said(tmp_path: Path) -> None:
    assert "there is no such folder" in refused(tmp_path / "nowhere", tmp_path / "out")


def damaged(tmp_path: Path, change: Callable[[Path], None]) -> Path:
    """A stage 5 checkpoint that was changed, with hashes that are right again."""
    path = write_checkpoint(tmp_path / "run", "5")
    change(path)
    info = json.loads((path / "checkpoint.json").read_text())
    files = {name: path / name for name in info["files"]}
    info["files"] = {name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for name, file in files.items()}
    (path / "checkpoint.json").write_text(json.dumps(info))
    return path


def without_a_weight(path: Path) -> None:
    weights = load_file(path / "ema_0.5.safetensors")
    del weights["up_blocks.0.resnets.0.temporal_conv1.weight"]
    save_file(weights, path / "ema_0.5.safetensors")


def test_weights_that_are_not_the_configs_are_refused(tmp_path: Path) -> None:
    line = refused(damaged(tmp_path, without_a_weight), tmp_path / "out")
    assert "missing" in line and "temporal_conv1.weight" in line


@pytest.mark.parametrize("text", ["stage: {}\n", "", "[", "stage: {name: '5'}\nmodel: {depth: 3}\n"])
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = damaged(tmp_path, lambda path: path.joinpath("config.yaml").write_text(text) and None)
    assert f"{path / 'config.yaml'} cannot be read" in refused(path, tmp_path / "out")


def another_config(patch: pytest.MonkeyPatch, **changes: object) -> None:
    right = exporter.config_to_diffusers
    patch.setattr(exporter, "config_to_diffusers", lambda config: {**right(config), **changes})


def other_names(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(exporter, "weights_to_diffusers", lambda w: {k.replace("conv_out", "conv_end"): w[k] for k in w})


def rounded_weights(patch: pytest.MonkeyPatch) -> None:
    def rounded(temporary: Path, tensors: dict[str, dict[str, torch.Tensor]], *rest: object) -> None:
        rough = {k: v.bfloat16().float() for k, v in tensors[UNET].items()}
        write(temporary, {UNET: rough}, *rest)  # type: ignore[arg-type]

    patch.setattr(exporter, "write", rounded)


def not_a_number(patch: pytest.MonkeyPatch) -> None:
    right = exporter.weights_to_diffusers
    patch.setattr(
        exporter, "weights_to_diffusers", lambda w: right({**w, "conv_out.bias": w["conv_out.bias"] * torch.nan})
    )


BUGS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "another function": (lambda patch: another_config(patch, flip_sin_to_cos=False), "unet/ is not the model in "),
    "a larger epsilon": (lambda patch: another_config(patch, norm_eps=1e-3), "unet/ is not the model in "),
    "another layer": (lambda patch: another_config(patch, time_cond_proj_dim=8), "time_embedding.cond_proj.weight"),
    "another shape": (lambda patch: another_config(patch, in_channels=4), "unet/ is not what diffusers reads"),
    "other names": (other_names, "conv_end.weight"),
    "no numbers": (not_a_number, "largest difference nan"),
    "rounded weights": (rounded_weights, "gen1/ is not the model in "),
}


@pytest.mark.parametrize("what", BUGS)
def test_what_is_not_the_model_is_never_left(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The test of the check: each of these would be a wrong export, and it is seen on disk."""
    damage, says = BUGS[what]
    damage(monkeypatch)
    line = refused(checkpoint, tmp_path / "out")
    assert says in line and "nothing was exported: report it" in line


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug"), OSError(28, "No space left on device")])
def test_an_export_that_is_cut_short_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*arguments: object) -> None:
        assert (tmp_path / ".out.tmp" / "unet").is_dir()
        raise error

    monkeypatch.setattr(exporter, "check_whole", fail)
    with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
        export(ExportConfig(str(checkpoint), str(tmp_path / "out")))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_cleared_away(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.tmp" / "unet").mkdir(parents=True)
    (tmp_path / ".out.tmp" / "rubbish").write_text("")
    export(ExportConfig(str(checkpoint), str(tmp_path / "out")))
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not (tmp_path / "out" / "rubbish").exists()


def test_an_output_that_came_meanwhile_is_left_alone(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "card", lambda *arguments: files_of_another(tmp_path / "out"))
    with pytest.raises(UserError, match="cannot be written"):
        export(ExportConfig(str(checkpoint), str(tmp_path / "out")))
    assert files(tmp_path) == {"out/theirs": b"x"}


def files_of_another(output: Path) -> str:
    output.mkdir()
    (output / "theirs").write_text("x")
    return "card"

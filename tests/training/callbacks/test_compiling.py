"""The UNet's layers are compiled before the first step. test_strategy.py compares compiled runs with others."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Trainer

from gen1_train.batch import Pool
from gen1_train.data.loader import BatchDataset, BatchPartition
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from gen1_train.model.compiling import compile_layers
from gen1_train.model.kernels import Latents
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.callbacks import compiling as compiling_file
from gen1_train.training.callbacks.compiling import (
    Compile,
    Kernels,
    Shape,
    rehearse,
    shapes_of,
    zero_batch,
)
from gen1_train.training.module import DiffusionConfig, Gen1Module, StageSpec
from gen1_train.training.network import OptimConfig
from gen1_train.training.strategies.sharded import ShardedStrategy
from tests.made import FACTOR, WIDTH, make_sample_with_levels, make_shard_set

SMALL = UNetConfig(channels=[8], attention=[False], heads=[2], layers=1, groups=4, context_dim=WIDTH, content_dim=WIDTH)
IMAGE, VIDEO = Shape(Pool("image", 32, 16, 1), 4, FACTOR), Shape(Pool("video", 32, 16, 4), 1, FACTOR)


@pytest.fixture(autouse=True)
def fresh():
    """Resets dynamo's graphs and settings, which are global in the process."""
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


def make_module() -> Gen1Module:
    torch.manual_seed(0)
    unet = SpatioTemporalUNet(SMALL)
    module = Gen1Module(unet, OptimConfig(), DiffusionConfig(), StageSpec(seed=3, latent_scale=0.5))
    module.on_fit_start()
    return module


def make_trainer(precision: str = "32-true") -> Trainer:
    return Trainer(accelerator="cpu", devices=1, precision=precision, logger=False, enable_checkpointing=False)


def callback(backend: str = "eager") -> Compile:
    return Compile(backend, [IMAGE, VIDEO])


def looks(tensor: torch.Tensor | None) -> tuple | None:
    """Returns everything about a tensor except its values."""
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.stride())


@pytest.mark.parametrize(
    ("structure", "max_level", "cached", "stored_level"),
    [(False, 0, True, 0), (True, 0, True, 0), (True, 7, True, 0), (True, 7, False, 0), (True, 7, True, 7)],
)
def test_zero_batches_look_like_those_of_the_loader(tmp_path, structure, max_level, cached, stored_level):
    shards = ShardSet(make_shard_set(tmp_path / "set", make=make_sample_with_levels))
    schedule = Schedule(shards, Settings(0, 0.5, 4))
    stage = StageSpec(
        seed=3,
        latent_scale=0.5,
        structure=structure,
        max_level=max_level,
        cached=cached,
        stored_level=stored_level,
    )
    module = Gen1Module(SpatioTemporalUNet(SMALL), OptimConfig(), DiffusionConfig(), stage)
    level = module.drawing.level
    dataset = BatchDataset(shards, schedule, BatchPartition(1, 2, 2), module.stage.fields, level=level)
    shapes = {shape.pool.kind: shape for shape in shapes_of(schedule, parts=4)}
    assert len(shapes) == 2
    for step in range(2):
        real = dataset[step, 0]
        made = zero_batch(shapes[real.kind], SMALL, module.stage.fields, level)
        assert made.kind == real.kind
        levels = [level(0, slot) for slot in made.slots]  # those that are drawn for it
        assert made.structure_levels == (levels if "structure_latent" in module.stage.fields else None)
        for name in ("moments", "embeddings", "structure_latents", "structure", "frames"):
            assert looks(getattr(made, name)) == looks(getattr(real, name)), name
        assert len(made.slots) == len(real.slots)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_rehearsal_has_no_side_effects_and_compiles_all_shapes(precision, capsys):
    module, trainer, compiling = make_module(), make_trainer(precision), callback()
    capsys.readouterr()
    weights = {name: weight.clone() for name, weight in module.unet.named_parameters()}
    for weight in module.unet.parameters():
        weight.grad = torch.full_like(weight, 3.0)
        weight.register_post_accumulate_grad_hook(lambda _: pytest.fail("a strategy would have reduced it"))
    random = torch.get_rng_state()
    compiling.on_train_start(trainer, module)
    assert torch.equal(torch.get_rng_state(), random)
    assert list(weights) == [name for name, _ in module.unet.named_parameters()]
    for name, weight in module.unet.named_parameters():
        assert torch.equal(weight, weights[name]) and bool((weight.grad == 3.0).all()), name
    lines = [line for line in capsys.readouterr().out.splitlines() if "compiled" in line]
    assert [re.sub(r"\d+\.\d s", "T", line) for line in lines] == [
        "gen1-train: compiled the step on image-32x16 in T (1 of 2)",
        "gen1-train: compiled the step on video-32x16 in T (2 of 2)",
    ]
    torch.compiler.set_stance("fail_on_recompile")
    for shape in (VIDEO, IMAGE):
        rehearse(trainer, module, zero_batch(shape, SMALL, module.stage.fields))


@pytest.mark.slow
def test_an_unknown_shape_fails_in_training_and_is_not_compiled_elsewhere():
    module, trainer, compiling = make_module(), make_trainer(), callback()
    compiling.on_train_start(trainer, module)
    other = zero_batch(Shape(VIDEO.pool, 3, FACTOR), SMALL, module.stage.fields).to(module.device)
    with torch.no_grad():
        module.losses(other)  # as in a validation
    compiling.on_train_batch_start(trainer, module, other, 0)
    with pytest.raises(RuntimeError, match="fail_on_recompile"):
        module.losses(other)
    compiling.on_after_backward(trainer, module)
    module.losses(other).mean().backward()
    compiling.on_train_end(trainer, module)


@pytest.mark.slow
@torch._dynamo.config.patch(recompile_limit=1, accumulated_recompile_limit=1)
def test_every_pool_has_its_own_graphs_beyond_the_limit_of_dynamo():
    module, trainer = make_module(), make_trainer()
    graphs: list[object] = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    compile_layers(module.unet, counting)
    numbers = []
    for samples in (1, 2, 3, 1, 2, 3):
        rehearse(trainer, module, zero_batch(Shape(IMAGE.pool, samples, FACTOR), SMALL, module.stage.fields))
        numbers.append(len(graphs))
    first = numbers[0]
    assert first > 0 and numbers == [first, 2 * first, 3 * first, 3 * first, 3 * first, 3 * first]


def test_a_failing_backend_is_reported_in_one_line():
    def broken(graph, inputs):
        raise OSError("no compiler\nwas found")

    module, compiling = make_module(), callback(broken)
    with pytest.raises(
        UserError, match=r"cannot compile the step on image-32x16: OSError: no compiler was found"
    ) as error:
        compiling.on_train_start(make_trainer(), module)
    assert "\n" not in str(error.value) and str(error.value).endswith("use trainer.compile=false")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_step_of_inductor_is_equal_up_to_rounding(tmp_path: Path):
    """Compares a video step, which has all layers; inductor takes a minute for each shape."""
    plain, module, trainer = make_module(), make_module(), make_trainer()
    Compile("inductor", [VIDEO]).on_train_start(trainer, module)
    torch.compiler.set_stance("fail_on_recompile")
    schedule = Schedule(ShardSet(make_shard_set(tmp_path / "set")), Settings(0, 0, 1))
    dataset = BatchDataset(schedule.shards, schedule, BatchPartition(0, 1, 1), module.stage.fields)
    batch = dataset[0, 0].to(module.device)
    made, wanted = module.losses(batch), plain.losses(batch)
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)
    gradients = [
        torch.autograd.grad(loss.mean(), list(of.unet.parameters()), allow_unused=True)
        for loss, of in ((made, module), (wanted, plain))
    ]
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a - b).norm() <= 1e-3 * b.norm() + 1e-6


def test_kernels_are_chosen_for_the_shapes_of_the_run_and_reported_in_one_line(monkeypatch, capsys):
    given = []

    def choose(unet, *rest):
        given.append(rest)
        return "group norms by Triton"

    monkeypatch.setattr(compiling_file, "choose", choose)
    module = make_module()
    capsys.readouterr()
    for precision, compiled in (("bf16-mixed", False), ("32-true", True)):
        Kernels([IMAGE, VIDEO], compiled).on_train_start(make_trainer(precision), module)
    sharded = SimpleNamespace(precision="bf16-mixed", strategy=ShardedStrategy.__new__(ShardedStrategy))
    Kernels([IMAGE, VIDEO], False).on_train_start(sharded, module)
    batches = [Latents(4, 1, 16 // FACTOR, 32 // FACTOR), Latents(1, 4, 16 // FACTOR, 32 // FACTOR)]
    cpu = torch.device("cpu")
    assert given == [
        (batches, cpu, torch.bfloat16, False, None),
        (batches, cpu, torch.float32, True, None),
        (batches, cpu, torch.bfloat16, False, torch.bfloat16),
    ]
    lines = [line for line in capsys.readouterr().out.splitlines() if "Triton" in line]
    assert lines == ["gen1-train: group norms by Triton"] * 3


def test_on_a_cpu_kernels_are_torchs_without_a_word(capsys):
    module = make_module()
    capsys.readouterr()
    Kernels([IMAGE, VIDEO], False).on_train_start(make_trainer(), module)
    assert "group norm" not in capsys.readouterr().out
    module.unet.config = replace(SMALL, kernels="triton")
    with pytest.raises(UserError, match=r"model\.kernels=triton needs a GPU"):
        Kernels([IMAGE, VIDEO], False).on_train_start(make_trainer(), module)


def test_clips_of_each_length_have_a_shape_of_their_own(tmp_path: Path):
    shards = ShardSet(make_shard_set(tmp_path / "set", longer={8: 6}))
    shapes = shapes_of(Schedule(shards, Settings(0, 0.5, 8)), parts=4)
    made = {shape.pool.name: (shape.samples, shape.latents.frames) for shape in shapes}
    assert made == {"image-32x16": (8, 1), "video-32x16": (2, 4), "video-32x16-8f": (1, 8)}

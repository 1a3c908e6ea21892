"""The UNet compiled before the first step. That compiled runs equal others is test_strategy's table."""

import re
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer

from gen1_train.batch import Pool
from gen1_train.data.loader import BatchDataset, Place
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.compiling import Compile, Shape, compile_in_place, made_batch, rehearse, shapes_of
from gen1_train.training.module import DiffusionConfig, Gen1Module
from gen1_train.training.network import OptimConfig
from tests.made import FACTOR, WIDTH, make_shard_set

SMALL = UNetConfig(channels=[8], attention=[False], heads=[2], layers=1, groups=4, context_dim=WIDTH, content_dim=WIDTH)
IMAGE, VIDEO = Shape(Pool("image", 32, 16, 1), 4, FACTOR), Shape(Pool("video", 32, 16, 4), 1, FACTOR)


@pytest.fixture(autouse=True)
def fresh():
    """Dynamo's graphs and settings are the process's."""
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


def make_module() -> Gen1Module:
    torch.manual_seed(0)
    unet = SpatioTemporalUNet(SMALL)
    module = Gen1Module(unet, OptimConfig(), DiffusionConfig(), 3, False, 0, 0.5)
    module.on_fit_start()
    return module


def make_trainer(precision: str = "32-true") -> Trainer:
    return Trainer(accelerator="cpu", devices=1, precision=precision, logger=False, enable_checkpointing=False)


def callback(backend: str = "eager") -> tuple[Compile, list[str]]:
    said: list[str] = []
    return Compile(backend, [IMAGE, VIDEO], said.append), said


def looks(tensor: torch.Tensor | None) -> tuple | None:
    """All of a tensor but its values."""
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.stride())


@pytest.mark.parametrize(
    ("structure", "max_level", "cached"), [(False, 0, True), (True, 0, True), (True, 7, True), (True, 7, False)]
)
def test_made_batches_look_like_the_loader_s(tmp_path, structure, max_level, cached):
    shards = ShardSet(make_shard_set(tmp_path / "set"))
    schedule = Schedule(shards, Settings(0, 0.5, 4))
    module = Gen1Module(
        SpatioTemporalUNet(SMALL), OptimConfig(), DiffusionConfig(), 3, structure, max_level, 0.5, None, cached
    )
    dataset = BatchDataset(shards, schedule, Place(1, 2, 2), module.fields)
    shapes = {shape.pool.kind: shape for shape in shapes_of(schedule, parts=4)}
    assert len(shapes) == 2
    for step in range(2):
        real = dataset[step, 0]
        made = made_batch(shapes[real.kind], SMALL, module.fields)
        assert made.kind == real.kind
        for name in ("moments", "embeddings", "structure_latents", "structure", "frames"):
            assert looks(getattr(made, name)) == looks(getattr(real, name)), name
        assert len(made.slots) == len(real.slots)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_rehearsal_leaves_no_trace_and_compiles_what_the_step_needs(precision):
    module, trainer, (compiling, said) = make_module(), make_trainer(precision), callback()
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
    assert [re.sub(r"\d+\.\d s", "T", line) for line in said] == [
        "compiled the step on image-32x16 in T (1 of 2)",
        "compiled the step on video-32x16 in T (2 of 2)",
    ]
    torch.compiler.set_stance("fail_on_recompile")
    for shape in (VIDEO, IMAGE):
        rehearse(trainer, module, made_batch(shape, SMALL, module.fields))


@pytest.mark.slow
def test_an_unknown_shape_fails_in_training_and_is_not_compiled_elsewhere():
    module, trainer, (compiling, _) = make_module(), make_trainer(), callback()
    compiling.on_train_start(trainer, module)
    other = made_batch(Shape(VIDEO.pool, 3, FACTOR), SMALL, module.fields).to(module.device)
    with torch.no_grad():
        module.losses(other)  # as a validation does
    compiling.on_train_batch_start(trainer, module, other, 0)
    with pytest.raises(RuntimeError, match="fail_on_recompile"):
        module.losses(other)
    compiling.on_before_backward(trainer, module, torch.zeros(()))
    module.losses(other).mean().backward()
    compiling.on_train_end(trainer, module)


@pytest.mark.slow
@torch._dynamo.config.patch(recompile_limit=1, accumulated_recompile_limit=1)
def test_every_pool_has_a_graph_of_its_own_beyond_dynamo_s_limit():
    module, trainer = make_module(), make_trainer()
    graphs: list[object] = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    compile_in_place(module, counting, graphs=3)
    for samples in (1, 2, 3, 1, 2, 3):
        rehearse(trainer, module, made_batch(Shape(IMAGE.pool, samples, FACTOR), SMALL, module.fields))
    assert len(graphs) == 3


def test_a_backend_that_fails_is_told_in_one_line():
    def broken(graph, inputs):
        raise OSError("no compiler\nwas found")

    module, (compiling, _) = make_module(), callback(broken)
    with pytest.raises(
        UserError, match=r"cannot compile the step on image-32x16: OSError: no compiler was found"
    ) as error:
        compiling.on_train_start(make_trainer(), module)
    assert "\n" not in str(error.value) and str(error.value).endswith("use trainer.compile=false")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_inductor_s_step_is_the_same_to_rounding(tmp_path: Path):
    """Of videos, which have all the layers: inductor takes a minute for each shape."""
    plain, module, trainer = make_module(), make_module(), make_trainer()
    Compile("inductor", [VIDEO], lambda _: None).on_train_start(trainer, module)
    torch.compiler.set_stance("fail_on_recompile")
    schedule = Schedule(ShardSet(make_shard_set(tmp_path / "set")), Settings(0, 0, 1))
    batch = BatchDataset(schedule.shards, schedule, Place(0, 1, 1), module.fields)[0, 0].to(module.device)
    made, wanted = module.losses(batch), plain.losses(batch)
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)
    gradients = [
        torch.autograd.grad(loss.mean(), list(of.unet.parameters()), allow_unused=True)
        for loss, of in ((made, module), (wanted, plain))
    ]
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a - b).norm() <= 1e-3 * b.norm() + 1e-6

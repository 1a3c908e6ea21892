"""Strategies, and that all combinations of docs/strategies.md take the same steps."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.reporting.rows import read_metrics
from gen1_train.training.checkpoints.checkpoint import checkpoints_dir, latest, read_checkpoint
from gen1_train.training.checkpoints.ema import rate
from gen1_train.training.checkpoints.state import MOMENTS
from gen1_train.training.strategies.config import StrategyConfig
from gen1_train.training.strategies.strategy import build_strategy
from gen1_train.training.strategies.zero import REDUCE_BUCKET_ELEMENTS, ZeroStrategy, zero_config
from tests.running import REPOSITORY
from tests.tensors_of import weights_of
from tests.training.pair import run_pair
from tests.training.strategies.table import (
    FREEZING,
    NARROW,
    OFFLOADED,
    REFERENCE,
    STRATEGIES,
    TRAINS,
    Cell,
    cells,
    folder,
    make_start,
    resumed,
    run_all,
)

DOCS = REPOSITORY / "docs" / "strategies.md"
CELLS = [cell for strategy in STRATEGIES for cell in cells(strategy)]
ROUNDING = {  # the largest relative difference of losses and moments, and of the change by two steps
    "32-true": (1e-5, 1e-3),
    "bf16-mixed": (2e-2, 0.15),  # AdamW's first steps follow the gradient's sign, even if it is nothing but rounding
}


@pytest.mark.parametrize(
    ("config", "processes", "said"),
    [
        (StrategyConfig("zero4"), 1, "there is no strategy 'zero4'"),
        (StrategyConfig("fsdp", offload="optimizer"), 2, "needs zero1, zero2, zero3, not strategy=fsdp"),
        (StrategyConfig("zero3", shard_within="node"), 2, "strategy.shard_within=node needs strategy=fsdp, not zero3"),
        (StrategyConfig("fsdp", shard_within="rack"), 2, "strategy.shard_within=rack is not one of world, node"),
        (StrategyConfig("single"), 2, "choose strategy=auto or strategy=ddp"),
        (StrategyConfig("zero2", offload="cpu"), 2, "strategy.offload=cpu is not one of none, optimizer, all"),
        (StrategyConfig("zero2", offload="all"), 2, "strategy.offload=all needs strategy=zero3 or fsdp, not zero2"),
        (StrategyConfig("ddp", offload="optimizer"), 2, "needs zero1, zero2, zero3, not strategy=ddp"),
        (StrategyConfig("zero3", persist_below=-1), 2, "strategy.persist_below=-1 must be 0 or above"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(config, processes, said):
    with pytest.raises(UserError, match=re.escape(said)) as error:
        build_strategy(config, processes, micro_batch=1, gpu=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_deepspeed_accepts_the_config(name, gpu):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    made = zero_config(StrategyConfig(name, "optimizer", persist_below=7), micro_batch=3, gpu=gpu)
    parsed = DeepSpeedZeroConfig(**made["zero_optimization"])
    assert parsed.stage == int(name[-1]) and parsed.contiguous_gradients
    assert parsed.overlap_comm is gpu and parsed.reduce_bucket_size == REDUCE_BUCKET_ELEMENTS
    assert parsed.offload_optimizer.device == "cpu" and parsed.offload_optimizer.pin_memory is gpu
    assert parsed.offload_param is None and parsed.param_persistence_threshold == 7
    assert made["train_micro_batch_size_per_gpu"] == 3


def test_all_is_offloaded_on_request():
    made = build_strategy(StrategyConfig("zero3", "all"), processes=2, micro_batch=1, gpu=False)
    assert isinstance(made, ZeroStrategy)
    assert {"offload_optimizer", "offload_param"} <= made.config["zero_optimization"].keys()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs of all cells, each with a video step and an image step."""
    root = tmp_path_factory.mktemp("table")
    make_start(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        # a run of one process comes before the others, which leave the two processes connected
        ordered = sorted(CELLS + FREEZING, key=lambda cell: cell.strategy != "single")
        codes, said = run_pair(run_all, root, root, ordered, seconds=900)
    assert codes == [0, 0], "\n".join(text[-3000:] for text in said)
    return root


def saved(root: Path, name: str) -> dict[str, Tensor]:
    """The final weights, moments and averages of a run."""
    found = latest(folder(root, name))
    assert found is not None and found.info.finished
    averages = {
        f"{file}:{k}": v for file in found.averages for k, v in found.weights(file.removeprefix("ema_")).items()
    }
    return dict(found.weights("raw")) | dict(found.moments()) | averages


def losses(root: Path, name: str) -> list[tuple[str, float]]:
    rows = read_metrics(folder(root, name) / "metrics.csv")
    return [("image" if "loss_image" in row else "video", float(row["loss"])) for row in rows]


def parts(state: dict[str, Tensor], start: dict[str, Tensor]) -> dict[str, Tensor]:
    """The change of the weights by two steps, and each moment, as flat vectors."""
    made = {moment: [value for name, value in state.items() if name.endswith(f".{moment}")] for moment in MOMENTS}
    made["update"] = [state[name] - value for name, value in start.items()]
    return {part: torch.cat([value.flatten() for value in values]) for part, values in made.items()}


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_all_combinations_take_the_same_two_steps(table, cell):
    """The same losses, moments and updates, up to the rounding of sums in another order, or of bfloat16."""
    wanted, made = losses(table, REFERENCE.name), losses(table, cell.name)
    assert [kind for kind, _ in made] == [kind for kind, _ in wanted] == ["video", "image"]
    values, updates = ROUNDING[cell.precision]
    assert [loss for _, loss in made] == pytest.approx([loss for _, loss in wanted], rel=values)
    start = weights_of(next(checkpoints_dir(table / "start").glob("step-*")))
    reference, state = parts(saved(table, REFERENCE.name), start), parts(saved(table, cell.name), start)
    for part, bound in (*((moment, values) for moment in MOMENTS), ("update", updates)):
        assert (state[part] - reference[part]).norm() <= bound * reference[part].norm(), part


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_the_network_gets_the_same_bits(table, cell):
    """Data and noise are as stored and drawn under every strategy and precision, and not rounded on the way."""

    def inputs(cell: Cell) -> list[str]:
        return sorted(line for path in (table / cell.name).glob("inputs-*.jsonl") for line in path.open())

    wanted, made = inputs(REFERENCE), inputs(cell)
    assert len(set(wanted)) == len(wanted) > 4  # a video step and an image step
    if cell.compile:  # which runs on zeros before
        made = [line for line in made if line in wanted]
    assert made == wanted


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.ema], ids=lambda cell: cell.name)
def test_averages_are_those_of_the_whole_weights(table, cell):
    """Each rank averages its part of the masters. Together, the parts equal the average of the whole, bit for bit."""
    first, second = (checkpoints_dir(folder(table, cell.name)) / f"step-0000000{step}" for step in (1, 2))
    weights = weights_of(second)
    for decay in (0.9, 0.25):
        before, after = (read_checkpoint(path).weights(f"{decay:g}") for path in (first, second))
        for name, average in after.items():
            assert torch.equal(average, torch.lerp(before[name], weights[name], rate(decay, 1))), (decay, name)


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.precision == "bf16-mixed"], ids=lambda cell: cell.name)
def test_masters_and_moments_are_float32(table, cell):
    """In bfloat16, nearly every one of them would lose bits."""
    for name, value in saved(table, cell.name).items():
        changed = value[value != 0]
        assert value.dtype == torch.float32
        assert changed.numel() < 8 or (changed.bfloat16().float() != changed).float().mean() > 0.5, name


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("cell", FREEZING, ids=lambda cell: cell.name)
def test_frozen_weights_stay_and_the_others_are_trained_as_on_one_process(table, cell):
    """Frozen weights keep every bit of float32 in all files, whatever the model computes in, and have no moments."""
    checkpoint, reference = (
        latest(folder(table, name)) for name in (cell.name, Cell("single", cell.precision, frozen=True).name)
    )
    assert checkpoint is not None and reference is not None
    start, weights = weights_of(next(checkpoints_dir(table / "start").glob("step-*"))), checkpoint.weights("raw")
    trained = {name for name in weights if any(fnmatch(name, glob) for glob in TRAINS)}
    assert {name.rpartition(".")[0] for name in checkpoint.moments()} == trained and len(trained) < len(weights) / 2
    for which in ("raw", "0.9", "0.25"):
        made = checkpoint.weights(which)
        assert made.keys() == weights.keys()
        assert all(torch.equal(made[name], start[name]) for name in weights if name not in trained)
    values, updates = ROUNDING[cell.precision]
    before = {name: start[name] for name in trained if name in start}
    state, wanted = (parts({**found.weights("raw"), **found.moments()}, before) for found in (checkpoint, reference))
    for part, bound in (*((moment, values) for moment in MOMENTS), ("update", updates)):
        assert wanted[part].any() and (state[part] - wanted[part]).norm() <= bound * wanted[part].norm(), part


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("cell", OFFLOADED + FREEZING, ids=lambda cell: cell.name)
def test_resumed_equals_straight_to_the_bit_where_state_is_offloaded_or_weights_are_frozen(table, cell):
    made, straight = saved(table, resumed(cell)), saved(table, cell.name)
    assert made.keys() == straight.keys() and all(torch.equal(made[name], straight[name]) for name in made)
    assert losses(table, resumed(cell)) == losses(table, cell.name)


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("cell", NARROW, ids=lambda cell: cell.name)
def test_a_run_that_sums_gradients_in_bfloat16_goes_on_in_float32(table, cell):
    """The first step is that of the checkpoint. The second one has another rounding of its gradient, if any."""
    assert losses(table, resumed(cell)) == losses(
        table, cell.name
    )  # the second loss is that of the first step's weights
    made, straight = saved(table, resumed(cell)), saved(table, cell.name)
    values, updates = ROUNDING[cell.precision]
    start = weights_of(next(checkpoints_dir(table / "start").glob("step-*")))
    made, straight = parts(made, start), parts(straight, start)
    for part, bound in (*((moment, values) for moment in MOMENTS), ("update", updates)):
        assert (made[part] - straight[part]).norm() <= bound * straight[part].norm(), part


def test_the_table_in_the_docs_shows_the_cells():
    head, _, *rows = (line for line in DOCS.read_text().splitlines() if line.count("|") == 11)
    assert [word.strip() for word in head.split("|")[2:8]] == [
        "checkpointing",
        "compile",
        "EMA",
        "precision",
        "offload",
        "reduce",
    ]
    shown = {name.strip(" `"): [word.strip() for word in words] for _, name, *words, _ in (r.split("|") for r in rows)}
    for strategy in STRATEGIES:
        run = cells(strategy)
        words = [
            "yes" if any(cell.checkpointing for cell in run) else "refused",
            "yes" if any(cell.compile for cell in run) else "refused",
            "yes" if {cell.ema for cell in run} == {True, False} else "refused",
            ", ".join(dict.fromkeys(cell.precision for cell in run)),
            ", ".join(dict.fromkeys(cell.offload for cell in run)),
            ", ".join(dict.fromkeys(cell.reduce for cell in run)),
        ]
        assert shown[strategy][:6] == words, strategy
    assert tuple(shown) == STRATEGIES


def test_all_combinations_are_run():
    """Except for compiling ZeRO-3, which is refused by config.check."""
    assert len(set(CELLS)) == len(CELLS) == len(STRATEGIES) * 10 - 4 + len(OFFLOADED) + len(NARROW)
    assert len({cell.name for cell in CELLS}) == len(CELLS)

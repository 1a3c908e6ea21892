"""The choice of a strategy: the first that fits the GPUs, in the order of what a step sends (docs/strategies.md)."""

from dataclasses import dataclass, replace

from gen1_train.batch import Pool
from gen1_train.errors import UserError
from gen1_train.training.config import TrainConfig, whole_weights
from gen1_train.training.planning.gpus import GIBI, fits, gpu_memory
from gen1_train.training.planning.memory import MemoryPlan, Planner
from gen1_train.training.planning.workload import PlannedData, Ranks, on_cpus, rank_count, ranks_of
from gen1_train.training.preflight import micro_clips
from gen1_train.training.strategies.config import AUTO, ZERO_STAGES

UNKNOWN = "zero2"  # taken where the memory of the GPUs is not known; ours


@dataclass(frozen=True)
class PlannedRun:
    """A run with a strategy, and the memory that one of its ranks needs."""

    config: TrainConfig  # with the name of a strategy, not `auto`
    data: PlannedData
    ranks: Ranks
    planner: Planner
    pool: Pool  # the largest one, because the others take less
    memory: MemoryPlan  # of this pool
    reason: str | None = None  # one line about why the strategy was chosen; None if the config names it


def plan_run(config: TrainConfig, data: PlannedData) -> PlannedRun:
    """Plans a run on its largest pool, and chooses its strategy if the config leaves it to the plan.

    The choice depends on the config, the data and the memory of this node's GPUs alone, so that all ranks of equal
    nodes make the same one; if they do not, callbacks.agreement stops them. Raises UserError as `ranks_of` does.
    """
    if config.strategy.name != AUTO:
        return _planned(config, data)
    names = candidates(config)
    if len(names) == 1:
        causes = {
            "zero3": f"strategy.offload={config.strategy.offload} needs it",
            "ddp": f"{whole_weights(config)} needs it",
        }
        return _chosen(config, data, names[0], causes.get(names[0], "there is one process"))
    if on_cpus(config):
        return _chosen(config, data, names[0], "on CPUs it is assumed to fit")
    card = gpu_memory(config.plan)
    if card is None:
        unknown = "the memory of the GPUs is not known here; with plan.gigabytes= the plan chooses"
        return _chosen(config, data, UNKNOWN, unknown)
    return _first_that_fits(config, data, names, card)


def candidates(config: TrainConfig) -> list[str]:
    """Returns the strategies that the config may run with; each takes less memory than the one before."""
    if config.strategy.offload == "all":
        return ["zero3"]
    if whole_weights(config) and rank_count(config) > 1:
        return ["ddp"]
    if rank_count(config) == 1 and config.strategy.offload == "none":
        return ["single"]  # with one rank, ZeRO divides nothing
    refused = config.trainer.compile or config.customize.lora_rank is not None  # by ZeRO-3, see TrainConfig.check
    return [name for name in ZERO_STAGES if not (refused and name == "zero3")]


def _first_that_fits(config: TrainConfig, data: PlannedData, names: list[str], card: float) -> PlannedRun:
    needed: list[str] = []
    for name in names:
        planned = _planned(_named(config, name), data)
        if fits(planned.memory.total, card):
            break
        needed.append(f"{name} would need {planned.memory.total / GIBI:.1f}")
    else:
        return replace(planned, reason=f"strategy={name}: none fits {card / GIBI:.0f} GiB ({', '.join(needed)})")
    parts = [f"it needs {planned.memory.total / GIBI:.1f} of {card / GIBI:.0f} GiB", *needed]
    return replace(planned, reason=f"strategy={name}: {', '.join(parts)}")


def _chosen(config: TrainConfig, data: PlannedData, name: str, cause: str) -> PlannedRun:
    return replace(_planned(_named(config, name), data), reason=f"strategy={name}: {cause}")


def _named(config: TrainConfig, name: str) -> TrainConfig:
    return replace(config, strategy=replace(config.strategy, name=name))


def _planned(config: TrainConfig, data: PlannedData) -> PlannedRun:
    ranks = ranks_of(config)
    planner = Planner(ranks.unet, ranks.layout, data.frozen, ranks.adapt)
    clips = micro_clips(config, ranks.world)
    for kind in steps_of(data) if "*" not in config.stage.trains else ():
        if not planner.trains(data.micro_batch(largest_pool(data, kind), data.step)):
            remedy = "name others, or set data.image_ratio=0" if kind == "image" else "name others"
            raise UserError(f"{kind} steps would train none of stage.trains={config.stage.trains}: {remedy}")
    pool = largest_pool(data, steps_of(data)[0])
    memory = planner.plan([data.micro_batch(pool, clips)])
    return PlannedRun(config, data, ranks, planner, pool, memory)


def steps_of(data: PlannedData) -> list[str]:
    """Returns the kinds of steps that a run takes."""
    return [kind for kind, share in (("video", 1 - data.share), ("image", data.share)) if share > 0]


def largest_pool(data: PlannedData, kind: str) -> Pool:
    """Returns the pool whose steps take the most memory: of the largest, the one with the longest clips."""
    pools = (pool for pool, _ in data.pools if pool.kind == kind)
    return max(pools, key=lambda pool: (pool.width * pool.height, pool.frames))

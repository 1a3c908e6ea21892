"""The choice of data.order: whether steps read samples from all shards, or from a few shards at a time."""

from dataclasses import replace
from pathlib import Path

from gen1_train.data.state import AUTO, DataState
from gen1_train.system.files import network_file_system
from gen1_train.system.remote import is_url
from gen1_train.training.checkpoints.checkpoint import Checkpoint
from gen1_train.training.config import TrainConfig


def choose_order(config: TrainConfig, resume: Checkpoint | None) -> tuple[TrainConfig, str | None]:
    """Returns the config with an order in place of `auto`, and one line about why if it is not `global`.

    A run that resumes keeps its order, which decides its samples, whatever machines it is on now. A new run reads in
    blocks if it has a cache, or several nodes that share a network file system: there, `global` opens two files for
    each sample. If the nodes of a run come to different results, callbacks.agreement stops them. Raises UserError for a
    checkpoint without a data state.
    """
    data = config.data
    if data.order != AUTO:
        return config, None
    if resume is not None:
        return _with(config, DataState.load(resume.info.data, str(resume.path)).make_settings().order), None
    if data.cache is not None:
        return _with(config, "blocks"), "data.order=blocks: data.cache needs it"
    if (kind := _shared_by_nodes(config)) is not None:
        where = f"{config.trainer.nodes} nodes read {data.root}, which is on {kind}"
        return _with(config, "blocks"), f"data.order=blocks: {where}"
    return _with(config, "global"), None


def _shared_by_nodes(config: TrainConfig) -> str | None:
    """Returns the type of the network file system from which several nodes read the shard set; None if they do not."""
    root = config.data.root
    if config.images is not None or config.trainer.nodes == 1 or root is None or is_url(root):
        return None
    return network_file_system(Path(root))


def _with(config: TrainConfig, order: str) -> TrainConfig:
    return replace(config, data=replace(config.data, order=order))

"""One time-out for all process groups of a run."""

from datetime import timedelta

from torch.distributed.distributed_c10d import _world

try:
    from torch.distributed import set_timeout
except ImportError:  # older than torch 2.15
    from torch.distributed.distributed_c10d import _set_pg_timeout as set_timeout


def limit_all_groups(timeout: timedelta) -> None:
    """Sets the time after which a collective fails. Groups that libraries make have PyTorch's 10 minutes under NCCL."""
    for group in _world.pg_map:
        set_timeout(timeout, group)

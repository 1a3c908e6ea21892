"""How the processes of a run divide its state: the config section `strategy`."""

from dataclasses import dataclass

from gen1_train.errors import UserError, check_choice, check_not_negative

ZERO_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
AUTO = "auto"  # the first that fits the GPUs, see planning/choice.py
FSDP = "fsdp"
CASTING = (*ZERO_STAGES, FSDP)  # in bf16-mixed they hold bfloat16 copies of the weights; the others use autocast
OFFLOADING = ("zero3", FSDP)  # weights, too
OFFLOADS = ("none", "optimizer", "all")
SHARD_WITHIN = ("world", "node")
REDUCES = ("fp32", "bf16")
COLLECTIVE_SECONDS = 1800.0  # the default of trainer.collective_seconds, and that of gloo in PyTorch


@dataclass
class StrategyConfig:
    name: str = AUTO  # the first of zero1, zero2, zero3 that fits the GPUs; or single, ddp, zero1, zero2, zero3, fsdp
    offload: str = "none"  # to CPU memory, from GPUs: optimizer (zero1-3: masters, moments), all (zero3, fsdp: weights)
    persist_below: int = 100_000  # zero3: weights of fewer elements stay whole in every rank; 0: none
    shard_within: str = "world"  # fsdp: the ranks that divide a copy of the state: world; or node, each with a copy
    reduce: str = "fp32"  # format in which gradients of ranks and micro-batches are sent and summed; or bf16

    def check(self) -> None:
        """Raises UserError for an unknown strategy, offload or reduce, and where they do not go together."""
        names = (AUTO, "single", "ddp", *ZERO_STAGES, FSDP)
        if self.name not in names:
            raise UserError(f"there is no strategy {self.name!r}; choose from {', '.join(names)}")
        check_choice("strategy.offload", self.offload, OFFLOADS)
        if self.offload == "all" and self.name not in (AUTO, *OFFLOADING):
            raise UserError(
                f"strategy.offload=all needs strategy=zero3 or fsdp, not {self.name}: no other strategy offloads "
                "weights; strategy.offload=optimizer works with zero1 to zero3"
            )
        if self.offload == "optimizer" and self.name not in (AUTO, *ZERO_STAGES):
            raise UserError(f"strategy.offload=optimizer needs {', '.join(ZERO_STAGES)}, not strategy={self.name}")
        check_choice("strategy.shard_within", self.shard_within, SHARD_WITHIN)
        if self.shard_within == "node" and self.name != FSDP:
            raise UserError(f"strategy.shard_within=node needs strategy=fsdp, not {self.name}")
        check_not_negative(strategy__persist_below=self.persist_below)
        check_choice("strategy.reduce", self.reduce, REDUCES)
        if self.reduce == "bf16" and self.name == "single":
            raise UserError(
                "strategy.reduce=bf16 does not go with strategy=single, which sends no gradients and sums them in "
                "float32: leave it out"
            )

    def check_precision(self, precision: str) -> None:
        """Raises UserError if the gradients have more bits than they would be summed in."""
        if self.reduce == "bf16" and precision != "bf16-mixed":
            raise UserError(
                f"strategy.reduce=bf16 needs trainer.precision=bf16-mixed, not {precision}: leave it out, and float32 "
                "gradients are summed in float32"
            )

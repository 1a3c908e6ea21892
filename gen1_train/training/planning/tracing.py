"""Measures the peak memory of a forward and backward pass on tensors that have shapes but no memory.

The UNet itself runs with torch's autograd under FakeTensorMode. Every tensor that an operator creates is counted from
its creation until nothing references it. The peak therefore includes what autograd saves, temporaries of the backward
pass, and the gradients that accumulate while activations are freed. It does not include what kernels allocate and free
within one operator.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from gen1_train.diffusion.loss import per_sample_loss
from gen1_train.diffusion.prediction import v_from
from gen1_train.frozen.autoencoder import sample_latents
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.checkpoints.state import trainable

Adapt = Callable[[nn.Module], None]


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of one rank."""

    kind: str  # "image" or "video"
    samples: int
    frames: int  # of a sample; 1 for images
    height: int  # of the latents
    width: int


@dataclass(frozen=True)
class NumberFormat:
    """The number formats that a strategy computes in."""

    dtype: torch.dtype  # of the weights in the model
    autocast: bool  # float32 weights are used in bfloat16


@dataclass(frozen=True)
class Buckets:
    """How ZeRO handles gradients: each is copied to a bucket and freed; a full bucket is reduced to the rank's part.

    All counts are of elements of the model's dtype.
    """

    size: int  # a full bucket
    held: int  # allocated at the first gradient of a pass, freed at its end
    part: int  # allocated at the first reduction
    scratch: int = 0  # allocated and freed by each reduction, for every element of the bucket
    late: bool = False  # all gradients wait for the end of the backward pass; they are copied and reduced after it


@dataclass(frozen=True)
class PassMemory:
    """The memory of a pass in bytes, without the weights and whatever else is resident before it."""

    activations: int  # saved by autograd for the backward pass, without bfloat16 copies of the weights
    peak: int  # of the whole pass, including gradients
    missing: int  # elements of the weights without a gradient: an image step skips the temporal layers
    widest: int = 0  # elements of the largest map that a convolution reads or writes, in all samples


class Tracer:
    """A UNet without memory. Building one takes two seconds at the size of Stable Diffusion 1.5, as does a trace."""

    def __init__(self, config: UNetConfig, numbers: NumberFormat, adapt: Adapt | None = None) -> None:
        """`adapt`: adds an adapter to the UNet and freezes everything else, or freezes some of its weights."""
        self.numbers = numbers
        with torch.device("meta"):
            self.unet = SpatioTemporalUNet(config)
            if adapt is not None:
                adapt(self.unet)
        self.mode = FakeTensorMode()
        with self.mode:
            for module in self.unet.modules():
                for name, weight in module.named_parameters(recurse=False):
                    empty = torch.empty(weight.shape, dtype=numbers.dtype)
                    module.register_parameter(name, nn.Parameter(empty, weight.requires_grad))
                if numbers.autocast and isinstance(module, nn.GroupNorm | nn.LayerNorm):
                    # as autocast does on a GPU; on a CPU, where this runs, it would keep norms in bfloat16
                    module.register_forward_pre_hook(_in_float32)

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16) if self.numbers.autocast else nullcontext()

    @property
    def sizes(self) -> list[int]:
        """The number of elements of each weight, in the order of the model."""
        return [weight.numel() for weight in self.unet.parameters()]

    @property
    def trained(self) -> int:
        """The number of elements of all trained weights."""
        return sum(weight.numel() for weight in trainable(self.unet).values())

    def trace(self, micro_batch: MicroBatch, buckets: Buckets | None = None, resident: bool = False) -> PassMemory:
        """Traces the pass of a micro-batch. Without `buckets`, whole gradients stay with the weights.

        `resident`: gradients of earlier micro-batches exist already (accumulation), and are not counted.
        """
        weights, trained = list(self.unet.parameters()), list(trainable(self.unet).values())
        before: list[Tensor] = [*weights]
        if resident:
            before += self._fill_gradients()
        live, saved, maps = LiveStorages(before), _Saved(weights), _ConvolutionMaps()
        with self.mode, live, maps, _reducing(trained, buckets, self.numbers.dtype) as reducer:
            if buckets is None and not resident:
                self._fill_gradients()
            with self._autocast(), saved_tensors_hooks(saved.add, lambda tensor: tensor):
                loss = self._loss(micro_batch)
            if not resident:  # Lightning frees the last step's gradients between forward and backward pass
                self.unet.zero_grad()
            loss.backward()
            del loss
            reducer.finish()
        return PassMemory(saved.bytes, live.peak, self.trained - reducer.taken, maps.widest)

    def trains(self, micro_batch: MicroBatch) -> bool:
        """Whether any weight would get a gradient."""
        with self.mode, self._autocast():
            return self._loss(micro_batch).requires_grad

    def _fill_gradients(self) -> list[Tensor]:
        """Creates gradients as the previous step leaves them, and returns them."""
        gradients = []
        for weight in trainable(self.unet).values():
            with self.mode:
                weight.grad = torch.empty_like(weight)
            gradients.append(weight.grad)
        return gradients

    def _loss(self, micro_batch: MicroBatch) -> Tensor:
        """Computes the loss as gen1_train.training.module does, from tensors that are on the device already."""
        config = self.unet.config
        b, n = micro_batch.samples, micro_batch.frames
        size = (micro_batch.height, micro_batch.width)
        moments = torch.empty(b, n, 2 * config.out_channels, *size)
        noise, posterior = (torch.empty(b, n, config.out_channels, *size) for _ in range(2))
        alpha, sigma = (torch.empty(b, 1, 1, 1, 1) for _ in range(2))
        latents = sample_latents(moments, posterior, 1.0)
        inputs = alpha * latents + sigma * noise
        if config.in_channels > config.out_channels:
            structure = torch.empty(b, n, config.in_channels - config.out_channels, *size)
            inputs = torch.cat([inputs, structure], dim=2)
        dtype = self.numbers.dtype
        content, timesteps = torch.empty(b, 1, config.content_dim, dtype=dtype), torch.empty(b, dtype=torch.long)
        prediction = self.unet(inputs.to(dtype), timesteps, content, temporal=micro_batch.kind == "video")
        return per_sample_loss(prediction, v_from(latents, noise, alpha, sigma)).mean()


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of all storages that operators create, as long as they are alive, on any thread."""

    def __init__(self, before: Sequence[Tensor] = ()) -> None:
        """`before`: tensors whose storages do not count."""
        super().__init__()
        self.now = 0
        self.peak = 0
        # bytes, in a list of one; None: does not count
        self._held = weakref.WeakKeyDictionary[torch.UntypedStorage, list[int] | None]()
        self._held.update({tensor.untyped_storage(): None for tensor in before})

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                self.count(tensor)
        return outputs

    def count(self, tensor: Tensor) -> None:
        """Counts a tensor's storage from now until it is freed, once."""
        if is_traceable_wrapper_subclass(tensor):  # a DTensor, which claims to hold the whole tensor
            return
        storage = tensor.untyped_storage()
        if storage not in self._held:
            self._held[storage] = held = [0]
            weakref.finalize(storage, self._drop, held)
            self.resize(storage)

    def resize(self, storage: torch.UntypedStorage) -> None:
        """Counts the present size of a storage that is already counted; no operator tells that it has changed."""
        if (held := self._held.get(storage)) is not None:
            self.now += storage.nbytes() - held[0]
            self.peak = max(self.peak, self.now)
            held[0] = storage.nbytes()

    def _drop(self, held: list[int]) -> None:
        self.now -= held[0]


class _ConvolutionMaps(TorchDispatchMode):
    """Records the largest map of all convolutions, forward and backward. Weights do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.widest = 0  # elements

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        maps: tuple[Any, ...] = ()
        if func is torch.ops.aten.convolution.default:
            maps = (args[0], outputs)
        elif func is torch.ops.aten.convolution_backward.default:
            maps = args[:2]
        self.widest = max([self.widest, *(each.numel() for each in maps)])
        return outputs


class _Saved:
    """Counts what autograd saves, each storage once."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        self._weights = {weight.untyped_storage()._cdata for weight in weights}
        self._sizes: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        return sum(self._sizes.values())

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights:
            self._sizes[storage._cdata] = storage.nbytes()
        return tensor


def _in_float32(norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.float() for tensor in inputs)


@contextmanager
def _reducing(weights: list[nn.Parameter], buckets: Buckets | None, dtype: torch.dtype) -> Iterator["_Reducer"]:
    """Handles gradients as ZeRO does; without buckets only counts them. They are freed at the end."""
    reducer = _Reducer(weights, buckets, dtype)
    handles = [weight.register_post_accumulate_grad_hook(reducer.take) for weight in weights]
    yield reducer
    for handle, weight in zip(handles, weights, strict=True):
        handle.remove()
        weight.grad = None


class _Reducer:
    def __init__(self, weights: list[nn.Parameter], buckets: Buckets | None, dtype: torch.dtype) -> None:
        self.weights = weights
        self.buckets = buckets
        self.dtype = dtype
        self.taken = 0  # elements
        self._held: Tensor | None = None
        self._part: Tensor | None = None
        self._large: Tensor | None = None  # a gradient larger than a bucket: it stays until it is reduced
        self._filled = 0

    def take(self, weight: Tensor) -> None:
        self.taken += weight.numel()
        if self.buckets is None:
            return
        if self._held is None:
            self._held = torch.empty(self.buckets.held, dtype=self.dtype)
        if not self.buckets.late:
            self._copy(weight, self.buckets)

    def finish(self) -> None:
        if self.buckets is None:
            return
        for weight in self.weights:
            if weight.grad is not None:  # in the order of the model, as DeepSpeed does
                self._copy(weight, self.buckets)
        self._reduce(self.buckets)

    def _copy(self, weight: Tensor, buckets: Buckets) -> None:
        size = weight.numel()
        if self._filled + size > buckets.size:
            self._reduce(buckets)
        self._filled += size
        self._large = weight.grad if size > buckets.size else None
        weight.grad = None

    def _reduce(self, buckets: Buckets) -> None:
        if self._part is None:
            self._part = torch.empty(buckets.part, dtype=self.dtype)
        torch.empty(self._filled * buckets.scratch, dtype=self.dtype)
        self._large = None
        self._filled = 0

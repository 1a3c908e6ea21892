"""torch.compile for the UNet by layer.

Layers of one kind and size share a graph, so a compilation takes a fraction of that of the whole UNet. In training,
each layer's gradients come as soon as its part of the backward pass is done, and their communication overlaps the rest;
a graph of the whole UNet returns all gradients at its end.
"""

from typing import Any

import torch
from torch import nn

from gen1_train.model.unet import ResidualBlock, SpatioTemporalTransformer, SpatioTemporalUNet

GRAPHS = 1024  # that one layer class may be compiled to, for all widths, sizes and batches; ours


def compile_layers(unet: SpatioTemporalUNet, backend: str = "inductor") -> None:
    """Lets the residual blocks and transformers go through torch.compile from now on; their weights keep their names.

    Each kind is compiled when it meets a size for the first time: shapes are static. What lies between these layers, a
    few convolutions, is not compiled.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, GRAPHS)  # beyond it, dynamo would run a layer uncompiled
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, GRAPHS)
    for layer in layers_of(unet):
        layer.compile(backend=backend, dynamic=False, fullgraph=True)


def release_layers(unet: SpatioTemporalUNet) -> None:
    """Undoes `compile_layers`."""
    for layer in layers_of(unet):
        layer._compiled_call_impl = None


def layers_of(unet: SpatioTemporalUNet) -> list[nn.Module]:
    return [layer for layer in unet.modules() if isinstance(layer, ResidualBlock | SpatioTemporalTransformer)]

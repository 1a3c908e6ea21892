"""The families of depth networks: how one is loaded, and what its input has to be."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gen1_train.frozen.plain import find_source, plain_folder, read_config
from gen1_train.frozen.structure import depth_anything, dpt

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

Channels = tuple[float, float, float]  # R, G, B, for pixels in 0..1


@dataclass(frozen=True)
class Family:
    """Networks of one `model_type` of transformers; the numbers are those of its published preprocessing."""

    multiple: int  # of both sides of the input, in pixels
    mean: Channels
    deviation: Channels
    settings: Callable[[dict[str, Any]], dict[str, Any]]  # config.json -> what transformers may read of it
    load: Callable[[str], Any]  # folder -> network
    vit: Callable[[Any], Any]  # config of a network -> that of its vision transformer
    architecture: Callable[[Any], dict[str, Any]]  # config of a network -> settings that its weights do not show
    inverse_depth: Callable[[Any, Tensor], Tensor]  # network, normalized pixels (n, 3, h, w) -> (n, h', w')

    def patch_size(self, network: Any) -> int:
        """Returns the pixels of a patch's side. Raises ValueError if patches are not square."""
        return dpt.square_side(self.vit(network.config).patch_size)

    def trained_size(self, network: Any) -> int:
        """Returns the side in pixels of the squares that the network learned. Raises ValueError for other shapes."""
        return dpt.square_side(self.vit(network.config).image_size)


FAMILIES = {
    "dpt": Family(
        multiple=32,
        mean=(0.5, 0.5, 0.5),
        deviation=(0.5, 0.5, 0.5),
        settings=dpt.dpt_settings,
        load=dpt.load_dpt,
        vit=dpt.dpt_vit,
        architecture=dpt.dpt_architecture,
        inverse_depth=dpt.dpt_inverse_depth,
    ),
    "depth_anything": Family(
        multiple=14,
        mean=(0.485, 0.456, 0.406),  # of ImageNet
        deviation=(0.229, 0.224, 0.225),
        settings=depth_anything.depth_anything_settings,
        load=depth_anything.load_depth_anything,
        vit=depth_anything.depth_anything_vit,
        architecture=depth_anything.depth_anything_architecture,
        inverse_depth=depth_anything.depth_anything_inverse_depth,
    ),
}
SUPPORTED = f"{dpt.SUPPORTED}, {depth_anything.SUPPORTED}"


def load_network(path: str, recorded: bool) -> Any:
    """Loads a network of one of the families. Raises ValueError for another kind, before its weights are read.

    Other errors are those of transformers. A small picture goes through the network, so that one that cannot run
    (another number of layers than its neck takes, for example) fails here, and not in every task.
    """
    source = find_source(path, CONFIG, (WEIGHTS,), recorded)
    config = read_config(source.config)
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(f"its model_type is {name}, not {' or '.join(FAMILIES)}")
    family = FAMILIES[name]
    with plain_folder(source, family.settings(config)) as folder:
        network = family.load(folder).eval()
    patch = family.patch_size(network)
    family.trained_size(network)
    with torch.no_grad():
        family.inverse_depth(network, torch.zeros(1, 3, 2 * patch, 4 * patch))
    return network

"""The networks, in plain torch: no Lightning, no DeepSpeed, no Hydra."""

from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig

__all__ = ["SpatioTemporalUNet", "UNetConfig"]

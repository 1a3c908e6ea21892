"""How a picture of any aspect becomes the square that CLIP's image tower takes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

FITS = ("crop", "pad", "squash")
RESIZE_MODES = {"crop": "shortest", "pad": "longest", "squash": "squash"}  # in the terms of open_clip


def preprocessing(settings: Mapping[str, Any], fit: str, border: tuple[int, int, int] | None = None) -> Any:
    """Builds open_clip's preprocessing for inference, from a PIL image to the tower's input (3, s, s).

    `settings`: `preprocess_cfg` of a loaded model's image tower. `fit`: crop = the short side is resized to s and the
    middle is cut out, as in CLIP (arXiv 2103.00020); pad = the long side is resized to s, and `border` fills the rest;
    squash = both sides are resized to s. By default the border has the mean color that the model subtracts, so that
    its input is 0 there (ours; open_clip's own is black, the darkest input).
    """
    from open_clip.transform import PreprocessCfg, image_transform_v2

    own = PreprocessCfg(**settings)
    changed = replace(own, resize_mode=RESIZE_MODES[fit])
    if fit == "pad":
        fill: Any = border or mean_color(own.mean)  # of each channel; open_clip declares a number, and hands on either
        changed = replace(changed, fill_color=fill)
    return image_transform_v2(changed, is_train=False)


def mean_color(mean: tuple[float, ...]) -> tuple[int, ...]:
    """The color that normalization maps to about 0, in 0..255; `mean` is in [0, 1]."""
    return tuple(round(255 * each) for each in mean)

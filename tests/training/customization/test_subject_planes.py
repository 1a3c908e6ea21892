"""Images of a subject get the planes of structure that their model was trained with."""

import numpy as np
import pytest

from data_tools.estimate import Estimators
from gen1_train.batch import Pool, decode_sample, encode_sample, validate
from gen1_train.diffusion.structure import MAX_LEVEL, PIXELS
from gen1_train.training.customization.subject import Picture, make_sample
from miniature.world.render import render_clip
from tests.data_tools.small_source import quick_recipe


@pytest.mark.parametrize("kind", ["edges", "soft_edges+edges"])
def test_images_have_the_planes_of_the_clips(kind: str) -> None:
    networks = Estimators(quick_recipe(structure=kind), "cpu")
    frames = render_clip(3, 1, 48, 64).frames
    sample = make_sample("subject-0000", Picture("a.png", frames, {"source": "a.png"}), networks, PIXELS)
    ((structure, extent),) = networks.maps(frames[None])
    assert np.array_equal(sample.structure, structure) and sample.meta["structure"] == kind
    assert sample.meta["structure_range"] == extent
    assert np.array_equal(sample.degraded_latents[MAX_LEVEL], networks.structure_latents(structure, MAX_LEVEL))
    pool = Pool("image", 64, 48, 1)
    validate(sample, pool)
    assert np.array_equal(decode_sample(sample.key, encode_sample(sample), pool).structure, structure)

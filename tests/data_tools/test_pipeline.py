"""The pipeline turns clips into samples: in order, a few at a time, and one bad clip spoils no other."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_tools.estimate import Estimators, load_estimators
from data_tools.pipeline import AHEAD, Clip, Pipeline, ProcessedClip
from data_tools.stats import CAPTIONED_BY
from gen1_train.batch import Pool, SampleError, decode_sample
from tests.data_tools.small_source import quick_recipe
from tests.video.files import picture

VIDEO, IMAGE = Pool("video", 64, 48, 2), Pool("image", 64, 48, 1)


class FakeEstimators:
    """Networks whose results show which clip they were made from."""

    def __init__(self, batch: int = 1, latents: bool = True, captioner: object = None) -> None:
        self.batch = batch
        self.captioner = captioner
        self.recipe = SimpleNamespace(
            latents=latents, structure="fake", stored_level=2, degradation="fake", caption="fake"
        )
        self.structure = SimpleNamespace(normalisation="none", subject=None)
        self.batches: list[int] = []  # the batch sizes of all calls

    def maps(self, clips: np.ndarray) -> list[Any]:
        self.batches.append(len(clips))
        if clips[0, 0, 0, 0, 0] == 99:
            raise ZeroDivisionError("a bug")
        bad = SampleError("not finite", "not_finite")
        return [bad if clip[0, 0, 0, 0] == 66 else (clip[..., 0].astype(np.uint16), (0.0, 1.0)) for clip in clips]

    def structure_latents(self, structure: np.ndarray, level: int, degradation: str) -> np.ndarray:
        assert degradation == self.recipe.degradation
        return structure[:, None, ::8, ::8].astype(np.float16) + np.float16(level / 4)

    def moments(self, clips: np.ndarray) -> np.ndarray:
        return np.stack([clips[:, :, ::8, ::8, 0]] * 2, axis=2).astype(np.float16)

    def image_embeddings(self, clips: np.ndarray) -> np.ndarray:
        return clips[:, :, 0, :4, 0].astype(np.float16)

    def captions(self, clips: np.ndarray) -> list[str | None]:
        return [f"made of {clip[0, 0, 0, 0]}" if clip[0, 0, 0, 0] != 5 else None for clip in clips]

    def text_embedding(self, caption: str) -> np.ndarray:
        return np.full(4, len(caption), np.float16)


def clip(value: int, pool: Pool = VIDEO, caption: str | None = None) -> Clip:
    frames = np.full((pool.frames, pool.height, pool.width, 3), value, np.uint8)
    return Clip(f"key-{value}", pool, frames, caption, {"source": f"{value}.mp4"})


def run(estimators: Any, items: list[Any], **settings: Any) -> list[Any]:
    with Pipeline(estimators, 95, **settings) as pipeline:
        return list(pipeline.run(items))


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("encoders", [1, 4])
def test_the_output_has_the_order_of_the_input(batch: int, encoders: int) -> None:
    items = [
        clip(0),
        "an event",
        clip(1),
        clip(2),
        clip(3, IMAGE),
        clip(4, IMAGE),
        "another",
        "more",
        *map(clip, range(5, 12)),
    ]
    estimators = FakeEstimators(batch)
    results = run(estimators, items, encoders=encoders)
    assert [item.clip.key if isinstance(item, ProcessedClip) else item for item in results] == [
        item.key if isinstance(item, Clip) else item for item in items
    ]
    for item in results:
        if isinstance(item, ProcessedClip):
            value = int(item.clip.key.removeprefix("key-"))
            sample = decode_sample(item.clip.key, item.members)
            for array in (sample.structure, sample.structure_latent, sample.moments, sample.image_embedding):
                assert array is not None and len(array) == item.clip.pool.frames and (array == value).all()
            assert {level: set(latent.flat) for level, latent in sample.degraded_latents.items()} == {
                level: {value + level / 4} for level in (1, 2)
            }
            assert sample.meta == {
                "source": f"{value}.mp4",
                "structure": "fake",
                "normalise": "none",
                "structure_range": [0.0, 1.0],
            }
    assert max(estimators.batches) == min(batch, 5) and sum(estimators.batches) == 12


def test_captions_stay_with_their_clips() -> None:
    results = run(FakeEstimators(3), [clip(1, caption="ball"), clip(2), clip(3, caption="a box")])
    samples = [decode_sample(item.clip.key, item.members) for item in results]
    assert [sample.caption for sample in samples] == ["ball", None, "a box"]
    assert [sample.text_embedding is not None and sample.text_embedding[0] for sample in samples] == [4, False, 5]


@pytest.mark.parametrize("batch", [1, 3])
def test_captions_are_made_for_clips_without_one_and_marked(batch: int) -> None:
    clips = [clip(1, caption="ball"), clip(2), clip(3, IMAGE, "a box"), clip(4, IMAGE), clip(5)]
    results = run(FakeEstimators(batch, captioner="one"), clips)
    samples = [decode_sample(item.clip.key, item.members) for item in results]
    assert [sample.caption for sample in samples] == ["ball", "made of 2", "a box", "made of 4", None]
    made = [False, True, False, True, False]
    marked = [(sample.meta or {}).get(CAPTIONED_BY) == "fake" for sample in samples]
    assert [item.made_caption for item in results] == marked == made
    lengths = [None if sample.text_embedding is None else sample.text_embedding[0] for sample in samples]
    assert lengths == [4, 9, 5, 9, None]
    unmade = run(FakeEstimators(batch), clips)
    for item, other in zip(results, unmade):
        assert item.made_caption or item.members == other.members


def test_a_bad_clip_spoils_no_other() -> None:
    results = run(FakeEstimators(3), [clip(1), clip(66), clip(3)])
    assert [str(item.error) if item.error else "" for item in results] == ["", "not finite", ""]
    assert [bool(item.members) for item in results] == [True, False, True]


def test_a_bug_in_a_network_ends_the_run() -> None:
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run(FakeEstimators(), [clip(1), clip(99), clip(3)])


def test_without_latents_the_autoencoder_does_not_run() -> None:
    (result,) = run(FakeEstimators(latents=False), [clip(1)])
    assert {name.rpartition(".")[0].rstrip("0123456789") for name in result.members} == {
        "frame",
        "structure",
        "image_embedding",
        "meta",
    }


def test_latents_at_levels_that_are_not_made_again_do_not_stay() -> None:
    old = {"structure_latent.npy": b"", "structure_latent2.npy": b"", "structure_latent5.npy": b"", "caption.txt": b"a"}
    estimators, item = FakeEstimators(), clip(1)
    item.structure, item.kept = item.frames[..., 0].astype(np.uint16), old
    (again,) = run(estimators, [item], layers=["latents"])
    latents = [name for name in again.members if name.startswith("structure_latent")]
    assert latents == ["structure_latent.npy", "structure_latent1.npy", "structure_latent2.npy"]
    assert all(again.members[name] for name in latents) and again.members["caption.txt"] == b"a"
    (untouched,) = run(estimators, [clip_with(item, old)], layers=["clip"])
    assert {name: untouched.members[name] for name in old} == old


def clip_with(item: Clip, members: dict[str, bytes]) -> Clip:
    return Clip(item.key, item.pool, item.frames, None, item.meta, item.structure, members)


def test_only_a_few_batches_are_read_ahead() -> None:
    taken: list[int] = []

    def endless() -> Iterator[Clip]:
        for value in range(60):
            taken.append(value)
            yield clip(value)

    with Pipeline(FakeEstimators(batch=2), 95) as pipeline:  # type: ignore[arg-type]
        results = pipeline.run(endless())
        for count in range(1, 40):
            next(results)
            assert len(taken) <= count + 2 * (AHEAD + 1)


def test_a_batch_gives_the_results_of_its_clips_alone() -> None:
    """Uses the real networks; only rounding differs, since sums of other shapes have other orders."""
    estimators: Estimators = load_estimators(quick_recipe(), "cpu")
    clips = np.stack([np.stack([picture(number), picture(number + 3)]) for number in range(4)])
    alone = [estimators.moments(one[None])[0] for one in clips]
    np.testing.assert_allclose(estimators.moments(clips).astype(float), np.stack(alone).astype(float), atol=0.02)
    embedded = [estimators.image_embeddings(one[None])[0] for one in clips]
    together = estimators.image_embeddings(clips).astype(float)
    np.testing.assert_allclose(together, np.stack(embedded).astype(float), atol=0.01)
    for result, one in zip(estimators.maps(clips), clips, strict=True):
        (expected,) = estimators.maps(one[None])
        assert isinstance(result, tuple) and isinstance(expected, tuple)
        assert np.abs(result[0].astype(int) - expected[0].astype(int)).max() <= 65  # a thousandth of the range

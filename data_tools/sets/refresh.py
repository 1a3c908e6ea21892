"""The command `gen1-data refresh`: recomputes one layer of a frozen set from its stored frames, into a new set.

The layer may come from another depth network, another CLIP or another autoencoder, or be the latents or the captions of
a set that has none; no video is decoded. All other members are copied byte for byte, a given caption is never
replaced, and every sample keeps its position. A killed run resumes with the next shard.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from data_tools.estimate import LAYERS, Estimators
from data_tools.failures import FAILURES, read_failures, to_lines
from data_tools.pipeline import EMPTY_FRAMES, Clip, Pipeline, ProcessedClip
from data_tools.recipe import RecipeConfig, recipe_from_dict
from data_tools.sets.report import write_report
from data_tools.stats import CAPTIONED_BY, Stats, member_kind
from gen1_train.batch import Pool, SampleError, decode_sample, members_of, validate
from gen1_train.cli.app import run_app
from gen1_train.data.index import read_index
from gen1_train.data.manifest import MANIFEST, Manifest, PoolShards, Shard
from gen1_train.data.open_files import OpenFile
from gen1_train.data.pack import open_tar, seal, sealed_shard
from gen1_train.data.shards import read_members
from gen1_train.diffusion.planes import JOIN
from gen1_train.errors import UserError, check_choice
from gen1_train.frozen.captions.captioner import CAPTIONERS, NONE
from gen1_train.frozen.levels import with_levels
from gen1_train.frozen.structure.kinds import STRUCTURES, check_kind
from gen1_train.system.console import ConsoleConfig, progress
from gen1_train.system.files import own_folder, write_atomically

STARTED = "refresh.json"  # in the output until it is finished: which layer of which set is being recomputed
SECTIONS = {  # layer -> sections of the recipe that the new set takes from the given recipe
    "structure": ("structure", *STRUCTURES),
    "clip": ("clip",),
    "latents": ("autoencoder", "latents", "structure_levels", "degradation"),
    "caption": ("caption", *CAPTIONERS),
}
ESTIMATORS = {
    "structure": ("structure",),
    "clip": ("clip",),
    "latents": ("autoencoder",),
    "caption": ("caption",),
}

logger = logging.getLogger(__name__)


@dataclass
class RefreshConfig:
    source: str = MISSING  # the frozen set
    output: str = MISSING  # folder of the new set
    layer: str = MISSING  # structure (or its kind: depth, edges, soft_edges, face, depth+edges), clip, latents, caption
    recipe: RecipeConfig = field(default_factory=RecipeConfig)  # only the sections of the layer are used
    device: str = "auto"  # of the networks: cpu, cuda, or auto: a GPU if there is one
    precision: str = "auto"  # of the networks: fp32, fp16, bf16, or auto: fp16 on a GPU, else fp32
    log: ConsoleConfig = field(default_factory=ConsoleConfig)  # lines on the terminal

    @property
    def is_kind(self) -> bool:
        """Whether the layer is named by the kind of structure that it becomes, or by several."""
        return self.layer in STRUCTURES or JOIN in self.layer

    def destinations(self) -> list[tuple[str, Path]]:
        """The folder of the set and the setting that names it."""
        return [("output", Path(self.output))]

    def check(self) -> None:
        """Raises UserError for a setting that cannot be; the message names it and the remedy."""
        if self.is_kind:
            check_kind("layer", self.layer)
        else:
            check_choice("layer", self.layer, (*LAYERS, *STRUCTURES))
        if Path(self.source).resolve() == Path(self.output).resolve():
            raise UserError("source and output are the same folder: a frozen set is never changed, name another output")
        if self.layer == "latents" and not self.recipe.latents:
            raise UserError("layer=latents with recipe.latents=false makes nothing: leave recipe.latents out")
        if self.layer == "caption" and self.recipe.caption == NONE:
            raise UserError(f"layer=caption needs a network: add recipe.caption={' or '.join(CAPTIONERS)}")


def main() -> None:
    run_app("gen1-data refresh", "refresh", RefreshConfig, run)


def run(config: RefreshConfig) -> int:
    """Makes the new set, or resumes it. Raises UserError."""
    config.check()
    if config.is_kind:
        config.recipe.structure = config.layer
        config.layer = "structure"
    source, output = Path(config.source), Path(config.output)
    old = Manifest.load(source)
    recipe = new_recipe(old, config)
    if (output / MANIFEST).exists():
        check_finished(output, old, recipe, config.layer)
        logger.info(f"already finished: {output / MANIFEST}")
        return 0
    kept = {name for layer, names in ESTIMATORS.items() if layer != config.layer for name in names}
    estimators = Estimators(recipe, config.device, config.precision, recorded=kept)
    description = new_description(old, estimators, config.layer)
    refreshed = {**old.refreshed, config.layer: old.hash}
    try:
        begin_output(output, {"source": old.hash, "layer": config.layer, "estimators": description})
        pools = refresh(source, output, old, estimators, config.layer)
        write_statistics(source, output, pools, config.layer)
        Manifest(pools, recipe.record(), description, old.plan, old.versions, refreshed).save(output)
        (output / STARTED).unlink(missing_ok=True)
    except SampleError as error:
        raise UserError(f"source={source} is damaged ({error}): restore it, or see gen1-data verify") from error
    except OSError as error:
        raise UserError(
            f"output={output} cannot be written ({error.strerror or error}): run it again, what is finished is kept"
        ) from error
    logger.info(f"frozen: {output / MANIFEST} (layer {config.layer} recomputed from {source})")
    with suppress(UserError):  # a set that was made elsewhere has no statistics
        stats = Stats.load(output)
        if config.layer == "caption" and (made := stats.made_by_network(description)):
            logger.info(made)
        if empty := stats.empty_structure(description):
            logger.warning(empty)
    logger.info(f"report: {write_report(output)}")
    return 0


def check_finished(output: Path, old: Manifest, recipe: RecipeConfig, layer: str) -> None:
    """Raises UserError if the finished set in `output` is not the one that would be made."""
    finished = Manifest.load(output)
    if finished.refreshed.get(layer) != old.hash or recipe_from_dict(finished.recipe, str(output)) != recipe:
        raise UserError(f"output={output} holds another set: name another output, or remove it")


def write_statistics(source: Path, output: Path, pools: dict[str, PoolShards], layer: str) -> None:
    """Writes failures.jsonl and stats.json: those of the old set, with the bytes and the new layer counted again.

    Raises OSError, and SampleError for a damaged sample.
    """
    if (source / FAILURES).exists():  # not a copy of the file, which may be a link to any other one
        try:
            write_atomically(output / FAILURES, to_lines(read_failures(source)))
        except ValueError as error:
            raise UserError(f"{source / FAILURES} is not a list of failures ({error}): restore or remove it") from error
    with suppress(UserError):  # a set that was made elsewhere has no statistics
        stats = Stats.load(source)
        stats.bytes.clear()
        if layer == "structure":
            stats.structure_frames = stats.empty_frames = 0
        if layer == "caption":
            stats.captioned = stats.made_captions = 0
        for pool in pools.values():
            for shard in pool.shards:
                count_members(output / "shards" / shard.name, pool.pool, stats, layer)
        stats.save(output)


def count_members(tar: Path, pool: Pool, stats: Stats, layer: str) -> None:
    """Counts the bytes of a shard's members and what its samples say about the new layer. Raises as above."""
    with OpenFile(tar) as file:
        for entry in read_index(tar):
            for name, (_, size, _) in entry.members.items():
                stats.bytes[member_kind(name)] += size
            if layer in ("structure", "caption"):
                meta = decode_sample(entry.key, read_members(file, entry, ["meta.json"]), pool).meta or {}
            if layer == "structure":
                stats.add_structure(pool.frames, meta.get(EMPTY_FRAMES))
            if layer == "caption":
                stats.captioned += "caption.txt" in entry.members
                stats.made_captions += CAPTIONED_BY in meta


def new_recipe(old: Manifest, config: RefreshConfig) -> RecipeConfig:
    """Returns the set's own recipe with the layer's sections of the given recipe. Raises UserError."""
    sections = {name: getattr(config.recipe, name) for name in SECTIONS[config.layer]}
    recipe = replace(recipe_from_dict(old.recipe, config.source), **sections)
    recipe.check()
    return recipe


def new_description(old: Manifest, estimators: Estimators, layer: str) -> dict[str, dict[str, Any]]:
    """Returns the manifest's `estimators`. Raises UserError if a network that the layer needs has changed."""
    description = {**old.estimators}
    for name in ESTIMATORS[layer]:
        description[name] = estimators.description[name]
    if layer == "structure" and estimators.recipe.latents and changed(old, estimators, "autoencoder"):
        raise UserError(
            f"the autoencoder at {estimators.recipe.autoencoder.path} is not the one that encoded the set (its "
            "fingerprint differs): restore it, or run layer=latents first"
        )
    if layer == "caption" and changed(old, estimators, "clip"):
        raise UserError(
            f"the CLIP at {estimators.recipe.clip.model} is not the one that embedded the set (its fingerprint "
            "differs): restore it, or run layer=clip first"
        )
    if layer == "structure":  # its latents are made again
        recipe = estimators.recipe
        description["autoencoder"] = with_levels(description["autoencoder"], recipe.stored_level, recipe.degradation)
    return description


def changed(old: Manifest, estimators: Estimators, name: str) -> bool:
    """Whether a network differs from the one that made the old set."""
    return bool(estimators.description[name]["fingerprint"] != old.estimators[name]["fingerprint"])


def begin_output(output: Path, content: dict[str, Any]) -> None:
    """Starts the output folder, or checks that it was started with the same content. Raises UserError, OSError."""
    data = json.dumps(content, sort_keys=True).encode()
    output.mkdir(parents=True, exist_ok=True)
    started = output / STARTED
    if started.exists() and started.read_bytes() != data:
        raise UserError(
            f"output={output} was started with another set or other weights: name another output, or remove it"
        )
    if not started.exists():
        if any(output.iterdir()):
            raise UserError(f"output={output} is not empty: name another output")
        write_atomically(started, data)
    own_folder(output, "shards")


def refresh(source: Path, output: Path, old: Manifest, estimators: Estimators, layer: str) -> dict[str, PoolShards]:
    """Writes all missing shards. Raises UserError for damaged samples, OSError."""
    pools = {}
    total = sum(pool.samples for pool in old.pools.values())
    with (
        Pipeline(estimators, estimators.recipe.jpeg_quality, [layer]) as pipeline,
        progress(title="refresh", unit="sample", total=total) as bar,
    ):
        for name, pool in old.pools.items():
            shards = []
            for shard in pool.shards:
                shards.append(refresh_shard(source, output, pool.pool, shard, pipeline))
                bar.update(shard.samples)
            pools[name] = replace(pool, shards=tuple(shards))
    return pools


def refresh_shard(source: Path, output: Path, pool: Pool, shard: Shard, pipeline: Pipeline) -> Shard:
    """Writes one shard with its samples in the same order, its index last. Raises UserError, OSError."""
    tar = output / "shards" / shard.name
    if (done := sealed_shard(tar)) is not None:
        return done
    with open_tar(tar) as packer:
        clips = stored_clips(source / "shards" / shard.name, pool, shard)
        if "caption" in pipeline.layers:
            clips = map(without_made_caption, clips)
        for clip in pipeline.run(clips):
            assert isinstance(clip, ProcessedClip)
            if clip.error is not None:
                raise UserError(f"{shard.name}: {clip.clip.key}: {clip.error}")
            packer.write(clip.clip.key, clip.members)
    return seal(tar, packer.entries)


def stored_clips(tar: Path, pool: Pool, shard: Shard) -> Iterator[Clip]:
    """Yields the samples of a shard with all their members. Raises SampleError for a damaged sample, UserError."""
    with OpenFile(tar) as file:
        for entry in read_index(tar, shard.crc32):
            members = read_members(file, entry, list(entry.members))
            sample = decode_sample(entry.key, members, pool)
            validate(sample, pool)
            if sample.frames is None:
                raise SampleError(f"{tar.name}: sample {entry.key} has no frames", "missing")
            yield Clip(entry.key, pool, sample.frames, sample.caption, sample.meta or {}, sample.structure, members)


def without_made_caption(clip: Clip) -> Clip:
    """Returns a stored clip without a caption that a network made, and without what follows from it."""
    if CAPTIONED_BY not in clip.meta:
        return clip
    meta = {name: value for name, value in clip.meta.items() if name != CAPTIONED_BY}
    gone = [*members_of("caption", 1), *members_of("text_embedding", 1)]
    kept = {name: data for name, data in clip.kept.items() if name not in gone}
    return replace(clip, caption=None, meta=meta, kept=kept)


if __name__ == "__main__":
    main()

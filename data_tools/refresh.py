"""`gen1-data refresh`: one layer of a frozen set made anew, from its stored frames, into a new set.

Another depth network, another CLIP, another autoencoder, or latents for a set that has none: without decoding a single
video. All other members are copied byte for byte, and every sample keeps its place. A killed run goes on with the next
shard.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from tqdm import tqdm

from data_tools.estimate import LAYERS, Estimators
from data_tools.failures import FAILURES
from data_tools.pipeline import Clip, Made, Pipeline
from data_tools.progress import seconds_between
from data_tools.recipe import RecipeConfig, check, recorded
from data_tools.report import write_report
from data_tools.stats import Stats, member_kind
from gen1_train.batch import Pool, SampleError, decode_sample
from gen1_train.cli import run_app
from gen1_train.data.index import read_index
from gen1_train.data.opened import OpenFile
from gen1_train.data.pack import open_tar, seal, sealed
from gen1_train.data.shards import MANIFEST, Manifest, PoolShards, Shard, read_members
from gen1_train.errors import UserError
from gen1_train.estimators.structure import STRUCTURES
from gen1_train.files import write_atomically

STARTED = "refresh.json"  # in the output until it is finished: what is being made of what
SECTIONS = {  # of the recipe: what each layer takes from the one that is given
    "structure": ("structure", "depth", "edges"),
    "clip": ("clip",),
    "latents": ("autoencoder", "latents"),
}
ESTIMATORS = {"structure": ("structure",), "clip": ("clip",), "latents": ("autoencoder",)}


@dataclass
class RefreshConfig:
    source: str = MISSING  # the frozen set
    output: str = MISSING  # folder of the new set
    layer: str = MISSING  # structure (its latent too; also by its kind: depth, edges), clip (images and texts), latents
    recipe: RecipeConfig = field(default_factory=RecipeConfig)  # of it only the layer's own sections count
    device: str = "auto"  # of the networks: cpu, cuda, or auto: a GPU if there is one
    precision: str = "auto"  # of the networks: fp32, fp16, bf16, or auto: fp16 on a GPU, else fp32


def main() -> None:
    run_app("gen1-data refresh", "refresh", RefreshConfig, run)


def run(config: RefreshConfig) -> int:
    """Makes the new set, or goes on with it. Raises UserError."""
    if config.layer in STRUCTURES:
        config.recipe.structure, config.layer = config.layer, "structure"
    if config.layer not in LAYERS:
        raise UserError(f"layer={config.layer} is not one of {', '.join([*LAYERS, *STRUCTURES])}")
    source, output = Path(config.source), Path(config.output)
    if source.resolve() == output.resolve():
        raise UserError("source and output are the same folder: a frozen set is never changed, name another output")
    old = Manifest.load(source)
    recipe = new_recipe(old, config)
    if (output / MANIFEST).exists():
        made = Manifest.load(output)
        if made.refreshed.get(config.layer) != old.hash or made.recipe != asdict(recipe):
            raise UserError(f"output={output} holds another set: name another output, or remove it")
        print(f"finished already: {output / MANIFEST}")
        return 0
    estimators = Estimators(recipe, config.device, config.precision)
    described = new_description(old, estimators, config.layer)
    refreshed = {**old.refreshed, config.layer: old.hash}
    try:
        begin(output, {"source": old.hash, "layer": config.layer, "estimators": described})
        pools = refresh(source, output, old, estimators, config.layer)
        new_numbers(source, output, pools)
        Manifest(pools, asdict(recipe), described, old.plan, old.versions, refreshed).save(output)
        (output / STARTED).unlink(missing_ok=True)
    except SampleError as error:
        raise UserError(f"source={source} is damaged ({error}): restore it, or see gen1-data verify") from error
    except OSError as error:
        raise UserError(
            f"output={output} cannot be written ({error.strerror or error}); run it again, what is finished is kept"
        ) from error
    print(f"frozen: {output / MANIFEST} (layer {config.layer} made anew from {source})")
    print(f"report: {write_report(output)}")
    return 0


def new_numbers(source: Path, output: Path, pools: dict[str, PoolShards]) -> None:
    """failures.jsonl and stats.json: those of the old set, with the bytes counted again. Raises OSError."""
    if (source / FAILURES).exists():
        write_atomically(output / FAILURES, (source / FAILURES).read_bytes())
    with suppress(UserError):  # a set that was made elsewhere has none
        stats = Stats.load(source)
        stats.bytes.clear()
        for shard in (shard for pool in pools.values() for shard in pool.shards):
            for entry in read_index(output / "shards" / shard.name):
                for name, (_, size, _) in entry.members.items():
                    stats.bytes[member_kind(name)] += size
        stats.save(output)


def new_recipe(old: Manifest, config: RefreshConfig) -> RecipeConfig:
    """The set's own recipe, with the layer's sections from the one given. Raises UserError."""
    sections = {name: getattr(config.recipe, name) for name in SECTIONS[config.layer]}
    if sections.get("latents") is False:
        raise UserError("layer=latents with recipe.latents=false would make nothing")
    recipe = replace(recorded(old.recipe, config.source), **sections)
    check(recipe)
    return recipe


def new_description(old: Manifest, estimators: Estimators, layer: str) -> dict[str, dict[str, Any]]:
    """The manifest's `estimators`. Raises UserError if a network that the layer needs is no longer what it was."""
    described = {**old.estimators}
    for name in ESTIMATORS[layer]:
        described[name] = estimators.description[name]
    found = estimators.description["autoencoder"]["fingerprint"]
    if layer == "structure" and estimators.recipe.latents and found != old.estimators["autoencoder"]["fingerprint"]:
        raise UserError(
            f"the autoencoder at {estimators.recipe.autoencoder.path} is not the one that encoded the set (its "
            "fingerprint differs): restore it, or run layer=latents first"
        )
    return described


def begin(output: Path, what: dict[str, Any]) -> None:
    """Starts the output folder, or finds it started for the same. Raises UserError, OSError."""
    content = json.dumps(what, sort_keys=True).encode()
    output.mkdir(parents=True, exist_ok=True)
    started = output / STARTED
    if started.exists() and started.read_bytes() != content:
        raise UserError(
            f"output={output} was begun with another set or other weights: name another output, or remove it"
        )
    if not started.exists():
        if any(output.iterdir()):
            raise UserError(f"output={output} is not empty: name another output")
        write_atomically(started, content)
    (output / "shards").mkdir(exist_ok=True)


def refresh(source: Path, output: Path, old: Manifest, estimators: Estimators, layer: str) -> dict[str, PoolShards]:
    """Writes all shards that are not there yet. Raises UserError for damaged samples, OSError."""
    pools = {}
    total = sum(pool.samples for pool in old.pools.values())
    with (
        Pipeline(estimators, estimators.recipe.jpeg_quality, [layer]) as pipeline,
        tqdm(total=total, desc="refresh", unit="sample", mininterval=seconds_between()) as progress,
    ):
        for name, pool in old.pools.items():
            shards = []
            for shard in pool.shards:
                shards.append(refresh_shard(source, output, pool.pool, shard, pipeline))
                progress.update(shard.samples)
            pools[name] = replace(pool, shards=tuple(shards))
    return pools


def refresh_shard(source: Path, output: Path, pool: Pool, shard: Shard, pipeline: Pipeline) -> Shard:
    """One shard, its samples in the same order; its index is written last. Raises UserError, OSError."""
    tar = output / "shards" / shard.name
    if (done := sealed(tar)) is not None:
        return done
    with open_tar(tar) as packer:
        for made in pipeline.run(stored(source / "shards" / shard.name, pool, shard)):
            assert isinstance(made, Made)
            if made.error is not None:
                raise UserError(f"{shard.name}: {made.clip.key}: {made.error}")
            packer.write(made.clip.key, made.members)
    return seal(tar, packer.entries)


def stored(tar: Path, pool: Pool, shard: Shard) -> Iterator[Clip]:
    """The samples of a shard with all their members. Raises SampleError for a damaged one, UserError."""
    with OpenFile(tar) as file:
        for entry in read_index(tar, shard.crc32):
            members = read_members(file, entry, list(entry.members))
            sample = decode_sample(entry.key, members)
            assert sample.frames is not None
            yield Clip(entry.key, pool, sample.frames, sample.caption, sample.meta or {}, sample.structure, members)


if __name__ == "__main__":
    main()

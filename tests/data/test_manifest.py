"""Hostile and damaged manifests: nothing but one line comes of them, and no file outside the set is touched."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gen1_train.data.cache import fetch_manifest
from gen1_train.data.index import index_path
from gen1_train.data.manifest import Manifest, PoolShards
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from tests.damage import as_json, assert_refused_or_equal, flipped_bits, replaced_values
from tests.made import make_shard_set
from tests.running import ENVIRONMENT, REPOSITORY
from tests.system.test_names import HOSTILE
from tests.video.web import serve

VIDEO = "video-32x16"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A set that a test may damage."""
    return make_shard_set(tmp_path / "set", clips=4, images=3, frames=2)


def rewrite(root: Path, change: Change) -> None:
    """Changes the manifest as an attacker does, with a hash that fits."""
    path = root / "manifest.json"
    content = json.loads(path.read_text())
    del content["hash"]
    change(content)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**content, "hash": digest}))


def named(name: Any) -> Change:
    def change(content: dict[str, Any]) -> None:
        content["pools"][VIDEO]["shards"]["name"][0] = name

    return change


@pytest.mark.parametrize("name", HOSTILE)
def test_a_shard_may_only_have_a_plain_name(own: Path, name: Any, tmp_path: Path) -> None:
    rewrite(own, named(name))
    for load in (lambda: ShardSet(own), lambda: fetch_manifest(str(own), tmp_path / "cache")):
        with pytest.raises(UserError, match=r"manifest\.json is not a manifest") as error:
            load()
        assert str(error.value).isprintable()
    assert not (tmp_path / "cache").exists()


def test_a_manifest_over_http_writes_no_file_outside_the_cache(own: Path, tmp_path: Path) -> None:
    """It replaced ~/.bashrc: the name of a shard led out of the cache."""
    victim = tmp_path / "home" / "victim.tar"
    victim.parent.mkdir()
    victim.write_text("precious")
    tar = own / "shards" / f"{VIDEO}-000000.tar"
    (own / "home").mkdir()
    for source, target in ((tar, "victim.tar"), (index_path(tar), "victim.index")):
        (own / "home" / target).write_bytes(source.read_bytes())
    rewrite(own, named("../../../home/victim.tar"))
    with serve(own) as web, pytest.raises(UserError, match=r"'\.\./\.\./\.\./home/victim\.tar' is not a plain name"):
        fetch_manifest(web.url, tmp_path / "cache")
    assert victim.read_text() == "precious" and not index_path(victim).exists()


@pytest.mark.slow
def test_a_command_ends_with_one_line_and_exit_code_2(own: Path) -> None:
    rewrite(own, named("../../victim.tar"))
    command = [sys.executable, "-m", "data_tools.main", "report", f"output={own}"]
    ended = subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1 and "is not a plain name" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


def column(name: str, value: Any) -> Change:
    def change(content: dict[str, Any]) -> None:
        content["pools"][VIDEO]["shards"][name][0] = value

    return change


def pool(**facts: Any) -> Change:
    return lambda content: content["pools"][VIDEO].update(facts)


def estimator(which: str, **facts: Any) -> Change:
    return lambda content: content["estimators"][which].update(facts)


def same_name(content: dict[str, Any]) -> None:
    names = content["pools"][VIDEO]["shards"]["name"]
    names[0] = names[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (column("samples", -1), "samples is not in"),
        (column("samples", 1 << 60), "samples is not in"),
        (column("samples", True), r"samples\[0\] is true or false instead of a whole number"),
        (column("bytes", 0), "bytes is not in"),
        (column("crc32", 1 << 32), "crc32 is not in 32 bits"),
        (lambda content: content["pools"][VIDEO]["shards"]["name"].pop(), "columns of different lengths"),
        (same_name, "names the shard video-32x16-000001.tar 2 times"),
        (
            lambda content: content["pools"].update(evil=content["pools"].pop(VIDEO)),
            "'evil' is not the name of its pool",
        ),
        (lambda content: content["pools"].clear(), "it has no pool"),
        (pool(kind="sound"), "kind is 'sound' instead of one of image, video"),
        (pool(width=1 << 20, height=1 << 20), "more than 33554432 pixels"),
        (pool(width=0), "a side without pixels"),
        (pool(frames=100), r"frames is not in 1\.\.99"),
        (pool(more=1), "unknown entry 'more'"),
        (estimator("autoencoder", factor=0), "autoencoder.factor must be above 0"),
        (estimator("autoencoder", factor="8"), "autoencoder.factor is a text instead of a whole number"),
        (estimator("clip", width=None), "clip.width is null instead of a whole number"),
        (lambda content: content["estimators"].pop("structure"), "estimators has no structure"),
        (lambda content: content.update(versions={"av": 3}), "versions.av is a whole number instead of a text"),
    ],
)
def test_values_that_no_set_has_are_refused_although_the_hash_fits(own: Path, change: Change, message: str) -> None:
    rewrite(own, change)
    with pytest.raises(UserError, match=message) as error:
        Manifest.load(own)
    assert str(error.value).isprintable()


def test_every_flipped_bit_and_replaced_value_is_refused(own: Path) -> None:
    path = own / "manifest.json"
    content = json.loads(path.read_text())
    assert assert_refused_or_equal(path, flipped_bits(path.read_bytes(), 600), lambda: Manifest.load(own)) > 400
    changes = as_json(replaced_values(content, 600))
    assert assert_refused_or_equal(path, changes, lambda: Manifest.load(own)) > 550


def test_replaced_values_with_a_hash_that_fits_are_refused_or_loaded_as_what_they_are(own: Path) -> None:
    """An attacker can compute the hash: only the checks of types and ranges are left."""
    content = json.loads((own / "manifest.json").read_text())
    for changed in replaced_values(content, 600):
        (own / "manifest.json").write_text(json.dumps(changed))
        if not isinstance(changed, dict) or "hash" not in changed:
            continue
        rewrite(own, lambda _: None)
        try:
            manifest = Manifest.load(own)
            for stored in manifest.pools.values():
                assert stored.samples >= 0 and all(
                    (own / "shards" / s.name).parent == own / "shards" for s in stored.shards
                )
        except UserError as error:
            assert str(error).isprintable()


def test_a_pipe_or_a_folder_in_the_place_of_a_file_is_not_waited_for(own: Path) -> None:
    tar = own / "shards" / f"{VIDEO}-000000.tar"
    tar.unlink()
    os.mkfifo(tar)
    with pytest.raises(Exception, match="not a regular file"):
        ShardSet(own).read(VIDEO, 0, ("caption",))


def test_shards_may_be_links(own: Path, tmp_path: Path) -> None:
    """A set may be spread over several disks; what a link leads to is checked like any file."""
    tar = own / "shards" / f"{VIDEO}-000000.tar"
    tar.rename(tmp_path / "elsewhere.tar")
    tar.symlink_to(tmp_path / "elsewhere.tar")
    assert ShardSet(own).read(VIDEO, 0, ("caption",)).caption


def test_clips_of_several_lengths_are_in_pools_of_their_own(tmp_path: Path) -> None:
    one = Manifest.load(make_shard_set(tmp_path / "one"))
    several = Manifest.load(make_shard_set(tmp_path / "several", longer={8: 3}))
    assert list(several.pools) == [VIDEO, "image-32x16", f"{VIDEO}-8f"]
    assert [(pool.frames, pool.longer) for pool in several.pools.values()] == [(4, False), (1, False), (8, True)]
    assert [pool.pool.name for pool in several.pools.values()] == list(several.pools)
    assert several.pools[VIDEO].to_json() == one.pools[VIDEO].to_json()  # nothing changes for the others
    content = several.pools[f"{VIDEO}-8f"].to_json()
    for name in (f"{VIDEO}-16f", f"{VIDEO}-8", "image-32x16-8f"):
        with pytest.raises(ValueError, match="is not the name of its pool"):
            PoolShards.from_json(content, name)

"""Footage and shard sets in a bucket of an S3 server (moto's, over HTTP), which checks the signatures of requests."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import boto3
import fsspec
import pytest
import s3fs
from moto.server import ThreadedMotoServer
from PIL import Image

from data_tools.source.locations import measure
from data_tools.source.sources import open_source
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from gen1_train.video.errors import VideoError
from tests.digests import digests
from tests.made import make_shard_set
from tests.running import ENVIRONMENT, run, run_well
from tests.training.runs import assert_equal_to_the_bit, folder, stage
from tests.video.files import make_video, picture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

BLOCKS = ["data.order=blocks", "data.window=1", "data.lanes=2"]
REGION = "us-east-1"


@dataclass(frozen=True)
class Store:
    """The server, with one bucket, and the only key that it accepts."""

    url: str
    key: str
    secret: str

    def put(self, source: Path, prefix: str) -> str:
        """Copies a folder into the bucket; returns its URL."""
        client = boto3.client("s3", **self.access)
        for path in source.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "bucket", f"{prefix}/{path.relative_to(source)}")
        return f"s3://bucket/{prefix}"

    @property
    def access(self) -> dict[str, object]:
        keys = {"aws_access_key_id": self.key, "aws_secret_access_key": self.secret}
        return {"endpoint_url": self.url, "region_name": REGION, **keys}

    @property
    def environment(self) -> dict[str, str]:
        """The variables that Amazon's tools read."""
        keys = {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret}
        return {"AWS_ENDPOINT_URL": self.url, "AWS_DEFAULT_REGION": REGION, **keys}


def policy(**fields: object) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Resource": "*", **fields}]})


def check_signatures(url: str, after: float) -> None:
    """Lets the server check the signature of each request after this number of requests."""
    headers = {"Content-Type": "text/plain"}
    urlopen(Request(f"{url}/moto-api/reset-auth", f"{after:g}".encode(), headers), timeout=30).close()


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    """A server with one bucket, and the only key that it accepts."""
    moto = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        url = f"http://{host}:{port}"
        iam = boto3.client("iam", **Store(url, "any", "any").access)
        iam.create_user(UserName="user")
        iam.put_user_policy(UserName="user", PolicyName="all", PolicyDocument=policy(Action="s3:*"))
        made = iam.create_access_key(UserName="user")["AccessKey"]
        store = Store(url, made["AccessKeyId"], made["SecretAccessKey"])
        check_signatures(url, after=0)
        boto3.client("s3", **store.access).create_bucket(Bucket="bucket")
        yield store
        check_signatures(url, after=float("inf"))
    finally:
        moto.stop()


@pytest.fixture
def store(server: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The server, for this process and those that it starts."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setitem(ENVIRONMENT, name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    return server


def assert_no_secret(store: Store, printed: str, *folders: Path) -> None:
    """Neither the output nor any file has the key or its secret in it."""
    words = (store.key.encode(), store.secret.encode())
    texts = {"the output": printed.encode()}
    texts |= {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert len(texts) > len(folders)
    for name, text in texts.items():
        assert not any(word in text for word in words), name


def test_a_run_from_a_bucket_through_a_cache_equals_one_from_the_disk(
    run_root: Path, tmp_path: Path, store: Store
) -> None:
    local = make_shard_set(tmp_path / "set", clips=24, images=48, shards=12)
    run_well("gen1_train.train", *stage(run_root, 3, "local", f"data.root={local}", *BLOCKS))
    shards = [shard for pool in ShardSet(local).manifest.pools.values() for shard in pool.shards]
    budget = 0.6 * sum(shard.bytes for shard in shards)
    url = store.put(local, "set")
    cache = [f"data.cache={tmp_path / 'cache'}", f"data.cache_gigabytes={budget / 1e9:.9f}"]
    result = run("gen1_train.train", *stage(run_root, 3, "bucket", f"data.root={url}", *BLOCKS, *cache))
    assert result.returncode == 0, result.stderr
    assert f"copying shards from {url} to {tmp_path / 'cache'}" in result.stdout
    assert_equal_to_the_bit(run_root, "bucket", "local")
    assert_no_secret(store, result.stdout + result.stderr, folder(run_root, "bucket"), tmp_path / "cache")


def test_a_run_without_the_right_to_read_ends_with_one_line(
    run_root: Path, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = store.put(make_shard_set(tmp_path / "set"), "forbidden")
    monkeypatch.setitem(ENVIRONMENT, "AWS_SECRET_ACCESS_KEY", "another-secret")
    settings = [f"data.root={url}", *BLOCKS, f"data.cache={tmp_path / 'cache'}"]
    result = run("gen1_train.train", *stage(run_root, 3, "forbidden", *settings))
    assert result.returncode == 2, result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith(
        f"gen1-train: error: data.root={url} cannot be read: access is denied (Forbidden): check the"
    )
    assert "Traceback" not in result.stderr and "another-secret" not in result.stderr
    assert not folder(run_root, "forbidden").exists()


def test_a_set_of_a_bucket_is_that_of_the_folder(tmp_path: Path, store: Store) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    make_video(source / "sub" / "a b.mp4", frames=40, width=112, height=64)
    (source / "sub" / "a b.txt").write_text("a noise")
    Image.fromarray(picture(7)).resize((112, 64)).save(source / "photo.png")
    sets = {"local": str(source), "remote": store.put(source, "footage")}
    for name, location in sets.items():
        printed = run_well("data_tools.main", f"source={location}", f"output={tmp_path / name}", "recipe=tiny")
    remote, local = (digests(tmp_path / name / "shards") for name in ("remote", "local"))
    assert remote == local and any(name.startswith("video-112x64") for name in local)
    assert_no_secret(store, printed, tmp_path / "remote")


def test_the_key_may_be_in_the_configuration_of_fsspec(
    server: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"1234")
    url = server.put(tmp_path, "configured")
    s3fs.S3FileSystem.clear_instance_cache()
    (refused,) = measure([f"{url}/a.mp4"])
    assert isinstance(refused, VideoError) and "credentials" in str(refused)
    settings = {"key": server.key, "secret": server.secret, "endpoint_url": server.url}
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    assert measure([f"{url}/a.mp4"]) == [4]


def test_missing_files_and_buckets_are_named(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"1234")
    url = store.put(tmp_path, "few")
    found, absent, elsewhere, top = measure([f"{url}/a.mp4", f"{url}/b.mp4", "s3://no-bucket/a.mp4", url])
    assert found == 4
    assert (str(absent), str(top)) == ("no such file", "a folder, not a file")
    assert "bucket does not exist" in str(elsewhere)
    with pytest.raises(UserError, match=r"no video and no image"):
        open_source("s3://bucket/nothing").scan(tmp_path / "out")
    with pytest.raises(UserError, match=r"source=s3://no-bucket/x cannot be listed: .*bucket does not exist"):
        open_source("s3://no-bucket/x").scan(tmp_path / "out")

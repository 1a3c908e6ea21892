"""Statistics of a prepared set: each task collects its own, and freeze merges them into OUTPUT/stats.json.

Every value is a count (seconds are kept as whole milliseconds), so merging is exact and does not depend on the order of
the tasks.
"""

import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.failures import Failure
from gen1_train.errors import UserError
from gen1_train.frozen.structure.kinds import STRUCTURES, subject_of
from gen1_train.system.files import write_atomically
from gen1_train.system.records import read_json

STATS = "stats.json"
FORMAT = 3
ADDED = {"structure_frames": 2, "empty_frames": 2, "made_captions": 3}  # count -> the format that brought it
CAPTIONED_BY = "captioned_by"  # in a sample's meta: the kind of network that made its caption; absent for a given one
MEMBER_KINDS = (
    "frame",
    "structure",
    "moments",
    "structure_latent",
    "image_embedding",
    "text_embedding",
    "caption",
    "meta",
)

# Edges of the histograms (ours); they are stored in stats.json too.
DURATION_EDGES = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)  # seconds of a video
MOTION_EDGES = (0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)  # mean absolute luma difference of neighbors, 0..255
CLIPS_EDGES = (1, 2, 3, 5, 9, 17, 33, 65, 129, 257)  # clips of a video; bins: 0, 1, 2, 3-4, 5-8, 9-16, ...


@dataclass
class Histogram:
    """Counts between fixed edges: bin 0 is below the first edge, bin i holds edge i - 1 <= value < edge i."""

    edges: tuple[float, ...]
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.edges) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect_right(self.edges, value)] += 1

    def merge(self, other: "Histogram") -> None:
        if self.edges != other.edges:
            raise ValueError(f"histograms with edges {self.edges} and {other.edges} cannot be merged")
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]


@dataclass
class Loss:
    """The files and spans that one category of failures or drops took from the set."""

    count: int = 0  # files, and spans of videos
    milliseconds: int = 0  # of the spans; whole files count as 0
    transient: int = 0  # files and spans that another try may recover

    def add(self, other: "Loss") -> None:
        self.count += other.count
        self.milliseconds += other.milliseconds
        self.transient += other.transient


@dataclass
class Stats:
    """Statistics of a prepared set, or of a part of it."""

    videos: int = 0  # files used
    images: int = 0  # files used
    milliseconds: int = 0  # of video decoded
    captioned: int = 0  # samples with a caption
    made_captions: int = 0  # those of them whose caption a network made
    structure_frames: int = 0  # frames of which it was counted whether their structure is empty
    empty_frames: int = 0  # those without any structure: in face, frames without a face
    samples: Counter[str] = field(default_factory=Counter)  # clips or images, by pool
    decoders: Counter[str] = field(default_factory=Counter)  # clips, by decoder
    bytes: Counter[str] = field(default_factory=Counter)  # of the members, by kind (MEMBER_KINDS)
    drops: dict[str, Loss] = field(default_factory=dict)  # read but not wanted, by category
    failures: dict[str, Loss] = field(default_factory=dict)  # files and spans with an error, by category
    durations: Histogram = field(default_factory=lambda: Histogram(DURATION_EDGES))  # of the videos, in seconds
    motions: Histogram = field(default_factory=lambda: Histogram(MOTION_EDGES))  # of the clips
    clips_per_video: Histogram = field(default_factory=lambda: Histogram(CLIPS_EDGES))

    def add_video(self, seconds: float, clips: int, decoder: str | None) -> None:
        """Counts a video that was decoded: its length, its clips and the decoder."""
        self.videos += 1
        self.milliseconds += round(seconds * 1000)
        self.durations.add(seconds)
        self.clips_per_video.add(clips)
        if decoder is not None:
            self.decoders[decoder] += clips

    def add_image(self) -> None:
        """Counts an image file that was used."""
        self.images += 1

    def add_clip(
        self,
        pool: str,
        motion: float | None,
        member_bytes: dict[str, int],
        captioned: bool,
        made_caption: bool = False,
    ) -> None:
        """Counts a sample; the keys of `member_bytes` are names in the tar (frame00.jpg) or kinds (frame)."""
        self.samples[pool] += 1
        self.captioned += captioned
        self.made_captions += made_caption
        if motion is not None:
            self.motions.add(motion)
        for name, size in member_bytes.items():
            self.bytes[member_kind(name)] += size

    def add_structure(self, frames: int, empty: int | None) -> None:
        """Counts a sample's frames and those with an empty structure; None: it is of a kind that always has values."""
        if empty is not None:
            self.structure_frames += frames
            self.empty_frames += empty

    def empty_structure(self, estimators: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Returns a clause about the frames without any structure, or None if there are none.

        `estimators`: those of the set's manifest, which name its kind of structure.
        """
        if not self.empty_frames:
            return None
        kind = str(estimators.get("structure", {}).get("kind", "structure"))
        empty = "structure" if kind in STRUCTURES else "plane of it"
        share = self.empty_frames / max(1, self.structure_frames)
        return (
            f"{self.empty_frames:,} of {self.structure_frames:,} frames ({share:.0%}) have no "
            f"{subject_of(kind) or kind}: their {empty} is empty, and the model learns nothing from it"
        )

    def made_by_network(self, estimators: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Returns a clause about the captions that a network made, or None if there are none; `estimators` as above."""
        if not self.made_captions:
            return None
        kind = estimators.get("caption", {}).get("kind", "a network")
        return f"{self.made_captions:,} of {self.captioned:,} captions were made by {kind}, from one frame each"

    def add_failure(self, failure: Failure) -> None:
        """Counts a lost file or span: as a failure, or as a drop if nothing was wrong with it."""
        spanned = failure.start is not None and failure.end is not None
        milliseconds = round((failure.end - failure.start) * 1000) if spanned else 0  # type: ignore[operator]
        losses = self.failures if failure.failed else self.drops
        losses.setdefault(failure.category, Loss()).add(Loss(1, milliseconds, int(failure.transient)))

    def merge(self, other: "Stats") -> None:
        """Adds the statistics of another part of the set."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(value, int):
                setattr(self, name, mine + value)
            elif isinstance(value, Counter):
                mine.update(value)
            elif isinstance(value, Histogram):
                mine.merge(value)
            else:
                for category, loss in value.items():
                    mine.setdefault(category, Loss()).add(loss)

    def to_json(self) -> dict[str, Any]:
        """Returns plain numbers, strings, lists and dicts with sorted keys; `from_json` restores the same Stats."""
        content: dict[str, Any] = {"format": FORMAT}
        for name, value in vars(self).items():
            if isinstance(value, Histogram):
                content[name] = {"edges": list(value.edges), "counts": list(value.counts)}
            elif isinstance(value, Counter):
                content[name] = dict(sorted(value.items()))
            elif isinstance(value, dict):
                content[name] = {category: dict(vars(loss)) for category, loss in sorted(value.items())}
            else:
                content[name] = value
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Stats":
        """Restores what `to_json` returned. Raises ValueError for anything else."""
        stats = cls()
        expected = {"format", *vars(stats)}
        version = content.get("format") if isinstance(content, dict) else None
        if type(version) is int and 0 < version < FORMAT:
            content = {**{name: 0 for name, since in ADDED.items() if since > version}, **content}
            version = FORMAT
        if type(version) is int and version > FORMAT:
            raise ValueError(f"made by a newer gen1-train, format {version}: update gen1-train")
        if not isinstance(content, dict) or set(content) != expected or version != FORMAT:
            raise ValueError(f"not the statistics of a set in format {FORMAT}")
        try:
            for name, empty in list(vars(stats).items()):
                setattr(stats, name, _read(empty, content[name]))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not the statistics of a set: {error}") from error
        return stats

    def save(self, output: Path) -> None:
        """Writes OUTPUT/stats.json atomically."""
        write_atomically(output / STATS, (json.dumps(self.to_json(), indent=1) + "\n").encode())

    @classmethod
    def load(cls, output: Path) -> "Stats":
        """Reads OUTPUT/stats.json. Raises UserError if it is missing or damaged."""
        path = output / STATS
        try:
            return cls.from_json(read_json(path))
        except FileNotFoundError:
            raise UserError(
                f"there is no {STATS} in {output}: the set was made elsewhere, or by an older version"
            ) from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): freeze the set again with gen1-data") from error


def merge_stats(parts: Iterable[Stats]) -> Stats:
    """Returns the statistics of all parts together."""
    total = Stats()
    for part in parts:
        total.merge(part)
    return total


def member_kind(name: str) -> str:
    """Returns the kind of a member: frame00.jpg -> frame, moments.npy -> moments; a kind is its own kind."""
    match = re.match(r"[a-z_]+", name)
    return match.group() if match else name


def _read(empty: Any, value: Any) -> Any:
    """Returns a field's value from JSON in the type of its empty value."""
    if isinstance(empty, Histogram):
        edges, counts = tuple(value["edges"]), value["counts"]
        if edges != empty.edges or len(counts) != len(empty.counts):
            raise ValueError(f"a histogram has the edges {edges}, this version has {empty.edges}")
        return Histogram(edges, [_count(count) for count in counts])
    if isinstance(empty, Counter):
        return Counter({name: _count(count) for name, count in value.items()})
    if isinstance(empty, dict):
        return {name: Loss(**{part: _count(count) for part, count in loss.items()}) for name, loss in value.items()}
    return _count(value)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value

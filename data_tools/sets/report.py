"""The command `gen1-data report`: an HTML page about a frozen set, to look at before weeks of training are spent on it.

The page is self-contained: pictures and charts are in it, and it runs no script. The same set gives the same page.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from data_tools.failures import FAILURES, Failure, read_failures
from data_tools.sets.report_charts import histogram
from data_tools.sets.report_sheet import SHEET_STYLE, contact_sheet
from data_tools.stats import DURATION_EDGES, MEMBER_KINDS, MOTION_EDGES, Stats
from gen1_train.data.manifest import MANIFEST, Manifest
from gen1_train.data.schedule import common_clips
from gen1_train.data.shards import ShardSet
from gen1_train.diffusion.planes import JOIN
from gen1_train.errors import UserError
from gen1_train.html import (
    NOTHING,
    Child,
    Html,
    Number,
    bar,
    duration,
    element,
    join,
    note,
    number,
    page,
    percent,
    plural,
    section,
    shorten,
    size,
    table,
    tiles,
    warning,
)
from gen1_train.system.files import write_atomically

REPORT = "report.html"
MOST_SAMPLES = 200  # on the contact sheet
MOST_FAILURES = 50  # in the table

# The paper's training, as in conf/stage/*.yaml (a test compares them).
BATCH_CLIPS = 1152  # global batch of a video step; an image step has as many images as these clips have frames
PAPER_FRAMES = 8  # frames of a clip
STAGES = {"2": (15_000, 1.0), "3": (75_000, 0.125), "4": (25_000, 0.125), "5": (10_000, 0.125)}  # steps, image share

KINDS = {"video": "clip", "image": "image"}  # kind of a pool -> name of its samples

Ticks = list[tuple[float, str]]  # position in bins, label
DURATION_LABELS = {0.5: "0.5s", 2: "2s", 10: "10s", 30: "30s", 120: "2m", 600: "10m", 1800: "30m", 7200: "2h"}
DURATION_TICKS: Ticks = [(DURATION_EDGES.index(edge) + 1, label) for edge, label in DURATION_LABELS.items()]
MOTION_TICKS: Ticks = [(index + 1, f"{edge:g}") for index, edge in enumerate(MOTION_EDGES) if index % 2]
CLIPS_LABELS = ("0", "1", "2", "", "5–8", "", "17–32", "", "65–128", "", "257+")
CLIPS_TICKS: Ticks = [(index + 0.5, label) for index, label in enumerate(CLIPS_LABELS) if label]


def write_report(root: Path, samples: int = 24, seed: int = 0) -> Path:
    """Writes SET/report.html about the frozen set at `root` and returns its path.

    The contact sheet has `samples` samples from all pools, selected by `seed`. Raises UserError if there is no such set
    or the page cannot be written.
    """
    if not 0 <= samples <= MOST_SAMPLES:
        raise UserError(f"samples={samples} is not in 0..{MOST_SAMPLES}: the page must stay small")
    shards = ShardSet(root)
    name = root.resolve().name
    parts = sections(shards, name, contact_sheet(shards, samples, seed))
    content = page(f"{name} · gen1-data", *parts, style=SHEET_STYLE)
    path = root / REPORT
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); the set itself is whole: make room, run it again"
        ) from error
    return path


def sections(shards: ShardSet, name: str, sheet: Html) -> Iterator[Html]:
    """Yields the parts of the page in order. If the set lacks a file, the page says so and leaves its parts out."""
    root, manifest = shards.root, shards.manifest
    stats, failures = None, gather_failures(root)
    gap = None
    try:
        stats = Stats.load(root)
    except UserError as error:
        gap = warning(f"Lengths, motion, decoders and disk use are missing here: {error}.")
    yield header(root, name, manifest, stats)
    if gap:
        yield gap
    yield pools_section(manifest)
    yield epochs_section(manifest)
    yield sheet
    if stats and (made := stats.made_by_network(manifest.estimators)):
        yield note(f"{made}.")
    if stats and (empty := stats.empty_structure(manifest.estimators)):
        yield warning(f"{empty}.")
    if stats:
        yield source_section(stats)
    yield losses_section(stats or failures.counted)
    if stats:
        yield disk_section(manifest, stats)
    yield failures_section(failures)
    yield provenance_section(manifest)


def header(root: Path, name: str, manifest: Manifest, stats: Stats | None) -> Html:
    """Returns the name, the date of freezing, the hashes, and the most important numbers."""
    frozen = datetime.fromtimestamp((root / MANIFEST).stat().st_mtime, UTC)
    hashes = [join(f" · {of} ", element("code", whole[:12])) for of, whole in hashes_of(manifest).items()]
    facts: dict[str, str] = {f"{name}s": f"{samples_of(manifest, kind):,}" for kind, name in KINDS.items()}
    facts["on disk"] = size(sum(shard.bytes for pool in manifest.pools.values() for shard in pool.shards))
    if stats:
        facts["of video decoded"] = duration(stats.milliseconds / 1000)
        facts["of the samples have a caption"] = percent(stats.captioned, sum(stats.samples.values()))
    return join(
        element("h1", name),
        note(f"Frozen {frozen:%Y-%m-%d %H:%M} UTC", *hashes),
        tiles(facts),
    )


def hashes_of(manifest: Manifest) -> dict[str, str]:
    return {"manifest": manifest.hash, "plan": manifest.plan}


def samples_of(manifest: Manifest, kind: str) -> int:
    return sum(pool.samples for pool in manifest.pools.values() if pool.kind == kind)


def pools_section(manifest: Manifest) -> Html:
    rows: list[list[Child]] = []
    for name, pool in sorted(manifest.pools.items(), key=lambda item: (item[1].kind != "video", item[0])):
        taken = sum(shard.bytes for shard in pool.shards)
        each = size(taken // pool.samples) if pool.samples else NOTHING
        share = percent(pool.samples, samples_of(manifest, pool.kind))
        rows.append([name, pool.frames, pool.samples, share, len(pool.shards), size(taken), each])
    headings = ("pool", "frames", "samples", "of its kind", "shards", "size", "per sample")
    return section("Pools", table(headings, rows))


def epochs_section(manifest: Manifest) -> Html:
    """Returns how often each stage of the paper would read the set, and what gen1-train would refuse."""
    batches = batch_sizes(manifest)
    rows: list[list[Child]] = []
    total = dict.fromkeys(batches, 0)
    for stage, (steps, image_share) in STAGES.items():
        image_steps = round(steps * image_share)
        reads = {
            "video": clips_read(manifest, (steps - image_steps) * batches["video"]),
            "image": image_steps * batches["image"],
        }
        rows.append([f"stage {stage}", steps, *reading(manifest, reads)])
        total = {kind: total[kind] + reads[kind] for kind in total}
    rows.append(["all", sum(steps for steps, _ in STAGES.values()), *reading(manifest, total)])
    lengths = lengths_of(manifest)
    several = f" of {lengths[0]} frames, or as many frames of longer ones," if len(lengths) > 1 else ""
    explanation = (
        f"What the paper's training would read of this set: a global batch is {batches['video']:,} clips{several} or "
        f"{batches['image']:,} images; stage 2 has image steps only, and later stages have 12.5 % of them. An epoch "
        "reads every sample of a kind once."
    )
    lines = list(obstacles(manifest, batches))
    refused = warning(*(element("span", line) for line in lines)) if lines else None
    headings = ("", "steps", "clips read", "epochs of clips", "images read", "epochs of images")
    return section("Estimated epochs", note(explanation), table(headings, rows), refused)


def lengths_of(manifest: Manifest) -> list[int]:
    """Returns the lengths of a set's clips, the shortest first; without clips, the paper's."""
    return manifest.lengths or [PAPER_FRAMES]


def batch_sizes(manifest: Manifest) -> dict[str, int]:
    """Returns the samples in the paper's global batch of each kind, for clips as long as the shortest of the set."""
    return {"video": BATCH_CLIPS, "image": BATCH_CLIPS * lengths_of(manifest)[0]}


def clips_read(manifest: Manifest, clips: int) -> int:
    """Returns how many clips of all lengths have as many frames as a number of clips of the shortest length."""
    frames = sum(pool.samples * pool.frames for pool in manifest.pools.values() if pool.kind == "video")
    return clips * lengths_of(manifest)[0] * samples_of(manifest, "video") // frames if frames else clips


def reading(manifest: Manifest, reads: dict[str, int]) -> list[Child]:
    """Returns for each kind the number of samples that are read, and of epochs."""
    cells: list[Child] = []
    for kind, read in reads.items():
        available = samples_of(manifest, kind)
        cells += [read, number(read / available)] if read and available else [read or NOTHING, NOTHING]
    return cells


def obstacles(manifest: Manifest, batches: dict[str, int]) -> Iterator[str]:
    """Yields a line for everything that gen1-train would refuse at the paper's batch sizes."""
    lengths = lengths_of(manifest)
    step = common_clips(lengths)
    if BATCH_CLIPS % step:
        yield f"The clips have {' and '.join(map(str, lengths))} frames: data.batch_clips must be a multiple of {step}."
    for kind, batch in batches.items():
        if not samples_of(manifest, kind):
            yield f"The set has no {kind}s: gen1-train reads it only with data.image_ratio={int(kind == 'video')}."
            continue
        pools = {name: pool for name, pool in sorted(manifest.pools.items()) if pool.kind == kind}
        small = {name: pool for name, pool in pools.items() if pool.samples * pool.frames < BATCH_CLIPS * lengths[0]}
        if small:
            most = min(pool.samples * pool.frames for pool in small.values()) // lengths[0] // step * step
            remedy = f"data.batch_clips={most} or less, or more data" if most else "more data"
            listed = ", ".join(f"{name} ({pool.samples:,})" for name, pool in small.items())
            length = f" of {lengths[0]} frames" if kind == "video" and len(lengths) > 1 else ""
            whole = f"{batch:,} {KINDS[kind]}s{length}"
            yield f"Smaller than one global batch of {whole}: {listed}. gen1-train needs {remedy}."


def source_section(stats: Stats) -> Html:
    """Returns the numbers of files that were read, and histograms of them."""
    decoders = ", ".join(f"{name} {count:,}" for name, count in sorted(stats.decoders.items())) or "none"
    used = (
        f"{plural(stats.videos, 'video')} and {plural(stats.images, 'image')} were used. Clips by decoder: {decoders}."
    )
    motion = "mean luma difference between frames, 0–255"
    figures = (
        histogram("Videos by length", "length", stats.durations.counts, DURATION_TICKS),
        histogram("Clips by motion", motion, stats.motions.counts, MOTION_TICKS),
        histogram("Videos by number of clips", "clips", stats.clips_per_video.counts, CLIPS_TICKS),
    )
    return section("Source", element("p", used), element("div", *figures, class_="figures"))


class FailureSummary:
    """The content of failures.jsonl: the first failures, the counts of all, and the error that stopped the reading."""

    def __init__(self) -> None:
        self.first: list[Failure] = []
        self.counted = Stats()
        self.gap: str | None = None

    @property
    def failed(self) -> int:
        return sum(loss.count for loss in self.counted.failures.values())


def gather_failures(root: Path) -> FailureSummary:
    """Counts the failures and keeps the first ones; `gap` reports a missing or damaged list."""
    summary = FailureSummary()
    try:
        for failure in read_failures(root):
            summary.counted.add_failure(failure)
            if failure.failed and len(summary.first) < MOST_FAILURES:
                summary.first.append(failure)
    except FileNotFoundError:
        summary.gap = f"There is no {FAILURES} in this set."
    except (OSError, ValueError, TypeError) as error:
        summary.gap = f"{FAILURES} cannot be read to its end ({error})."
    return summary


def losses_section(stats: Stats) -> Html:
    """Returns what did not become a sample, by category."""
    losses = [
        (what, category, loss)
        for what, by_category in (("dropped", stats.drops), ("failed", stats.failures))
        for category, loss in sorted(by_category.items(), key=lambda item: (-item[1].count, item[0]))
    ]
    if not losses:
        return section("Dropped and failed", note("Nothing is listed as dropped or failed."))
    most = max(loss.count for _, _, loss in losses)
    rows: list[list[Child]] = [
        [
            join(shorten(category), bar(loss.count / most)),
            what,
            loss.count,
            time_of(loss.milliseconds),
            loss.transient or NOTHING,
        ]
        for what, category, loss in losses
    ]
    explanation = (
        "Dropped: read, but not wanted by the recipe. Failed: the file or its storage is faulty; what may pass "
        "is worth another try (retry=transient). A file counts once, and so does every span of a video."
    )
    headings = ("why", "", "files, spans", "video lost", "may pass")
    return section("Dropped and failed", note(explanation), table(headings, rows))


def time_of(milliseconds: int) -> Number:
    return duration(milliseconds / 1000) if milliseconds else NOTHING


def failures_section(failures: FailureSummary) -> Html:
    """Returns the first failures in a table."""
    rows: list[list[Child]] = [
        [element("span", shorten(failure.file), class_="path"), span_of(failure), reason_of(failure)]
        for failure in failures.first
    ]
    parts: list[Child] = [warning(failures.gap) if failures.gap else None]
    if rows:
        parts.append(element("div", table(("file", "span", "reason"), rows), class_="stack"))
    if failures.failed > len(rows):
        parts.append(note(f"And {failures.failed - len(rows):,} more: {FAILURES} in the set's folder lists them all."))
    elif not rows and not failures.gap:
        parts.append(note("Nothing failed."))
    return section("Failures", *parts)


def span_of(failure: Failure) -> Number:
    if failure.start is None or failure.end is None:
        return Number("whole file")
    return Number(f"{failure.start:.2f}–{failure.end:.2f} s")


def reason_of(failure: Failure) -> str:
    kept = f" ({plural(failure.clips, 'sample')} kept)" if failure.clips else ""
    return f"{shorten(failure.reason)}{kept}{' (may pass)' if failure.transient else ''}"


def disk_section(manifest: Manifest, stats: Stats) -> Html:
    """Returns the disk space that each kind of member takes."""
    whole = sum(shard.bytes for pool in manifest.pools.values() for shard in pool.shards)
    samples = sum(pool.samples for pool in manifest.pools.values())
    kinds = [*MEMBER_KINDS, *sorted(set(stats.bytes) - set(MEMBER_KINDS))]
    taken = {kind.replace("_", " "): stats.bytes[kind] for kind in kinds if stats.bytes[kind]}
    if (rest := whole - sum(taken.values())) > 0:
        taken["tar headers"] = rest
    most = max(taken.values(), default=1)
    rows: list[list[Child]] = [
        [join(name, bar(count / most)), size(count), percent(count, whole), size(count // max(1, samples))]
        for name, count in taken.items()
    ]
    return section("Disk use", table(("member", "size", "share", "per sample"), rows))


def provenance_section(manifest: Manifest) -> Html:
    """Returns the networks, versions and the recipe that made the set."""
    rows = [estimator_row(name, facts) for name, facts in manifest.estimators.items()]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items()))
    recipe = yaml.safe_dump(manifest.recipe, sort_keys=False, allow_unicode=True) if manifest.recipe else None
    return section(
        "Provenance",
        table(("estimator", "model", "fingerprint", "precision", ""), rows),
        element("p", f"Made with {versions}.") if versions else None,
        element("details", element("summary", "The recipe"), element("pre", recipe))
        if recipe
        else note("The manifest contains no recipe."),
    )


def estimator_row(name: str, facts: dict[str, Any]) -> list[Child]:
    """Returns a row about an estimator: its weights, its precision, and what a reader of the shards must know."""
    config = facts.get("config") or {}
    configs = config.values() if JOIN in str(facts.get("kind")) else (config,)  # of each plane of a structure
    model = " ".join(str(each[part]) for each in configs for part in ("path", "model", "pretrained") if each.get(part))
    title = f"{name} ({facts['kind']})" if "kind" in facts else name
    known = ("config", "fingerprint", "precision", "kind", "levels")
    others = ", ".join(f"{fact.replace('_', ' ')} {value}" for fact, value in facts.items() if fact not in known)
    if levels := facts.get("levels"):
        others += f", structure at t_s 0..{levels['highest']}"
    return [
        title,
        element("span", shorten(model) or "—", class_="path"),
        element("code", str(facts.get("fingerprint", "—"))[:12]),
        str(facts.get("precision", "—")),
        shorten(others),
    ]

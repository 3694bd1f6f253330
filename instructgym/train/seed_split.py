"""Which seeds are trained on and which are held out."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence

from instructgym.errors import ConfigError, SeedError
from instructgym.types import Seed

__all__ = ["split_seeds"]


def split_seeds(
    seeds: Sequence[Seed],
    holdout: float,
    rng_seed: int,
    *,
    by: str = "seed",
    holdout_topics: Sequence[str] = (),
) -> tuple[tuple[Seed, ...], tuple[Seed, ...]]:
    """``(train, held_out)``, both in the order of `seeds`; the same arguments give the same split everywhere.

    ``by="seed"`` holds out the share `holdout` (0 <= holdout < 1) of the seeds, of each topic about as much; neither
    side is empty unless `holdout` is 0 or there is but one seed. ``by="topic"`` holds out whole topics: those of
    `holdout_topics`, or where that is empty the share `holdout` of the topics. Seeds without a topic are then trained
    on. The choice is by a hash of (rng_seed, id), so it depends neither on the file's order nor on a library's
    generator.
    """
    if not 0 <= holdout < 1:
        raise ConfigError(f"holdout must be at least 0 and below 1, got {holdout}.")
    if by == "topic":
        topics = _held_topics(seeds, holdout, rng_seed, tuple(holdout_topics))
        held = {index for index, seed in enumerate(seeds) if seed.topic in topics}
    elif by != "seed":
        raise ConfigError(f"seeds are split by 'seed' or by 'topic', got {by!r}.")
    elif holdout_topics:
        raise ConfigError("holdout_topics goes with by='topic', got by='seed'. Leave one of the two out.")
    else:
        held = _held_indices(seeds, holdout, rng_seed)
    train = tuple(seed for index, seed in enumerate(seeds) if index not in held)
    return train, tuple(seed for index, seed in enumerate(seeds) if index in held)


def _rank(rng_seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{rng_seed}:{name}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _share(part: float, count: int) -> int:
    return 0 if part == 0 else max(1, min(round(part * count), count - 1))


def _held_topics(seeds: Sequence[Seed], holdout: float, rng_seed: int, wanted: tuple[str, ...]) -> set[str]:
    topics = sorted({seed.topic for seed in seeds if seed.topic})
    for topic in wanted:
        if topic not in topics:
            near = difflib.get_close_matches(topic, topics, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise SeedError(
                f"no seed has the topic {topic!r}; the topics are {', '.join(topics) or 'none at all'}.{hint}"
            )
    if wanted:
        if all(seed.topic in wanted for seed in seeds):
            raise SeedError(f"holding out {', '.join(wanted)} leaves no seed to train on. Name fewer topics.")
        return set(wanted)
    if holdout and len(topics) < 2:
        raise SeedError(
            f"cannot hold out whole topics: the seeds name {len(topics)}; expected at least 2. Split by seed instead."
        )
    return set(sorted(topics, key=lambda topic: _rank(rng_seed, topic))[: _share(holdout, len(topics))])


def _held_indices(seeds: Sequence[Seed], holdout: float, rng_seed: int) -> set[int]:
    total = _share(holdout, len(seeds)) if len(seeds) > 1 else 0
    members: dict[str, list[int]] = {}
    for index, seed in sorted(enumerate(seeds), key=lambda pair: _rank(rng_seed, pair[1].id)):
        members.setdefault(seed.topic, []).append(index)
    counts = _apportion({topic: len(members[topic]) for topic in sorted(members)}, total)
    return {index for topic, count in counts.items() for index in members[topic][:count]}


def _apportion(sizes: dict[str, int], total: int) -> dict[str, int]:
    """`total` places over the topics in proportion to their `sizes`.

    A topic keeps at least one seed in training, and has at least one held out if there are places enough for that.
    """
    everything = sum(sizes.values())
    splittable = [topic for topic, size in sizes.items() if size > 1]
    start = 1 if splittable and total >= len(splittable) else 0
    counts = {topic: start if topic in splittable else 0 for topic in sizes}
    for spare in (1, 0):  # first leave a seed of each topic in training; only then take topics' last seeds
        while sum(counts.values()) < total:
            open_topics = [topic for topic, size in sizes.items() if counts[topic] + spare < size]
            if not open_topics:
                break
            neediest = max(open_topics, key=lambda topic: total * sizes[topic] / everything - counts[topic])
            counts[neediest] += 1
    return counts

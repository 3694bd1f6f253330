"""How the simulated expert compares with facts of real ones: words added, leakage, failures, seed lengths and topics.

Chains start at the shipped seeds and choose uniformly among the operations; the environment's default rules decide
whether a rewrite takes its parent's place. What a reply is (a copy, a leak, ...) is told from its text, not from the
simulator's draws, and apart from those rules: so the table also shows what they catch.

    python benchmarks/simulator_calibration.py [--quick] [--json FILE]
    python benchmarks/simulator_calibration.py --docs docs/simulator.md     # refreshes the table there
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

import numpy as np
from _report import Report, parser

from instructgym.agents.base import row_rng
from instructgym.envs.action_sets import BUILTIN_ACTION_SETS
from instructgym.envs.elimination import EliminationRules
from instructgym.envs.operations import ActionSet
from instructgym.llm_backends.seeding import request_seed
from instructgym.llm_backends.simulated import SIMULATOR_VERSION, SimulatedBackend
from instructgym.llm_backends.simulated.expert import OPERATIONS, suits
from instructgym.llm_backends.simulated.reading import lexicon, read
from instructgym.metrics.faults import has_chatter, leaks_template, refuses
from instructgym.metrics.text import count_words, normalise
from instructgym.rewards.encoders.hashing import HashingEncoder
from instructgym.rewards.judging.equality import equality_messages, parse_equality
from instructgym.train.seed_files import read_seeds
from instructgym.types import Elimination, Instruction, Sampling, Seed, Transition

KINDS = ("copy", "leak", "refusal", "chatter", "overlong", "off_topic")
FAILURE_FLOOR, FAILURES_TOGETHER = 0.02, 0.10

# TeaMs-RL's released chains (arXiv 2403.08694): words change by -1.1 to +0.8 at breadth and +4 to +6 elsewhere, from
# 20.7 to 35.8 over a chain; 54 of 1,386 records hold "2048 words" of the prompt template.
REAL_BREADTH, REAL_DEPTH, SLACK_WORDS = (-1.1, 0.8), (4.0, 6.0), 1.0
REAL_START, REAL_END, GROWTH_SLACK = 20.7, 35.8, 3.0
REAL_LEAKS, REAL_RECORDS = 54, 1386

OVERLONG_WORDS = 200  # added to the parent's
PUBLIC_SEEDS = {
    "Alpaca": "alpaca_4000.jsonl",
    "Dolly": "dolly_1000.jsonl",
    "Self-Instruct": "self_instruct_seed_tasks.jsonl",
}
PUBLIC_FOLDER = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "seeds"
DOCS_BEGIN, DOCS_END = "<!-- calibration: begin -->", "<!-- calibration: end -->"

Policy = Callable[[np.random.Generator, int], int]


@dataclass
class Tally:
    """What the replies to one kind of chain were."""

    replies: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    caught: Counter[str] = field(default_factory=Counter)
    strays: Counter[bool] = field(default_factory=Counter)
    fits: Counter[tuple[str, bool]] = field(default_factory=Counter)
    outcomes: Counter[tuple[bool, str]] = field(default_factory=Counter)
    added: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    first_words: list[int] = field(default_factory=list)
    last_words: list[int] = field(default_factory=list)


async def walk(seeds: Sequence[Seed], action_set: ActionSet, policy: Policy, steps: int, chains: int) -> Tally:
    """Run `chains` chains of `steps` steps from each seed and tally the replies."""
    backend, sampling, tally = SimulatedBackend(), Sampling(), Tally()
    rules = EliminationRules(encoder=HashingEncoder(), changes_topic=action_set)
    for number, seed in enumerate(seeds):
        for chain in range(chains):
            here = seed.instruction
            draw = number * chains + chain
            for step in range(steps):
                operation = action_set.operations[policy(row_rng(0, draw, step), step)]
                messages = tuple(operation.messages(here, ()))
                reply = backend.answer(messages, sampling, request_seed(0, (draw, step))).text
                child = operation.parse(reply, here)
                tally.replies += 1
                kind = kind_of(here, reply, child)
                tally.kinds[kind] += 1
                rule = await rule_against(rules, operation.name, seed.instruction, here, child)
                tally.rules[rule] += 1
                tally.caught[kind] += rule != ""
                if kind == "off_topic" and not operation.changes_topic:
                    tally.strays[rule != ""] += 1
                fits = suits(OPERATIONS[operation.name], read(here.text, here.input))
                tally.fits[operation.name, fits] += 1
                tally.outcomes[fits, kind or verdict(backend, here, child)] += 1
                if rule == "" and isinstance(child, Instruction):
                    tally.added[operation.name].append(count_words(child.text) - count_words(here.text))
                    here = child
            tally.first_words.append(count_words(seed.instruction.text))
            tally.last_words.append(count_words(here.text))
    return tally


async def rule_against(
    rules: EliminationRules, operation: str, seed: Instruction, parent: Instruction, child: Instruction | Elimination
) -> str:
    """The rule that eliminates a rewrite, or nothing."""
    if isinstance(child, Elimination):
        return child.reason
    elimination = await rules.check(Transition(seed, parent, operation, child, step=0, horizon=1))
    return elimination.reason if elimination else ""


def verdict(backend: SimulatedBackend, parent: Instruction, child: Instruction | Elimination) -> str:
    """What the simulated reviewer, asked once, makes of a sound rewrite: ``gained`` or ``padded``."""
    assert isinstance(child, Instruction)
    greedy = Sampling(temperature=0.0)
    reply = backend.answer(tuple(equality_messages(parent, child)), greedy, request_seed(0, (0,))).text
    return "padded" if parse_equality(reply) else "gained"


def kind_of(parent: Instruction, reply: str, child: Instruction | Elimination) -> str:
    """Which failure a reply is, or nothing: what a reader sees in the text."""
    if isinstance(child, Elimination):
        return child.reason
    if normalise(reply) == normalise(parent.text):
        return "copy"
    if refuses(reply):
        return "refusal"
    # "Sure, here is the new instruction:" on a line of its own is talk; the same label before the text is template.
    if has_chatter(reply) and (reply.split("\n", 1)[0].rstrip().endswith(":") or not leaks_template(child.render())):
        return "chatter"
    if leaks_template(child.render()):
        return "leak"
    if count_words(child.text) - count_words(parent.text) > OVERLONG_WORDS:
        return "overlong"
    # A depth rewrite carries its parent; a new instruction is about a rare subject of some topic.
    if not child.text.startswith(parent.text.rstrip()) and _subject_topics(child.text).isdisjoint(
        {read(parent.text, parent.input).topic.name}
    ):
        return "off_topic"
    return ""


def _subject_topics(text: str) -> set[str]:
    return {name for name, topic in lexicon().items() if any(subject in text for subject in topic.rare)}


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% score interval of a rate (Wilson 1927)."""
    rate = hits / n
    centre = rate + z * z / (2 * n)
    half = z * (rate * (1 - rate) / n + z * z / (4 * n * n)) ** 0.5
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def words_rows(report: Report, tally: Tally) -> None:
    for name in BUILTIN_ACTION_SETS["evol_instruct"].names:
        low, high = REAL_BREADTH if name == "breadth" else REAL_DEPTH
        mean = fmean(tally.added[name])
        target = f"real chains {low:+g} to {high:+g}, within {SLACK_WORDS:g}"
        holds = low - SLACK_WORDS <= mean <= high + SLACK_WORDS
        report.row(f"words added by {name}", mean, "words, mean of accepted", target, holds)


def chain_rows(report: Report, tally: Tally) -> None:
    start, end = fmean(tally.first_words), fmean(tally.last_words)
    real = REAL_END - REAL_START
    report.row("seed words, start of the six-step chains", start, "words, mean")
    report.row("words after six steps (1 and 4 breadth)", end, "words, mean")
    report.row(
        "growth over six steps (1 and 4 breadth)",
        end - start,
        "words, mean",
        f"real chains {real:+.1f}, within {GROWTH_SLACK:g}",
        abs(end - start - real) <= GROWTH_SLACK,
    )


def failure_rows(report: Report, tally: Tally) -> None:
    low, high = wilson(REAL_LEAKS, REAL_RECORDS)
    leaks = tally.kinds["leak"] / tally.replies
    report.row(
        "leak rate against real chains",
        100 * leaks,
        "% of replies",
        f"{100 * REAL_LEAKS / REAL_RECORDS:.1f}% ({100 * low:.1f} to {100 * high:.1f})",
        low <= leaks <= high,
    )
    for kind in KINDS:
        rate = tally.kinds[kind] / tally.replies
        report.row(f"failures: {kind}", 100 * rate, "% of replies", ">= 2%", rate >= FAILURE_FLOOR)
    together = sum(tally.kinds[kind] for kind in KINDS) / tally.replies
    report.row("failures together", 100 * together, "% of replies", ">= 10%", together >= FAILURES_TOGETHER)


def fit_rows(report: Report, tally: Tally) -> None:
    for name in BUILTIN_ACTION_SETS["evol_instruct"].names:
        total = tally.fits[name, True] + tally.fits[name, False]
        report.row(f"the text suits {name}", 100 * tally.fits[name, True] / total, "% of its uses")
    for fits, where in ((True, "suited"), (False, "not suited")):
        total = sum(count for (fit, _), count in tally.outcomes.items() if fit == fits)
        parts = {outcome: count / total for (fit, outcome), count in tally.outcomes.items() if fit == fits}
        report.row(f"outcomes where {where}", _ranked(parts, 9, digits=1), "% of replies")


def rule_rows(report: Report, tally: Tally) -> None:
    eliminated = tally.replies - tally.rules[""]
    report.row("eliminated by the default rules", 100 * eliminated / tally.replies, "% of replies")
    by_rule = {rule: count / tally.replies for rule, count in tally.rules.items() if rule}
    report.row("eliminated, by rule", _ranked(by_rule, 9, digits=1), "% of replies")
    failures = sum(tally.kinds[kind] for kind in KINDS)
    caught = sum(tally.caught[kind] for kind in KINDS)
    report.row("failures that the rules catch", 100 * caught / failures, "% of failures")
    for kind in KINDS:
        report.row(f"caught: {kind}", 100 * tally.caught[kind] / max(1, tally.kinds[kind]), "% of its failures")
    report.row("caught: off_topic, breadth aside", 100 * tally.strays[True] / max(1, tally.strays.total()),
               "% of its failures")  # fmt: skip
    sound = tally.kinds[""]
    report.row("sound rewrites that the rules reject", 100 * tally.caught[""] / sound, "% of sound ones")


def shares(names: Iterable[str]) -> dict[str, float]:
    counts = Counter(names)
    return {name: count / counts.total() for name, count in counts.items()}


def overlap(a: dict[str, float], b: dict[str, float]) -> float:
    """The shared mass of two distributions: 1 - their total variation distance."""
    return sum(min(a.get(name, 0.0), b.get(name, 0.0)) for name in a.keys() | b.keys())


def seed_rows(report: Report, shipped: Sequence[Seed], folder: Path, limit: int | None) -> None:
    labelled = [seed for seed in shipped if seed.topic]
    right = sum(read(s.instruction.text, s.instruction.input).topic.name == s.topic for s in labelled)
    report.row("shipped seeds: topic read as labelled", 100 * right / len(labelled), "% of seeds")
    ours = describe(report, "shipped", shipped)
    for name, file in PUBLIC_SEEDS.items():
        if not (folder / file).is_file():
            report.skip(f"seeds of {name}", f"no {file} in {folder.name}/ (give --public FOLDER)")
            continue
        theirs = describe(report, name, read_seeds(folder / file, limit=limit, skip_bad=True).seeds)
        report.row(f"{name} and shipped: topics in common", 100 * overlap(ours[0], theirs[0]), "% of mass")
        report.row(f"{name} and shipped: forms in common", 100 * overlap(ours[1], theirs[1]), "% of mass")


def describe(report: Report, name: str, seeds: Sequence[Seed]) -> tuple[dict[str, float], dict[str, float]]:
    """Rows for a seed set; returns its shares of topics and of forms, as the simulator reads them."""
    counts = [count_words(seed.instruction.text) for seed in seeds]
    readings = [read(seed.instruction.text, seed.instruction.input) for seed in seeds]
    topics, forms = shares(r.topic.name for r in readings), shares(r.form for r in readings)
    low, high = np.percentile(counts, (10, 90))
    report.row(f"{name}: instructions", len(seeds), "seeds")
    report.row(f"{name}: words", f"{median(counts):g} ({low:.0f} to {high:.0f})", "median (10% to 90%)")
    report.row(f"{name}: with input", 100 * fmean(r.has_input for r in readings), "% of seeds")
    report.row(f"{name}: topics", _ranked(topics, 5), "% of seeds")
    report.row(f"{name}: forms", _ranked(forms, 5), "% of seeds")
    return topics, forms


def _ranked(parts: dict[str, float], count: int, digits: int = 0) -> str:
    ranked = sorted(parts.items(), key=lambda item: (-item[1], item[0]))[:count]
    return ", ".join(f"{name} {100 * share:.{digits}f}" for name, share in ranked)


def refresh(page: Path, report: Report) -> None:
    """Put the rows as a Markdown table between the two marks of `page`."""
    facts = report.rows[0]["value"]
    kept = ("form", "simulator", "chains a seed", "python", "numpy")
    judged = [row["holds"] for row in report.rows if row["holds"] is not None]
    lines = [f"{'; '.join(f'{key} {facts[key]}' for key in kept)}. {sum(judged)} of {len(judged)} targets hold.", ""]
    lines += ["| case | value | unit | target | holds |", "|---|---|---|---|---|"]
    for row in report.rows[1:]:
        value = f"{row['value']:.3g}" if isinstance(row["value"], float) else row["value"]
        holds = {True: "yes", False: "no", None: ""}[row["holds"]]
        cells = (row["case"], "" if value is None else value, row["unit"], row["target"] or "", holds)
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    text = page.read_text(encoding="utf-8")
    head, begin, rest = text.partition(DOCS_BEGIN)
    _, end, tail = rest.partition(DOCS_END)
    if not begin or not end:
        raise SystemExit(f"{page}: no marks {DOCS_BEGIN} and {DOCS_END}; put them where the table belongs.")
    table = "\n".join(lines)
    page.write_text(f"{head}{begin}\n{table}\n{end}{tail}", encoding="utf-8")


def main() -> int:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--public", type=Path, default=PUBLIC_FOLDER, metavar="FOLDER", help="public seed files")
    options.add_argument("--docs", type=Path, metavar="FILE", help="also refresh the table between the marks of FILE")
    given = options.parse_args()
    chains = 5 if given.quick else 25
    report = Report("simulator_calibration", given.quick, {"simulator": SIMULATOR_VERSION, "chains a seed": chains})
    shipped = read_seeds("default").seeds

    evol, teams = BUILTIN_ACTION_SETS["evol_instruct"], BUILTIN_ACTION_SETS["teams_rl"]
    uniform = asyncio.run(walk(shipped, evol, lambda rng, step: int(rng.integers(len(evol))), 4, chains))
    report.row("replies under uniform random choice", uniform.replies, "replies")
    words_rows(report, uniform)
    depth = [index for index, name in enumerate(teams.names) if name != "breadth"]
    breadth = teams.index("breadth")

    def as_released(rng: np.random.Generator, step: int) -> int:
        """TeaMs-RL's released code forces breadth at its steps 1 and 4, and nowhere else."""
        return breadth if step in (0, 3) else depth[int(rng.integers(len(depth)))]

    forced = asyncio.run(walk(shipped, teams, as_released, 6, chains))
    chain_rows(report, forced)
    failure_rows(report, uniform)
    fit_rows(report, uniform)
    rule_rows(report, uniform)
    seed_rows(report, shipped, given.public, 500 if given.quick else None)
    report.finish(given.json)
    if given.docs:
        refresh(given.docs, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())

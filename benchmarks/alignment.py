"""What the pipelines do to a tiny model in the testbed: a world of checkable tasks, offline, on a CPU.

Parts: ``pipelines`` (accuracy of M0, M1, M2, M3 on held-out tasks, by pipeline and seed), ``gate`` (self-reward whose
judge examples are right, and whose are at chance), ``nll`` (the likelihood of chosen answers under DPO without and
with the likelihood term), ``reliability`` (final accuracy by the judge's reliability), ``samples`` (by N), ``length``
(length control). Every model of a seed starts from the same M0.

    python benchmarks/alignment.py [--quick] [--only PART,...] [--seeds N] [--json FILE] [--figure FOLDER]
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import Report, parser
from scipy.stats import t as student_t

from instructgym.train.alignment.align import AlignmentResult, align
from instructgym.train.alignment.config import load_alignment
from instructgym.train.testbed.model import BaseModelSettings, build_base_model

PARTS = ("pipelines", "gate", "nll", "reliability", "samples", "length")
QUICK = ("testbed.held_out=80", "prompts.count=96")


class Bench:
    """Runs alignments in a folder; an equal one is not run twice, and the time of the first is kept."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self.folder, self.quick = folder, quick
        self.seconds: dict[str, float] = {}

    def base(self, seed: int) -> Path:
        name = f"M0-{seed}"
        settings = BaseModelSettings(steps=60) if self.quick else BaseModelSettings()
        with self.timed(name):
            if not (self.folder / name).is_dir():
                build_base_model(self.folder / name, rng_seed=seed, settings=settings)
        return self.folder / name

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """CPU seconds of what ran here first, in this process or in an earlier one."""
        kept = self.folder / f"{name}.seconds"
        started = time.process_time()
        yield
        if not kept.is_file():
            kept.write_text(str(time.process_time() - started), "utf-8")
        self.seconds[name] = float(kept.read_text("utf-8"))

    def run(self, pipeline: str, seed: int, *overrides: str, rounds: int = 1) -> AlignmentResult:
        name = "-".join([pipeline, str(seed), str(rounds), *overrides]).replace("/", "_").replace(" ", "")[:200]
        config = load_alignment(
            "testbed",
            [
                f"run.seed={seed}",
                f"rounds.pipeline={pipeline}",
                f"rounds.count={rounds}",
                f"testbed.base_model={json.dumps(str(self.base(seed)))}",
                *(QUICK if self.quick else ()),
                *overrides,
            ],
        )
        with self.timed(name):
            return align(config, self.folder / name)


def accuracies(result: AlignmentResult) -> dict[str, float]:
    return {row["model"]: row["check"]["accuracy"] for row in result.summary["models"] if "check" in row}


def bounds(values: Sequence[float]) -> str:
    """Mean and its 95% interval over seeds (Student's t)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.3f}"
    half = float(student_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


def rise(values: Sequence[float], before: Sequence[float]) -> tuple[float, str, bool | None]:
    """(mean rise, its interval over seeds in words, whether it lies above 0)."""
    gains = np.subtract(values, before)
    if len(gains) < 2:
        return float(gains.mean()), "", None
    half = float(student_t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains)))
    return float(gains.mean()), f"[{gains.mean() - half:+.3f}, {gains.mean() + half:+.3f}]", bool(gains.mean() > half)


def pipelines(report: Report, bench: Bench, seeds: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rounds = {"teacher_reward": 2, "teacher_demo": 2, "self_reward": 2, "spin": 1, "oracle_reward": 1}
    for pipeline, count in rounds.items():
        runs = [bench.run(pipeline, seed, rounds=count) for seed in seeds]
        by_model = [accuracies(run) for run in runs]
        found[pipeline] = by_model
        halted = [run.halted for run in runs if run.halted]
        if halted:
            report.row(f"{pipeline}: runs that were halted; {halted[0][:100]}", len(halted), "runs")
        for model in ("M0", "M1", "M2", "M3"):
            values = [each[model] for each in by_model if model in each]
            if values:
                report.row(f"{pipeline}: {model} right on held-out tasks, {bounds(values)}", float(np.mean(values)), "")
        for after, before in (("M1", "M0"), ("M2", "M1"), ("M3", "M2")):
            both = [each for each in by_model if after in each and before in each]
            if not both:
                continue
            mean, words, above = rise([each[after] for each in both], [each[before] for each in both])
            wanted = (after, pipeline) in {
                (model, name) for model in ("M1", "M2") for name in ("teacher_reward", "teacher_demo")
            }
            case = f"{pipeline}: {after} over {before} {words}"
            if wanted and above is not None:
                report.row(case, mean, "", "> 0, its interval too", above)
            else:
                report.row(case, mean, "")
    return found


def gate(report: Report, bench: Bench, seeds: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, accuracy in (("valid", 1.0), ("at chance", 0.5)):
        runs = [bench.run("self_reward", seed, f"testbed.eft_accuracy={accuracy}") for seed in seeds]
        gates = [row["gate"] for run in runs for row in run.summary["models"] if "gate" in row]
        agreement = [each["agreement"] for each in gates if each["agreement"] is not None]
        halted = sum(bool(run.halted) for run in runs)
        wanted = 0 if name == "valid" else len(runs)
        case = f"self-reward, judge examples {name}"
        report.row(f"{case}: halted by the gate", halted, f"of {len(runs)}", str(wanted), halted == wanted)
        report.row(f"{case}: agreement with the anchors", float(np.mean(agreement)) if agreement else None, "")
        rows = [accuracies(run) for run in runs]
        if name == "valid" and all("M2" in row for row in rows):
            mean, words, _ = rise([row["M2"] for row in rows], [row["M1"] for row in rows])
            every = all(row["M2"] > row["M1"] for row in rows)
            report.row(f"{case}: M2 over M1 {words}", mean, "", "> 0 in every seed", every)
        found[name] = {"halted": halted, "agreement": agreement, "accuracies": rows}
    return found


def nll(report: Report, bench: Bench, seeds: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, losses in (("DPO", "{sigmoid = 1.0}"), ("DPO + likelihood", "{sigmoid = 1.0, sft = 1.0}")):
        curves: dict[str, list[list[float]]] = {"chosen": [], "rejected": []}
        right = []
        for seed in seeds:
            run = bench.run("teacher_reward", seed, f"dpo.losses={losses}")
            right.append(accuracies(run)["M2"])
            log = [json.loads(line) for line in (run.out / "M2/log.jsonl").read_text("utf-8").splitlines()]
            for side, lines in curves.items():
                lines.append([row[f"logps/{side}"] for row in log if f"logps/{side}" in row])
        for side, lines in curves.items():
            change = [float(np.mean(line[-3:])) - line[0] for line in lines]
            report.row(
                f"{name}: log-probability of {side} answers, end minus beginning", float(np.mean(change)), "nats"
            )
        report.row(f"{name}: M2 right on held-out tasks", float(np.mean(right)), "")
        found[name] = {**curves, "right": right}
    return found


def curve(
    report: Report, bench: Bench, seeds: Sequence[int], key: str, values: Sequence[Any], title: str, *more: str
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for value in values:
        runs = [bench.run("teacher_reward", seed, f"{key}={value}", *more) for seed in seeds]
        rows = [accuracies(run) for run in runs]
        right = [row["M2"] for row in rows if "M2" in row]
        found[str(value)] = right
        gains, words, _ = rise(right, [row["M1"] for row in rows if "M2" in row])
        report.row(f"{title} {value}: M2 {bounds(right)}, over M1 {words}", gains, "")
    return found


def figure(found: Mapping[str, Any], folder: Path) -> None:
    """Accuracy by model and pipeline, by the judge's reliability and by N; the likelihood of answers under DPO."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = {"pipelines": _pipelines, "reliability": _reliability, "samples": _samples, "nll": _likelihood}
    names = [name for name in panels if name in found]
    if not names:
        return
    folder.mkdir(parents=True, exist_ok=True)
    drawn, axes = plt.subplots(1, len(names), figsize=(4.6 * len(names), 4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        panels[name](axis, found[name])
        axis.grid(alpha=0.3)
    drawn.suptitle("TESTBED: small checkable tasks, a tiny model", fontsize=10)
    drawn.tight_layout()
    for suffix in ("png", "svg"):
        drawn.savefig(folder / f"alignment.{suffix}", dpi=120)
    plt.close(drawn)


def _pipelines(axis: Any, found: Mapping[str, Any]) -> None:
    for pipeline, by_model in found.items():
        models = sorted({model for each in by_model for model in each})
        means = [np.mean([each[model] for each in by_model if model in each]) for model in models]
        axis.plot(models, means, marker="o", label=pipeline)
    axis.set_title("right on held-out tasks, by pipeline", fontsize=10)
    axis.set_ylim(0, 1)
    axis.legend(fontsize=8)


def _reliability(axis: Any, found: Mapping[str, Sequence[float]]) -> None:
    _by_number(axis, found)
    axis.set_xlabel("reliability of the judge")
    axis.set_title("M2 of teacher_reward, by judge", fontsize=10)


def _samples(axis: Any, found: Mapping[str, Sequence[float]]) -> None:
    _by_number(axis, found)
    axis.set_xticks([float(number) for number in found])
    axis.set_xlabel("answers a prompt")
    axis.set_title("M2 of teacher_reward, by N", fontsize=10)


def _by_number(axis: Any, found: Mapping[str, Sequence[float]]) -> None:
    numbers = [float(number) for number in found]
    axis.plot(numbers, [np.mean(right) for right in found.values()], marker="o")
    for number, right in zip(numbers, found.values(), strict=True):
        axis.plot([number] * len(right), right, ".", color="grey")
    axis.set_ylim(0.4, 1)


def _likelihood(axis: Any, found: Mapping[str, Any]) -> None:
    for name, colour in zip(found, ("tab:red", "tab:blue"), strict=True):
        for side, style in (("chosen", "-"), ("rejected", ":")):
            lines = found[name][side]
            shortest = min(map(len, lines))
            mean = np.mean([line[:shortest] for line in lines], axis=0)
            axis.plot(10 * np.arange(1, shortest + 1), mean, style, color=colour, label=f"{name}, {side}")
    axis.set_xlabel("step")
    axis.set_title("log-probability of answers in DPO", fontsize=10)
    axis.legend(fontsize=8)


def main() -> None:
    options = parser("What the pipelines do to a tiny model in the testbed.")
    options.add_argument("--only", default="", help=f"parts, between commas: {', '.join(PARTS)}")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--folder", type=Path, help="keep the runs there; else they are thrown away")
    options.add_argument("--figure", type=Path, help="a folder for the figures")
    given = options.parse_args()
    parts = [part.strip() for part in given.only.split(",") if part.strip()] or list(PARTS)
    if strangers := sorted(set(parts) - set(PARTS)):
        options.error(f"--only names {', '.join(strangers)}; expected some of {', '.join(PARTS)}")
    torch.set_num_threads(1)
    seeds = range(1 if given.quick else given.seeds)
    report = Report("alignment", quick=given.quick)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder, given.quick)
        if "pipelines" in parts:
            found["pipelines"] = pipelines(report, bench, seeds)
        if "gate" in parts:
            found["gate"] = gate(report, bench, seeds)
        if "nll" in parts:
            found["nll"] = nll(report, bench, seeds)
        if "reliability" in parts:
            rates = (0.5, 0.75, 1.0) if given.quick else (0.5, 0.6, 0.7, 0.85, 1.0)
            key, off = "testbed.judge_reliability", "gate.enabled=false"
            found["reliability"] = curve(report, bench, seeds, key, rates, "judge reliability", off)
        if "samples" in parts:
            found["samples"] = curve(report, bench, seeds, "candidates.count", (2, 4, 8), "N =")
        if "length" in parts:
            found["length"] = curve(report, bench, seeds, "pairs.length_control", (0.0, 0.3), "length control rho =")
        (bench.folder / "found.json").write_text(json.dumps({"runs": found, "seconds": bench.seconds}), "utf-8")
        longest = max(bench.seconds.items(), key=lambda item: item[1])
        report.row(f"longest run, process time ({longest[0][:60]})", longest[1], "s", "<= 900", longest[1] <= 900)
    report.finish(given.json)
    if given.figure:
        figure(found, given.figure)


if __name__ == "__main__":
    main()

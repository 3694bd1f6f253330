"""The main job: train an instructor, evolve the seeds with it, ask for answers, filter, export."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructgym.errors import BudgetExhausted, ConfigError, PermanentError, RunFolderError, UserError
from instructgym.train.config import INSTRUCTOR, ROLES, Config, flatten
from instructgym.train.config_faults import nearest
from instructgym.train.config_text import to_toml
from instructgym.train.continuation import check_continues, clear, publish, settle
from instructgym.train.evolve import PARTIAL_LINEAGE
from instructgym.train.policies import check_policy_name, policy_digest, policy_names
from instructgym.train.progress import Progress, Silent
from instructgym.train.respond import PARTIAL_ANSWERS
from instructgym.train.run_folder import Manifest, RunFolder, canonical_json, is_full_disk
from instructgym.train.runtime import Runtime
from instructgym.train.seed_files import SeedFile, read_seeds, split_seeds
from instructgym.train.stage import SeedSplit, StageContext, StageOutput
from instructgym.train.traffic import Traffic, TrafficNotes
from instructgym.train.transports import instructor_models

if TYPE_CHECKING:
    from instructgym.train.estimate import Estimate

__all__ = ["ALL", "RunResult", "StageReport", "dry_run", "run", "seeds_of", "storage_words"]

ALL = ("train", "evaluate", "evolve", "respond", "filter", "export")
LEDGER = "ledger.sqlite"
REJECTED_SEEDS = "rejected_seeds.jsonl"

_ALWAYS = ("run", "seeds", "llm", "env", "reward")
_LOST_ITEMS = 4


@dataclass(frozen=True)
class StageReport:
    """How a stage ended. `skipped`: it was finished before, with the same inputs."""

    stage: str
    skipped: bool
    lost: int = 0


@dataclass(frozen=True)
class RunResult:
    """What a run left. `exit_code` is 0, or 4 if items were lost to calls that failed for good.

    `traffic` is what this process asked, a row a stage and role.
    """

    out: Path
    stages: tuple[StageReport, ...]
    summary: Mapping[str, Any] = field(default_factory=dict)
    traffic: tuple[Traffic, ...] = ()

    @property
    def lost(self) -> int:
        return sum(report.lost for report in self.stages)

    @property
    def exit_code(self) -> int:
        return _LOST_ITEMS if self.lost else 0

    @property
    def files(self) -> tuple[Path, ...]:
        """What is there for the user to look at."""
        names = ("dataset", "summary.json", "report.html", "lineage.jsonl", "agent", LEDGER)
        return tuple(self.out / name for name in names if (self.out / name).exists())


def run(
    config: Config,
    out: Path | str,
    *,
    stages: Sequence[str] = ALL,
    progress: Progress | None = None,
    retry_failed: bool = False,
    continue_training: bool = False,
) -> RunResult:
    """Run `stages` of a config in the folder `out`; what is finished there with the same inputs is skipped.

    The same call goes on where an earlier one stopped, whatever stopped it, and pays for no call twice.

    Args:
        config: from `load_config`, or built in code.
        out: the run's folder; created where needed.
        stages: some of `ALL`; they run in the order of `ALL`. A stage whose inputs are not there is refused.
        progress: told of the run's course.
        retry_failed: ask again what failed for good before; stages that lost items run again.
        continue_training: the agent that is trained there learns `train.steps` (or `train.calls`) more. Stages that
            were made with it are undone, for it is another agent now.

    Raises:
        ConfigError, ActionSetError, SeedError: the user's input.
        RunFolderError: the folder is in use, holds another run, or cannot be written.
        BudgetExhausted: the budget is spent; all that was paid for is kept.
        BackendError: nobody answers, the key is refused, or there is no such model.
    """
    wanted = _in_order(stages)
    if continue_training:
        check_continues(config, wanted, Path(out))
    runtime = Runtime(config)
    watcher = Silent() if progress is None else TrafficNotes(progress, lambda: runtime.traffic)
    try:
        _check_names(runtime)
        found = _read_seeds(config)
        watcher.say(f"seeds: {config.seeds.path} ({found.describe()})")
        watcher.say(f"encoder: {runtime.encoder.name}")
        with RunFolder.hold(Path(out)) as folder, storage_words(folder.path):
            folder.claim(_identity(config, runtime, found), _sections(config), to_toml(config))
            if found.rejected:
                folder.write_lines(REJECTED_SEEDS, [canonical_json(_rejected_row(item)) for item in found.rejected])
            context = StageContext(config, folder, _split(found, config), runtime, watcher)
            # A continuation that was whole when it was cut off is the one that the same command asks for.
            continue_training = settle(folder) is None and continue_training
            reports = _run_stages(wanted, context, retry_failed, continue_training)
            summary = _conclude(context)
            clear(folder)
            rows = () if runtime.traffic is None else runtime.traffic.rows()
            traffic = tuple(sorted(rows, key=lambda row: (ALL.index(row.stage), row.role)))
            return RunResult(folder.path, tuple(reports), summary, traffic)
    finally:
        runtime.close()


def dry_run(config: Config, *, stages: Sequence[str] = ALL) -> Estimate:
    """What `run` would ask of each model with the same arguments, before the first call; writes nothing.

    Raises `ConfigError`, `ActionSetError` and `SeedError` as `run` does.
    """
    from instructgym.train.estimate import estimate

    wanted = _in_order(stages)
    _check_names(Runtime(config))
    return estimate(config, seeds_of(config), wanted)


def seeds_of(config: Config) -> SeedSplit:
    """The config's seeds, and which of them are held out. Raises `SeedError`."""
    return _split(_read_seeds(config), config)


def needs(stage: str, config: Config) -> tuple[str, ...]:
    """The stages whose files a stage reads."""
    trained = {"evaluate": "trained" in config.evaluate.policies, "evolve": config.evolve.policy == "trained"}
    if stage in trained:
        return ("train",) if trained[stage] else ()
    return {"respond": ("evolve",), "filter": ("respond",), "export": ("filter",)}.get(stage, ())


def _dependents(stage: str, config: Config) -> list[str]:
    """The stages that read what `stage` wrote, or what was made of it."""
    found: list[str] = []
    for name in ALL:
        if any(upstream == stage or upstream in found for upstream in needs(name, config)):
            found.append(name)
    return found


def _check_names(runtime: Runtime) -> None:
    config = runtime.config
    runtime.check_names()
    for name in policy_names((*config.evaluate.policies, config.evolve.policy), runtime.action_set):
        check_policy_name(name, runtime.action_set, config.env.horizon)


def _sections(config: Config) -> dict[str, tuple[str, ...]]:
    """The config sections that decide a stage's result: its own, and those of the stages that it builds on."""
    own = {"train": ("agent", "train"), "evaluate": ("evaluate", "agents"), "evolve": ("evolve", "agents")}
    sections: dict[str, tuple[str, ...]] = {}
    for stage in ALL:
        inherited = [name for upstream in needs(stage, config) for name in sections[upstream]]
        sections[stage] = tuple(dict.fromkeys((*_ALWAYS, *inherited, *own.get(stage, (stage,)))))
    return sections


def _in_order(stages: Sequence[str]) -> list[str]:
    for stage in stages:
        if stage not in ALL:
            raise ConfigError(f"unknown stage '{stage}'{nearest(stage, ALL) or '.'} There are {', '.join(ALL)}.")
    return [stage for stage in ALL if stage in stages]


def _read_seeds(config: Config) -> SeedFile:
    seeds = config.seeds
    return read_seeds(
        seeds.path,
        format=seeds.format,
        instruction_field=seeds.instruction_field,
        skip_bad=seeds.skip_bad,
        limit=seeds.limit,
    )


def _split(found: SeedFile, config: Config) -> SeedSplit:
    train, held_out = split_seeds(found.seeds, config.seeds.holdout, config.run.seed)
    return SeedSplit(found.seeds, train, held_out, found.format)


def _rejected_row(item: Any) -> dict[str, Any]:
    return {"line": item.line, "reason": item.reason, "text": item.text}


def _identity(config: Config, runtime: Runtime, found: SeedFile) -> dict[str, Any]:
    """Every value that decides the result: the config's, and the contents of what it names."""
    digest = hashlib.sha256()
    for seed in found.seeds:
        text = "\x1f".join((seed.id, seed.instruction.text, seed.instruction.input, seed.topic))
        digest.update(f"{text}\x1e".encode("utf-8", "surrogatepass"))
    return {
        **flatten(config),
        "llm.expert (model)": runtime.model_name("expert"),
        "llm.reviewer (model)": runtime.model_name("reviewer"),
        "seeds.path (content)": digest.hexdigest()[:16],
        "env.action_set (content)": runtime.action_set.hash,
        "env.encoder (chosen)": runtime.encoder.name,
        "evolve.policy (content)": policy_digest(config.evolve.policy),
        "evaluate.policies (content)": ",".join(filter(None, map(policy_digest, config.evaluate.policies))) or None,
        "agent.name (content)": policy_digest(config.agent.name) or None,
        "train.logs (content)": _logs(config),
    }


def _logs(config: Config) -> str | None:
    """The contents of the logs that are learned from. Raises `RunFolderError` for what is no run's folder."""
    if not config.train.logs:
        return None
    from instructgym.train.offline import logs_digest

    return hashlib.sha256(canonical_json(logs_digest(config.train.logs)).encode()).hexdigest()[:16]


def _run_stages(
    wanted: Sequence[str], context: StageContext, retry_failed: bool, continue_training: bool
) -> list[StageReport]:
    manifests: dict[str, Manifest] = {}
    reports: list[StageReport] = []
    for stage in ALL:
        if stage not in wanted:
            manifest = context.folder.manifest(stage)
            if manifest is not None:
                manifests[stage] = manifest
            continue
        upstream = [_finished(name, stage, manifests, context) for name in needs(stage, context.config)]
        key = context.folder.key(stage, upstream)
        manifest = context.folder.manifest(stage)
        lost = 0 if manifest is None else int(manifest.result.get("lost", 0))
        skipped = manifest is not None and manifest.key == key and not (retry_failed and lost)
        trained = None
        if stage == "train" and continue_training:
            trained, skipped = _to_continue(manifest if skipped else None, context.folder), False
        if manifest is None or not skipped:
            try:
                manifest = _run_stage(stage, key, replace(_with(context, manifests), trained=trained), retry_failed)
            except BudgetExhausted:
                context.progress.say(_what_remains(stage, wanted, context.folder))
                raise
            lost = int(manifest.result.get("lost", 0))
        else:
            context.progress.finished(stage, skipped=True, note=f"{lost} lost" if lost else "")
        manifests[stage] = manifest
        reports.append(StageReport(stage, skipped, lost))
    return reports


def _to_continue(manifest: Manifest | None, folder: RunFolder) -> Manifest:
    if manifest is None:
        raise RunFolderError(
            f"training in '{folder.path}' has not come to its end, or its files were changed since. Run the same "
            "command without --continue first."
        )
    return manifest


def _what_remains(stage: str, wanted: Sequence[str], folder: RunFolder) -> str:
    partial = folder.path / {"evolve": PARTIAL_LINEAGE, "respond": PARTIAL_ANSWERS}.get(stage, LEDGER)
    rest = ", ".join(wanted[wanted.index(stage) :])
    return f"the budget is spent; what remains: {rest}. What stage '{stage}' has done so far stands in {partial}"


def _finished(name: str, stage: str, manifests: Mapping[str, Manifest], context: StageContext) -> Manifest:
    if name not in manifests:
        raise RunFolderError(
            f"stage '{stage}' needs stage '{name}', which is not finished in '{context.folder.path}'. Run '{name}' "
            "there first."
        )
    return manifests[name]


def _with(context: StageContext, manifests: Mapping[str, Manifest]) -> StageContext:
    return replace(context, manifests=dict(manifests))


def _run_stage(stage: str, key: str, context: StageContext, retry_failed: bool) -> Manifest:
    folder, runtime = context.folder, context.runtime
    if stage in ("train", "evaluate", "evolve", "respond") and not runtime.connected:
        runtime.connect(folder.path / LEDGER, retry_failed=retry_failed)
        _check_endpoints(context)
    if context.trained is None:
        folder.begin(stage, key)
    try:
        output = _stage_function(stage)(context)
    except (UserError, PermanentError):
        # A mistyped name or model that led to nothing must not make the corrected command "another run".
        if context.trained is None and not runtime.has_answers:
            folder.take_back(stage)
        raise
    result = {**output.result, "lost": output.lost}
    if context.trained is None:
        manifest = folder.finish(stage, key, output.files, result)
    else:
        manifest = publish(folder, key, output, result, _dependents(stage, context.config))
    context.progress.finished(stage, note=f"{output.lost} lost" if output.lost else "")
    return manifest


def _check_endpoints(context: StageContext) -> None:
    """Ask HTTP endpoints once whether they are there, before work; what they list is for people to compare."""
    runtime = context.runtime
    for base_url, listed in runtime.check_endpoints().items():
        asked = [(role, runtime.model_name(role)) for role in ROLES]
        for role, model in [*asked, *((INSTRUCTOR, model) for model in instructor_models(context.config))]:
            if base_url in runtime.settings(role).urls and listed and model not in listed:
                shown = ", ".join(listed[:5]) + (", ..." if len(listed) > 5 else "")
                context.progress.say(f"{base_url} does not list the model '{model}' of the {role}; it lists {shown}")


def _stage_function(stage: str) -> Callable[[StageContext], StageOutput]:
    """Imported only when a stage runs: training loads torch, export pyarrow."""
    if stage == "train":
        from instructgym.train.train_instructor import run_train

        return run_train
    if stage == "evaluate":
        from instructgym.train.evaluate import run_evaluate

        return run_evaluate
    if stage == "evolve":
        from instructgym.train.evolve import run_evolve

        return run_evolve
    if stage == "respond":
        from instructgym.train.respond import run_respond

        return run_respond
    if stage == "filter":
        from instructgym.train.filter import run_filter

        return run_filter
    from instructgym.train.export import run_export

    return run_export


def _conclude(context: StageContext) -> dict[str, Any]:
    """Write `summary.json` and `report.html` from whatever is finished."""
    from instructgym.train.report import render_report
    from instructgym.train.summary import summarise

    manifests = {stage: manifest for stage in ALL if (manifest := context.folder.manifest(stage)) is not None}
    summary = summarise(_with(context, manifests))
    context.folder.write_json("summary.json", summary)
    context.folder.write_text("report.html", render_report(summary, context.folder))
    return summary


@contextlib.contextmanager
def storage_words(path: Path) -> Iterator[None]:
    """A full disk under files that others write (the ledger, TensorBoard, a saved agent) is said in our words too."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        if not is_full_disk(error):
            raise
        raise RunFolderError(
            f"no space left on the device that holds '{path}'. Free some and run the same command again: what was paid "
            "for stands in the ledger."
        ) from error

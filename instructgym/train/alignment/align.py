"""The alignment of a student: M1 by supervised fine-tuning, then a model a round by preferences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructgym.errors import BudgetExhausted, ConfigError, PermanentError, RunFolderError, UserError
from instructgym.llm_backends.base import LLMBackend
from instructgym.llm_backends.by_role import ByRole
from instructgym.train.alignment.config import GUIDES, AlignmentConfig
from instructgym.train.alignment.context import FIRST, AlignmentContext
from instructgym.train.alignment.models import Models, StudentBackend
from instructgym.train.alignment.plan import Step, plan
from instructgym.train.alignment.questions import question_of
from instructgym.train.config import flatten
from instructgym.train.config_text import to_toml
from instructgym.train.connection import Connection, limits_of
from instructgym.train.pipeline import StageReport, storage_words
from instructgym.train.progress import Progress, Silent
from instructgym.train.run_folder import Manifest, RunFolder
from instructgym.train.traffic import Traffic, TrafficNotes
from instructgym.train.tuning.student import model_digest

if TYPE_CHECKING:
    from instructgym.train.transports import TransportMaker

__all__ = ["HALTED", "AlignmentResult", "align"]

LEDGER = "ledger.sqlite"
HALTED = 5
"""Exit code of a run that its judge gate, or its head-to-head, has ended before the last round."""
_LOST_ITEMS = 4


@dataclass(frozen=True)
class AlignmentResult:
    """What an alignment left. `halted` says why it ended before its last round; empty if it did not."""

    out: Path
    stages: tuple[StageReport, ...]
    summary: Mapping[str, Any] = field(default_factory=dict)
    traffic: tuple[Traffic, ...] = ()
    halted: str = ""

    @property
    def lost(self) -> int:
        return sum(report.lost for report in self.stages)

    @property
    def exit_code(self) -> int:
        """0; `HALTED`; or 4 if items were lost to calls that failed for good."""
        return HALTED if self.halted else _LOST_ITEMS if self.lost else 0


def align(
    config: AlignmentConfig,
    out: Path | str,
    *,
    progress: Progress | None = None,
    retry_failed: bool = False,
    backends: Mapping[str, LLMBackend] | None = None,
) -> AlignmentResult:
    """Run an alignment in the folder `out`; what is finished there with the same inputs is skipped.

    The same call goes on where an earlier one stopped, whatever stopped it: training from its last checkpoint, and no
    call is paid for twice.

    Args:
        config: from `load_alignment`, or built in code.
        out: the run's folder; created where needed.
        progress: told of the run's course.
        retry_failed: ask again what failed for good before.
        backends: who answers as ``teacher`` or ``judge`` in place of the config's backend, or as ``student`` (every
            M(t), by the request's model) in place of the models in this process.

    Raises:
        ConfigError, SeedError: the user's input; also where a filter leaves nothing to learn from.
        RunFolderError: the folder is in use, holds another run, or cannot be written.
        BudgetExhausted: the budget is spent; all that was paid for is kept.
        BackendError: nobody answers, the key is refused, or there is no such model.
        TrainingError: a training step gave a loss that is no number; the last good checkpoint is kept.
    """
    run = _Run(config, Path(out), progress, dict(backends or {}), retry_failed)
    try:
        return run.go()
    finally:
        run.connection.close()


class _Run:
    """One call of `align`."""

    def __init__(
        self,
        config: AlignmentConfig,
        out: Path,
        progress: Progress | None,
        backends: dict[str, LLMBackend],
        retry_failed: bool,
    ) -> None:
        self.config = config
        self.connection = Connection()
        self._out = out
        self._backends = backends
        self._retry_failed = retry_failed
        self._models = Models()
        self._student = StudentBackend(self._models, config.student, run_seed=config.run.seed)
        self._progress = Silent() if progress is None else TrafficNotes(progress, lambda: self.connection.traffic)
        self._maker: TransportMaker | None = None

    def go(self) -> AlignmentResult:
        config, steps = self.config, plan(self.config)
        question_of(config)
        with RunFolder.hold(self._out) as folder, storage_words(folder.path):
            sections = {step.name: step.sections for step in steps}
            # No stage reads what a gate wrote: another one asks the ledger again, and the run goes on or halts by it.
            folder.claim(self._identity(), sections, to_toml(config), free=("gate",))
            context = AlignmentContext(config, folder, self.connection, self._student, self._models, self._progress)
            reports, manifests, halted = self._stages(steps, context)
            summary = self._conclude(context, manifests, halted)
            rows = () if self.connection.traffic is None else tuple(self.connection.traffic.rows())
            return AlignmentResult(folder.path, tuple(reports), summary, rows, halted)

    def _identity(self) -> dict[str, Any]:
        """Every value that decides the result: the config's, the pipeline of each round, and what files hold."""
        config = self.config
        values = {key: value for key, value in flatten(config).items() if not key.startswith("rounds.")}
        for number, pipeline in enumerate(config.rounds.pipelines, start=2):
            values[f"M{number}.pipeline"] = pipeline.name
            for name in ("eft_replay", "compare_prompts", "compare_judge"):
                values[f"M{number}.{name}"] = getattr(config.rounds, name)
        if not config.in_testbed:
            self._models.add("M0", config.student.model)
            values["student.model (content)"] = self._models.id("M0")
        if config.in_testbed and config.testbed.base_model:
            values["testbed.base_model (content)"] = model_digest(Path(config.testbed.base_model))
        paths = {"ift": config.ift.path, "eft": config.eft.path, "prompts": config.prompts.path}
        for section, path in paths.items():
            values[f"{section}.path (content)"] = _digest_of(path)
        values["prompts.decontaminate (content)"] = [_digest_of(path) for path in config.prompts.decontaminate]
        values["judging.question (version)"] = question_of(config).version
        return values

    def _stages(
        self, steps: Sequence[Step], context: AlignmentContext
    ) -> tuple[list[StageReport], dict[str, Manifest], str]:
        manifests: dict[str, Manifest] = {}
        reports: list[StageReport] = []
        halted = ""
        for step in steps:
            if halted and step.name != "export":
                continue
            context = replace(context, manifests=dict(manifests))
            manifest, skipped = self._stage(step, context)
            manifests[step.name] = manifest
            self._know_model(step, context)
            lost = int(manifest.result.get("lost", 0))
            reports.append(StageReport(step.name, skipped, lost))
            halted = halted or _why_halted(step, manifest)
        return reports, manifests, halted

    def _stage(self, step: Step, context: AlignmentContext) -> tuple[Manifest, bool]:
        folder = context.folder
        upstream = [context.manifests[name] for name in step.needs]
        if step.name == "export":
            upstream = [manifest for name, manifest in context.manifests.items() if name.endswith((".pairs", ".dpo"))]
        key = folder.key(step.name, upstream)
        manifest = folder.manifest(step.name)
        lost = 0 if manifest is None else int(manifest.result.get("lost", 0))
        if manifest is not None and manifest.key == key and not (self._retry_failed and lost):
            context.progress.finished(step.name, skipped=True, note=f"{lost} lost" if lost else "")
            return manifest, True
        if step.asks and not self.connection.connected:
            self._connect(folder.path / LEDGER)
        folder.begin(step.name, key)
        try:
            output = step.run(context)
        except (UserError, PermanentError):
            if not self.connection.has_answers:
                folder.take_back(step.name)
            raise
        except BudgetExhausted:
            context.progress.say(f"the budget is spent in stage '{step.name}'; the same command goes on from there")
            raise
        manifest = folder.finish(step.name, key, output.files, {**output.result, "lost": output.lost})
        context.progress.finished(step.name, note=f"{output.lost} lost" if output.lost else "")
        return manifest, False

    def _know_model(self, step: Step, context: AlignmentContext) -> None:
        made = {"student": "M0", "eft_baseline": "baseline", "sft": FIRST}.get(step.name)
        if made is None and step.name.endswith(".dpo"):
            made = step.name.removesuffix(".dpo")
        if made is not None:
            self._models.add(made, context.folder.path / made / "model")

    def _connect(self, ledger: Path) -> None:
        config = self.config
        by_role: dict[str, LLMBackend] = {"student": self._backends.get("student", self._student)}
        for role in GUIDES:
            if role in self._backends:
                by_role[role] = self._backends[role]
            elif role in config.guides:
                by_role[role] = self._transport(role)
        self.connection.open(ByRole(by_role), config, ledger_path=ledger, roles=GUIDES, retry_failed=self._retry_failed)
        if self._maker is not None:
            self.connection.call(self._maker.check)

    def _transport(self, role: str) -> LLMBackend:
        from instructgym.train.transports import TransportMaker

        settings = self.config.llm.for_role(role)
        if settings.backend == "testbed":
            from instructgym.train.alignment.in_testbed import guide

            return guide(self.config, role)
        self._maker = self._maker or TransportMaker(self.config.run.seed, limits_of(self.config.limits))
        return self._maker.of(settings)

    def _conclude(self, context: AlignmentContext, manifests: Mapping[str, Manifest], halted: str) -> dict[str, Any]:
        from instructgym.train.alignment.summary import summarise

        summary = summarise(self.config, manifests, halted)
        context.folder.write_json("summary.json", summary)
        return summary


def _why_halted(step: Step, manifest: Manifest) -> str:
    """Why the rounds end with this stage; empty if they go on."""
    if step.name.endswith(".gate") and not manifest.result["passed"]:
        return f"the judge gate halted the run before {step.name.removesuffix('.gate')}: " + "; ".join(
            manifest.result["reasons"]
        )
    if step.name.endswith(".compare"):
        result = manifest.result
        if result["win_rate"] is not None and result["win_rate"] < 0.5:
            return (
                f"{result['model']} loses head to head against {result['against']} ({result['wins']} wins, "
                f"{result['ties']} ties, {result['losses']} losses): the last round was no better than the one before"
            )
    return ""


def _digest_of(path: str) -> str | None:
    """The contents of a file or of a run's dataset; None for what is no path. Raises `ConfigError`."""
    if not path or path == "testbed":
        return None
    place = Path(path)
    file = place / "dataset" / "sft_alpaca.jsonl" if place.is_dir() else place
    if path == "default":
        return "default"
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ConfigError(f"'{file}' cannot be read: {error.strerror or error}.") from error


def is_alignment(folder: Path) -> bool:
    """Whether a folder holds an alignment's run."""
    try:
        held = json.loads((folder / "run.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(held, dict) and "student.model" in held.get("identity", {})


def need_alignment(folder: Path) -> None:
    """Raise `RunFolderError` for what is no alignment's folder."""
    if not is_alignment(folder):
        raise RunFolderError(f"'{folder}' is no alignment's folder; expected what --out of `instructgym align` named.")

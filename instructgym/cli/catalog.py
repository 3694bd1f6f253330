"""`list` and `describe`: the parts that a config can name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

from instructgym.cli.tables import print_table, print_text
from instructgym.errors import ConfigError

__all__ = ["register"]

BACKENDS = {
    "simulated": "a seeded stand-in for expert and reviewer that works on the text alone; no key, no model, no network",
    "openai": "any OpenAI-compatible endpoint: set llm.base_url and llm.model; the key comes from the environment",
    "transformers": "a model in this process, by name or folder: set llm.model; vLLM and the like are endpoints",
    "replay": "answers from an earlier run's ledger or its export (llm.replay_path); a miss is an error",
}


class Kind(StrEnum):
    """What can be listed."""

    actions = "actions"
    rewards = "rewards"
    agents = "agents"
    backends = "backends"
    configs = "configs"
    pipelines = "pipelines"
    alignments = "alignments"


@dataclass(frozen=True)
class _Part:
    """How one kind of thing is listed (name -> one line) and described."""

    word: str
    summaries: Callable[[], dict[str, str]]
    describe: Callable[[str], None]


def list_parts(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help=f"{', '.join(list(Kind)[:-1])} or {list(Kind)[-1]}.")],
) -> None:
    """List what a config can name."""
    part = _PARTS[kind]
    print_table(("name", ""), part.summaries().items(), left=2)


def describe(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Of an operation, of anything that `list` shows, or FILE.py:NAME.")
    ],
) -> None:
    """Describe one thing that a config can name.

    An action set (with the prompt of each operation), an operation, a reward, an agent, a backend, a config, and of
    alignments a pipeline or a config.
    """
    from instructgym.train.config_faults import nearest

    known: list[str] = []
    found = False
    for part in _PARTS.values():
        names = list(part.summaries())
        known += names
        if name in names:
            # A name may stand for more than one kind of thing (teams_rl is an action set and a config).
            if found:
                print_text()
            print_text(f"{part.word} {name}", style="bold")
            part.describe(name)
            found = True
    operations = _operations()
    if not found and name in operations:
        action_set = operations[name]
        print_text(f"operation {name}, of action set {action_set.name}", style="bold")
        _print_operation(action_set.operations[action_set.index(name)])
        found = True
    if not found and (name.endswith("+stop") or ".py:" in name):
        print_text(f"{'action set' if name.endswith('+stop') else 'object'} {name}", style="bold")
        _describe_own(name)
        found = True
    if not found:
        hint = nearest(name, [*known, *operations]) or "."
        raise ConfigError(f"nothing is called '{name}'{hint} `instructgym list KIND` shows the names.")


def register(app: typer.Typer) -> None:
    app.command("list")(list_parts)
    app.command()(describe)


def _action_sets() -> dict[str, str]:
    from instructgym.envs.loading import action_set_names, load_action_set

    return {name: ", ".join(load_action_set(name).names) for name in action_set_names()}


def _describe_action_set(name: str) -> None:
    from instructgym.envs.loading import load_action_set

    _print_action_set(load_action_set(name))


def _operations() -> dict[str, Any]:
    """Operation -> the first action set that has it."""
    from instructgym.envs.loading import action_set_names, load_action_set

    found: dict[str, Any] = {}
    for name in action_set_names():
        action_set = load_action_set(name)
        for operation in action_set.names:
            found.setdefault(operation, action_set)
    return found


def _print_action_set(action_set: Any) -> None:
    print_text(f"hash {action_set.hash}; the order is the action index", indent=2)
    for index, operation in enumerate(action_set.operations):
        print_text()
        print_text(f"{index} {operation.name}", style="bold", indent=2)
        _print_operation(operation)


def _print_operation(operation: Any) -> None:
    from instructgym.types import Instruction

    if operation.stops:
        print_text(operation.description, indent=4)
        return
    print_text(f"prompt {operation.prompt_version}", style="dim", indent=4)
    for message in operation.messages(Instruction("(the instruction)", "(its input)"), ()):
        print_text(f"{message.role}:", style="dim", indent=4)
        print_text(message.content, indent=6)


def _describe_own(name: str) -> None:
    from instructgym.envs.loading import load_action_set
    from instructgym.envs.operations import ActionSet
    from instructgym.plugins import load_from_file

    own = load_action_set(name) if name.endswith("+stop") else load_from_file(name)
    if isinstance(own, ActionSet):
        _print_action_set(own)
        print_text()
        print_text(f"in a config: env.action_set = {json.dumps(name, ensure_ascii=False)}", indent=2)
    else:
        _print_object(own)
        for line in _in_a_config(name, own):
            print_text(line, indent=2)


def _print_object(found: Any) -> None:
    import inspect

    print_text(inspect.getdoc(found) or "has no docstring", indent=2)
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError):
        return
    for parameter in parameters:
        print_text(f"  {parameter}", indent=2)


def _in_a_config(name: str, found: Any) -> list[str]:
    """How a config names an object of the user's own: as an agent or as a reward."""
    import inspect

    from instructgym.agents.base import Agent, Algorithm
    from instructgym.rewards.base import Reward

    made = inspect.isclass(found)
    kind = found if made else type(found)
    quoted = json.dumps(name, ensure_ascii=False)
    options = ", agent.kwargs.OPTION = VALUE" if made else ""
    if issubclass(kind, Algorithm):
        return [f"in a config: agent.name = {quoted}{options}"]
    if issubclass(kind, Agent):
        table = [f"its options, in a config: agents.{quoted}.OPTION = VALUE"] if made else []
        return [f"does not learn; in a config: evolve.policy = {quoted}, or among evaluate.policies", *table]
    if made and not issubclass(kind, Reward):
        return ["in a config: nothing; expected an Agent, a Reward, a function, or an ActionSet"]
    if issubclass(kind, Reward) or callable(found):
        own = f", reward.kwargs.{quoted}.OPTION = VALUE" if made else ""
        return [f"in a config: reward.terms.{quoted} = WEIGHT{own}"]
    return ["in a config: nothing; expected an Agent, a Reward, a function, or an ActionSet"]


def _rewards() -> dict[str, str]:
    from instructgym.rewards.registry import REWARDS, reward_names

    return {
        name: REWARDS[name].summary.replace("`", "") if name in REWARDS else "of an installed package"
        for name in reward_names()
    }


_REWARD = '"REWARD"'


def _describe_reward(name: str) -> None:
    from instructgym.rewards.registry import COMPOSITIONS, REWARDS

    if name not in REWARDS:
        return
    info = REWARDS[name]
    print_text(info.summary.replace("`", ""), indent=2)
    none = "what its rewards need" if name in COMPOSITIONS else "nothing"
    print_text(f"needs: {', '.join(sorted(info.needs)) or none}", indent=2)
    print_text(f"options:{'' if info.options else ' none'}", indent=2)
    for option, parameter in info.options.items():
        must = parameter.default is parameter.empty
        print_text(option + (" must be given" if must else f" = {parameter.default!r}"), indent=4)
    if name in COMPOSITIONS:
        forms = {"rewards": '["REWARD", "REWARD"]', "cost": '"operation_cost"'}
        parts = ", ".join(f"{option} = {forms.get(option, _REWARD)}" for option in info.reward_options)
        print_text(f'in a config: reward.define.MINE = {{ type = "{name}", {parts}, OPTION = VALUE }}', indent=2)
    else:
        print_text(f"in a config: reward.terms.{name} = WEIGHT, reward.kwargs.{name}.OPTION = VALUE", indent=2)


def _backends() -> dict[str, str]:
    return dict(BACKENDS)


def _describe_backend(name: str) -> None:
    print_text(BACKENDS[name], indent=2)
    if name == "simulated":
        from instructgym.llm_backends.simulated import SIMULATOR_VERSION

        print_text(
            f"version {SIMULATOR_VERSION}. What it yields says nothing of a language model's quality. "
            "`instructgym serve` puts it behind HTTP.",
            indent=2,
        )


def _configs(folder: str = "") -> dict[str, str]:
    from instructgym.train.config_text import config_names

    return {name: _config_text(name, folder).splitlines()[0].lstrip("# ") for name in config_names(folder)}


def _config_text(name: str, folder: str = "") -> str:
    from importlib import resources

    return (resources.files("instructgym") / "data" / folder / f"{name}.toml").read_text("utf-8").rstrip()


def _describe_config(name: str) -> None:
    print_text(_config_text(name), indent=2)
    print_text(f"`instructgym config show {name}` prints every value, defaults included.", style="dim", indent=2)


def _alignments() -> dict[str, str]:
    return _configs("alignment")


def _describe_alignment(name: str) -> None:
    print_text(_config_text(name, "alignment"), indent=2)
    print_text(f"`instructgym align config {name}` prints every value, defaults included.", style="dim", indent=2)


def _pipelines() -> dict[str, str]:
    from instructgym.train.alignment.pipelines import PIPELINES

    return {name: pipeline.summary for name, pipeline in PIPELINES.items()}


def _describe_pipeline(name: str) -> None:
    from instructgym.train.alignment.pipelines import PIPELINES

    pipeline = PIPELINES[name]
    chosen = {
        "best": ("the best of the student's answers", "the worst"),
        "teacher": ("the teacher's answer", "one answer of the student"),
        "reference": ("the prompt's known answer", "one answer of the student"),
    }[pipeline.chosen]
    judge = {"student": "the student itself", "judge": "section llm.judge", None: "nobody"}[pipeline.judge]
    print_text(pipeline.summary, indent=2)
    print_text(f"chosen: {chosen[0]}; rejected: {chosen[1]}; judge: {judge}", indent=2)
    print_text(f"instructgym align {name.replace('_', '-')} CONFIG --out DIR", indent=2)
    print_text(f'in a config: rounds.pipeline = "{name}", or one of rounds.schedule', indent=2)


def _agents() -> dict[str, str]:
    from instructgym.agents.registry import AGENTS, agent_names

    return {name: AGENTS[name].description if name in AGENTS else "of an installed package" for name in agent_names()}


def _describe_agent(name: str) -> None:
    from instructgym.agents.registry import AGENTS, options_of

    if name not in AGENTS:
        print_text("of an installed package", indent=2)
        return
    info = AGENTS[name]
    print_text(info.description, indent=2)
    if info.takes:
        print_text(f"by name: {name}:{info.takes}", indent=2)
    if not info.learns:
        print_text("does not learn; works as a policy too: evolve.policy, evaluate.policies", indent=2)
        return
    print_text(f"in a config: agent.name = {name!r}, agent.kwargs.OPTION = VALUE", indent=2)
    for option, default in options_of(name).items():
        print_text(f"{option} = {default!r}", indent=4)


_PARTS = {
    Kind.actions: _Part("action set", _action_sets, _describe_action_set),
    Kind.rewards: _Part("reward", _rewards, _describe_reward),
    Kind.agents: _Part("agent", _agents, _describe_agent),
    Kind.backends: _Part("backend", _backends, _describe_backend),
    Kind.configs: _Part("config", _configs, _describe_config),
    Kind.pipelines: _Part("pipeline", _pipelines, _describe_pipeline),
    Kind.alignments: _Part("alignment", _alignments, _describe_alignment),
}

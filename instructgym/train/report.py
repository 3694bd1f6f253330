"""`report.html`: one file to look at, with nothing fetched from elsewhere. Every text in it is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from instructgym.train.evolve import LINEAGE
from instructgym.train.run_folder import RunFolder

__all__ = ["render_report"]

EXAMPLES = 5
_SHOWN_CHARACTERS = 1_200

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ s.name }}: InstructGym report</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.note { background: #fff4d6; padding: .6rem 1rem; border-left: 4px solid #d9a400; }
.step { border-left: 3px solid #8ab; margin: .6rem 0; padding: .1rem .8rem; }
.step.out { border-color: #c66; color: #666; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.bar { display: inline-block; height: .7rem; background: #8ab; }
</style>
</head>
<body>
<h1>{{ s.name }}</h1>
{% if s.simulated %}<p class="note"><strong>SIMULATED.</strong> {{ s.simulated | join(" and ") }} is the simulated
backend: what is shown here says nothing of any language model's quality.</p>{% endif %}
<p>Instructor {{ s.models.instructor }}, expert {{ s.models.expert }}, reviewer {{ s.models.reviewer }};
action set {{ s.action_set.name }} ({{ s.action_set.operations | join(", ") }}); horizon {{ s.horizon }};
{{ s.seeds.count }} seeds, {{ s.seeds.held_out }} of them held out.</p>
{% if s.evaluation and s.evaluation.policies %}
<h2>Policies on {{ s.evaluation.seeds }} {{ "held-out" if s.evaluation.held_out else "training" }} seeds</h2>
<p>The same seeds and draws for each. Reward is the mean of the episodes, with a 95% bootstrap interval over seeds.</p>
<table>
<tr><th>policy</th><th class="n">reward</th><th class="n">95% interval</th><th class="n">over random</th>
<th class="n">expert calls</th><th class="n">reviewer calls</th><th class="n">accepted</th><th class="n">distance</th>
<th class="n">distinct-2</th><th class="n">words</th></tr>
{% for name, row in s.evaluation.policies.items() %}
<tr><td>{{ name }}{% if name == s.evaluation.best_fixed %} (best fixed){% endif %}</td>
<td class="n">{{ row.mean_episode_reward | number }}</td><td class="n">{{ row.interval_95 | interval }}</td>
<td class="n">{{ row.over_random | number }}</td>
<td class="n">{{ row.expert_calls }}</td><td class="n">{{ row.reviewer_calls }}</td>
<td class="n">{{ row.accepted }}</td>
<td class="n">{{ row.mean_pairwise_distance | number }}</td><td class="n">{{ row.distinct_2 | number }}</td>
<td class="n">{{ row.mean_words | number(1) }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% if s.evolve %}
<h2>Evolution</h2>
<p>{{ s.evolve.chains }} chains of policy {{ s.evolve.policy }}, {{ s.evolve.transitions }} transitions,
{{ s.evolve.accepted }} accepted, {{ s.evolve.incomplete }} chains incomplete.</p>
{{ counts("eliminated by", s.evolve.eliminated, s.evolve.transitions) }}
{{ counts("operation", s.evolve.operations, s.evolve.transitions) }}
{% endif %}
{% if s.filter %}
<h2>Filter</h2>
<p>{{ s.filter.kept }} kept, {{ s.filter.rejected }} rejected.</p>
{{ counts("rejected for", s.filter.reasons, s.filter.kept + s.filter.rejected) }}
{% endif %}
<h2>Calls</h2>
<p>Logical calls, retries not counted. The share is of Evol-Instruct's
{{ "{:,}".format(s.queries.evol_instruct_calls) }} (52k instructions x 4 epochs x 3 calls).</p>
<table>
<tr><th>stage</th><th>role</th><th class="n">calls</th><th class="n">share</th><th class="n">prompt tokens</th>
<th class="n">completion tokens</th></tr>
{% for row in s.queries.rows %}
<tr><td>{{ row.stage }}</td><td>{{ row.role }}</td><td class="n">{{ row.calls }}</td>
<td class="n">{{ row.share_of_evol_instruct | percent }}</td><td class="n">{{ row.prompt_tokens }}</td>
<td class="n">{{ row.completion_tokens }}</td></tr>
{% endfor %}
<tr><td>evolve + respond</td><td></td><td class="n">{{ s.queries.dataset.calls }}</td>
<td class="n">{{ s.queries.dataset.share_of_evol_instruct | percent }}</td><td></td><td></td></tr>
<tr><td>all</td><td></td><td class="n">{{ s.queries.total.calls }}</td>
<td class="n">{{ s.queries.total.share_of_evol_instruct | percent }}</td><td></td><td></td></tr>
</table>
{% if examples %}
<h2>Example chains</h2>
{% for chain in examples %}
<h3>Chain {{ chain[0].chain }}, seed {{ chain[0].seed_id }}</h3>
<div class="text" dir="auto">{{ chain[0].parent | shown }}</div>
{% for step in chain %}
<div class="step{{ "" if step.accepted else " out" }}"><strong>{{ step.operation }}</strong>
{% if step.eliminated %}eliminated: {{ step.eliminated }} ({{ step.detail }}){% endif %}
{% if step.failure %}failed: {{ step.failure }}{% endif %}
{% if step.reward is not none %}reward {{ step.reward | number }}{% endif %}
{% if step.child %}<div class="text" dir="auto">{{ step.child | shown }}</div>{% endif %}</div>
{% endfor %}{% endfor %}{% endif %}
</body>
</html>
"""

_COUNTS = """\
{% macro counts(title, table, whole) %}{% if table %}<table>
<tr><th>{{ title }}</th><th class="n">count</th><th></th></tr>
{% for name, count in table.items() %}<tr><td>{{ name }}</td><td class="n">{{ count }}</td>
<td><span class="bar" style="width: {{ (200 * count / whole) | round | int }}px"></span></td></tr>
{% endfor %}</table>{% endif %}{% endmacro %}
"""


def render_report(summary: Mapping[str, Any], folder: RunFolder) -> str:
    """The page of a run: policies, chains, eliminations, calls; a few chains as examples."""
    import jinja2

    env = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined)
    env.filters.update(number=_number, interval=_interval, percent=_percent, shown=_shown)
    return env.from_string(_COUNTS + _PAGE).render(s=summary, examples=_examples(folder))


def _examples(folder: RunFolder) -> list[list[dict[str, Any]]]:
    """The first chains of the run in which something was accepted."""
    if not (folder.path / LINEAGE).exists():
        return []
    chains = (list(rows) for _, rows in groupby(folder.read_lines(LINEAGE), key=lambda row: row["chain"]))
    good = (rows for rows in chains if any(row["accepted"] for row in rows))
    return [rows for rows, _ in zip(good, range(EXAMPLES), strict=False)]


def _number(value: Any, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else "-"


def _interval(value: Any) -> str:
    return f"{value[0]:.3f} to {value[1]:.3f}" if isinstance(value, (list, tuple)) else "-"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}%"


def _shown(text: Mapping[str, str]) -> str:
    whole = f"{text['instruction']}\n\n{text['input']}" if text["input"] else text["instruction"]
    return whole if len(whole) <= _SHOWN_CHARACTERS else f"{whole[:_SHOWN_CHARACTERS]} ..."

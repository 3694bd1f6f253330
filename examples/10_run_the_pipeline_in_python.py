"""The main job from Python: train an instructor, evolve seeds of your own, answer, filter, export."""

import argparse
import json
import tempfile
from pathlib import Path

from instructgym.train import load_config, run

SEEDS = """\
Explain what a hash table is.
Write a short poem about fog.
How do I keep a sourdough starter alive?
Compare two ways to back up photos.
Plan a weekend in a small town for a family of four.
What is the difference between a lease and a licence?
Why does bread rise?
Summarise the causes of inflation for a student.
"""


class Lines:
    """Hears of the run's course; the package itself prints nothing."""

    def say(self, text: str) -> None:
        print(text)

    def started(self, stage: str, total: int | None) -> None: ...

    def advance(self, stage: str, done: int, note: str = "") -> None: ...

    def finished(self, stage: str, *, skipped: bool = False, note: str = "") -> None:
        print(f"{stage}: {'was done before' if skipped else 'done'}")


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=1024)
parser.add_argument("--out", type=Path, help="keep the run in this folder")
args = parser.parse_args()

with tempfile.TemporaryDirectory() as temporary:
    folder = args.out or Path(temporary)
    seeds = Path(temporary) / "my_seeds.txt"
    seeds.write_text(SEEDS, "utf-8")
    config = load_config("quickstart", [f"seeds.path={json.dumps(str(seeds))}", f"train.steps={args.steps}"])
    # The same call with the same config goes on where an earlier one stopped, and pays for no call twice. Without
    # `stages` the policies are compared too; eight seeds are too few for that.
    result = run(config, folder / "run", stages=("train", "evolve", "respond", "filter", "export"), progress=Lines())

    rows = [json.loads(line) for line in (folder / "run/dataset/sft_alpaca.jsonl").read_text("utf-8").splitlines()]
    print(f"\n{len(rows)} instructions with answers, by the simulated backend; files: {[f.name for f in result.files]}")
    for row in rows[:3]:
        print(f"\n{' -> '.join(row['operations'])}\n  {row['instruction']}")

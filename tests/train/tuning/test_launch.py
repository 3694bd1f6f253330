"""More than one process: the shipped configs of accelerate, and the same numbers as in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from instructgym.train.tuning.dpo import train_dpo
from instructgym.train.tuning.settings import DPOSettings
from instructgym.train.tuning.student import open_student

from .conftest import preferences

CONFIGS = {"multi_gpu": "MULTI_GPU", "fsdp": "FSDP", "deepspeed_zero2": "DEEPSPEED", "deepspeed_zero3": "DEEPSPEED"}
_CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from instructgym.train.tuning.dpo import train_dpo
from instructgym.train.tuning.settings import DPOSettings
from tests.train.tuning.conftest import preferences
settings = DPOSettings.model_validate_json(sys.argv[3])
train_dpo(Path(sys.argv[1]), preferences(16), settings, Path(sys.argv[2]), device="cpu")
"""


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_reads_the_config(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    path = resources.files("instructgym") / f"data/accelerate/{name}.yaml"
    read = load_config_from_file(str(path))
    assert read.distributed_type == CONFIGS[name]
    assert (read.mixed_precision, read.num_processes, read.use_cpu) == ("bf16", 8, False)
    text = path.read_text("utf-8")
    assert f"accelerate launch --config_file {name}.yaml -m instructgym.cli " in text
    if name == "fsdp":
        assert read.fsdp_config["fsdp_version"] == 2
    if name.startswith("deepspeed"):
        assert read.deepspeed_config["zero_stage"] == int(name[-1])


def test_every_shipped_config_is_tested() -> None:
    folder = resources.files("instructgym") / "data/accelerate"
    assert sorted(each.name for each in folder.iterdir()) == sorted(f"{name}.yaml" for name in CONFIGS)


@pytest.mark.slow
def test_two_processes_train_the_model_of_one(tiny: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(_CHILD, "utf-8")
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    shared = DPOSettings(lr=1e-3, batch_size=2, log_every=1, save_every=2, eval_share=0.25)
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = subprocess.run(
        [*launch, str(script), str(tiny), str(tmp_path / "two"), shared.model_dump_json()],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    one = train_dpo(tiny, preferences(16), shared.model_copy(update={"batch_size": 4}), tmp_path / "one", device="cpu")
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text("utf-8").splitlines()]
        for name in ("one", "two")
    ]
    assert len(logs[0]) == len(logs[1]) == 4
    for row, other in zip(*logs, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-5)
    trained = [open_student(tmp_path / name / "model", device="cpu").model for name in ("one", "two")]
    for ours, theirs in zip(trained[0].parameters(), trained[1].parameters(), strict=True):
        assert float((ours - theirs).abs().max().detach()) < 2e-5
    assert not (tmp_path / "two/checkpoints").exists()
    assert one.steps == 3

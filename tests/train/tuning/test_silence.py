"""Training prints nothing, and tells nobody of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from instructgym.train.tuning.settings import DPOSettings, LoraSettings, SFTSettings

_CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from instructgym.train.tuning.dpo import train_dpo
from instructgym.train.tuning.settings import DPOSettings, SFTSettings
from instructgym.train.tuning.sft import train_sft
from tests.train.tuning.conftest import conversations, preferences
model, out = Path(sys.argv[1]), Path(sys.argv[2])
sft = SFTSettings.model_validate_json(sys.argv[3])
dpo = DPOSettings.model_validate_json(sys.argv[4])
first = train_sft(model, conversations(8), sft, out / "sft", device="cpu")
train_dpo(first.model, preferences(8), dpo, out / "dpo", device="cpu")
"""


@pytest.mark.slow
def test_a_process_that_trains_prints_nothing(tiny: Path, tmp_path: Path) -> None:
    common = {"lr": 1e-3, "batch_size": 4, "log_every": 1, "save_every": 1, "eval_share": 0.25, "eval_every": 1}
    sft = SFTSettings(**common, packing=True, max_length=64)
    dpo = DPOSettings(**common, lora=LoraSettings(r=2), gradient_checkpointing=True)
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("TQDM_DISABLE", "PYTHONWARNINGS")},
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tiny), str(tmp_path), sft.model_dump_json(), dpo.model_dump_json()],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {path.name for path in tmp_path.iterdir()} == {"sft", "dpo"}
    for name in ("sft", "dpo"):
        assert json.loads((tmp_path / name / "training.json").read_text("utf-8"))["steps"] >= 1


def test_nothing_is_told_to_trls_makers(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from instructgym.train.tuning.dpo import train_dpo
    from instructgym.train.tuning.sft import train_sft

    from .conftest import conversations, preferences

    told: list[object] = []
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda *args, **kwargs: told.append(args))
    monkeypatch.delenv("CI", raising=False)
    train_sft(tiny, conversations(4), SFTSettings(max_steps=1), tmp_path / "sft", device="cpu")
    train_dpo(tiny, preferences(4), DPOSettings(max_steps=1), tmp_path / "dpo", device="cpu")
    assert told == []

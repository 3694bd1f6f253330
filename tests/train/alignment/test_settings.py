import pytest
from pydantic import ValidationError

from instructgym.train.alignment.settings import (
    EFTSettings,
    GateSettings,
    JudgingSettings,
    MetaJudgeSettings,
    PairSettings,
)


@pytest.mark.parametrize("kind", [EFTSettings, GateSettings, JudgingSettings, MetaJudgeSettings, PairSettings])
def test_every_setting_has_a_default_and_settings_come_back_as_they_were_written(kind):
    assert kind.model_validate(kind().model_dump(mode="json")) == kind()


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            EFTSettings,
            {"label_scale": (5, 1)},
            r"label_scale is \[5\.0, 1\.0\]; expected \[low, high\] with low < high",
        ),
        (JudgingSettings, {"min_valid": 4}, "min_valid is 4, of 3 samples; expected at most as many"),
        (PairSettings, {"length_control": 0.5}, "less than 0.5"),
        (PairSettings, {"rejected": "random"}, "'worst' or 'mean-2sd'"),
        (GateSettings, {"min_parse": 0.9}, "Extra inputs are not permitted"),
        (MetaJudgeSettings, {"share": 1.0}, "less than 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind, values, message):
    with pytest.raises(ValidationError, match=message):
        kind(**values)

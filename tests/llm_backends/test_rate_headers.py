import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgym.llm_backends.rate_headers import Allowance, requests_left, tokens_left

NOW_S = 1_800_000_000.0


def openai(remaining: str, reset: str, what: str = "requests", limit: str | None = None) -> dict[str, str]:
    headers = {f"x-ratelimit-remaining-{what}": remaining, f"x-ratelimit-reset-{what}": reset}
    return headers if limit is None else {**headers, f"x-ratelimit-limit-{what}": limit}


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("6m0s", 360.0),
        ("20ms", 0.02),
        ("1.5s", 1.5),
        ("1h2m3s", 3723.0),
        ("1d", 86400.0),
        ("1m0.5s", 60.5),
        ("7", 7.0),
        ("0", 0.0),
        (str(int(NOW_S) + 30), 30.0),
        (str(int(NOW_S * 1000) + 2500), 2.5),
        (str(int(NOW_S) - 30), 0.0),
    ],
)
def test_reset_is_read_as_seconds_from_now(reset: str, seconds: float):
    allowance = requests_left(openai("3", reset), NOW_S)
    assert allowance is not None
    assert allowance.left == 3
    assert allowance.reset_s == pytest.approx(seconds)


@pytest.mark.parametrize(
    "headers",
    [
        openai("4", "2s", limit="60"),
        {"ratelimit-remaining": "4", "ratelimit-reset": "2", "ratelimit-limit": "60"},
        {"x-ratelimit-remaining": "4", "x-ratelimit-reset": "2", "x-ratelimit-limit": "60"},
    ],
)
def test_each_family_of_headers_is_known(headers: dict[str, str]):
    assert requests_left(headers, NOW_S) == Allowance(4, 2.0, 60)
    assert tokens_left(headers, NOW_S) is None


def test_tokens_have_headers_of_their_own():
    assert tokens_left(openai("149984", "6ms", "tokens", "150000"), NOW_S) == Allowance(149984, 0.006, 150000)
    assert requests_left(openai("149984", "6ms", "tokens"), NOW_S) is None


@pytest.mark.parametrize("reset", ["", "soon", "6 minutes", "-1", "nan", "inf", "6m0", "s", "1.2.3s", "Wed, 21 Oct"])
def test_reset_that_is_no_time_is_ignored(reset: str):
    assert requests_left(openai("0", reset), NOW_S) is None


@pytest.mark.parametrize("remaining", ["", "none", "-1", "nan", "inf"])
def test_remaining_that_is_no_number_is_ignored(remaining: str):
    assert requests_left(openai(remaining, "1s"), NOW_S) is None


def test_what_one_family_leaves_out_another_may_say():
    headers = {"x-ratelimit-remaining-requests": "5", "x-ratelimit-remaining": "6", "x-ratelimit-reset": "1"}
    assert requests_left(headers, NOW_S) == Allowance(6, 1.0)
    assert requests_left({}, NOW_S) is None


@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_no_header_raises(remaining: str, reset: str, limit: str):
    for what in ("requests", "tokens"):
        allowance = requests_left(openai(remaining, reset, what, limit), NOW_S)
        assert allowance is None or (allowance.left >= 0 and allowance.reset_s >= 0.0)

import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from instructgym.errors import BudgetExhausted, UsageError
from instructgym.llm_backends.portal import Portal, acquire_portal


async def add(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


async def fail() -> None:
    raise BudgetExhausted("no more")


def run_script(body: str, *, timeout: float = 20.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body)], capture_output=True, text=True, timeout=timeout, check=False
    )


def test_call_returns_the_result_and_raises_the_error():
    portal = acquire_portal()
    try:
        assert portal.call(add, 1, 2) == 3
        with pytest.raises(BudgetExhausted, match=r"^no more$"):
            portal.call(fail)
    finally:
        portal.release()


def test_portal_is_shared_and_closes_with_its_last_user():
    first, second = acquire_portal(), acquire_portal()
    assert first is second
    first.release()
    assert second.call(add, 1, 1) == 2
    second.release()
    with pytest.raises(UsageError, match=r"^the portal is closed; open the env or the backend again$"):
        second.call(add, 1, 1)
    with pytest.raises(UsageError, match=r"^the portal was released more often than it was acquired$"):
        second.release()
    third = acquire_portal()
    assert third.call(add, 2, 2) == 4
    third.release()
    assert not [thread for thread in threading.enumerate() if thread.name == "instructgym-portal"]


def test_blocking_call_from_the_portals_own_loop_is_refused():
    portal = Portal()

    async def reenter() -> None:
        portal.call(add, 1, 2)

    with pytest.raises(UsageError, match=r"await the coroutine instead"):
        portal.call(reenter)
    portal.close()


def test_closers_run_before_the_loop_ends_and_can_be_undone():
    portal = Portal()
    ran: list[str] = []

    async def closer(name: str) -> None:
        ran.append(name)

    portal.at_close(lambda: closer("kept"))
    portal.at_close(lambda: closer("undone"))()
    portal.close()
    portal.close()
    assert ran == ["kept"]


def test_call_that_runs_when_the_portal_closes_is_told_so():
    portal = Portal()
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            portal.call(asyncio.sleep, 60)
        except UsageError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    portal.close()
    thread.join(5)
    assert [str(error) for error in errors] == ["the portal was closed while a call was running on it"]


def test_script_that_never_closes_still_ends_and_its_closers_run():
    done = run_script("""
        import asyncio
        from instructgym.llm_backends.portal import acquire_portal

        async def use_an_executor_and_leave_a_task():
            await asyncio.to_thread(int)
            asyncio.get_running_loop().create_task(asyncio.sleep(1000))

        async def closer():
            print("closed")

        portal = acquire_portal()
        portal.call(use_an_executor_and_leave_a_task)
        portal.at_close(closer)
        print("end")
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\nclosed\n", "")


def test_forked_child_gets_an_error_and_not_a_hang():
    done = run_script("""
        import os, sys, warnings
        warnings.simplefilter("ignore")
        from instructgym.errors import UsageError
        from instructgym.llm_backends.portal import acquire_portal

        async def one():
            return 1

        portal = acquire_portal()
        portal.call(one)
        child = os.fork()
        if child == 0:
            for use in (lambda: portal.call(one), portal.release):
                try:
                    use()
                except UsageError as error:
                    print("create the env inside the worker" in str(error), flush=True)
            print(acquire_portal().call(one), flush=True)  # one of its own is fine
            sys.exit(0)
        print(os.waitpid(child, 0)[1], portal.call(one), flush=True)
    """)
    assert (done.returncode, done.stdout) == (0, "True\nTrue\n1\n0 1\n"), done.stderr


def test_keyboard_interrupt_cancels_the_coroutine_and_propagates_within_a_second():
    script = """
        import asyncio
        from instructgym.llm_backends.portal import acquire_portal

        async def long():
            print("started", flush=True)
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                print("cancelled", flush=True)
                raise

        acquire_portal().call(long)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    out, err = process.communicate(timeout=10)
    assert time.monotonic() - start < 5.0
    assert out == "cancelled\n"
    assert "KeyboardInterrupt" in err
    assert process.returncode != 0

import inspect
import math
import subprocess
import sys
import time
import types

import turnwise
from turnwise import AsyncClient, AsyncDialogue, AsyncTurn, Client, Dialogue, Turn
from turnwise.testing import FakeActor

PUBLIC = {
    "AsyncClient",
    "AsyncDialogue",
    "AsyncTurn",
    "Client",
    "Dialogue",
    "Domain",
    "PolicyVersion",
    "Receipt",
    "Turn",
    "TurnwiseError",
}


def members(module):
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }


def test_all_is_sorted_and_names_what_is_there():
    assert turnwise.__all__ == sorted(turnwise.__all__)
    assert set(turnwise.__all__) == members(turnwise)
    assert set(turnwise.__all__) >= PUBLIC


def test_every_exported_name_says_what_it_is():
    for name in turnwise.__all__:
        assert getattr(turnwise, name).__doc__, name


def test_every_public_method_has_a_docstring():
    for kind in (Client, Dialogue, Turn, AsyncClient, AsyncDialogue, AsyncTurn, FakeActor):
        for name, value in inspect.getmembers(kind):
            if not name.startswith("_"):
                assert inspect.getdoc(value), f"{kind.__name__}.{name}"


def names_and_signatures(kind):
    found = {}
    for name, value in inspect.getmembers(kind):
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(value, property):
            found[name] = "property"
        elif callable(value):
            parameters = inspect.signature(value).parameters.values()
            found[name] = [(each.name, each.kind, each.default) for each in parameters]
    return found


def test_the_twins_have_the_same_names_and_signatures():
    for blocking, awaited in ((Client, AsyncClient), (Dialogue, AsyncDialogue), (Turn, AsyncTurn)):
        assert names_and_signatures(blocking) == names_and_signatures(awaited)


def test_what_goes_to_the_wire_is_awaited():
    for kind, names in (
        (AsyncClient, ("domain", "feedback", "close")),
        (AsyncDialogue, ("act", "end")),
        (AsyncTurn, ("reward", "correct", "retract", "overridden", "dropped")),
    ):
        for name in names:
            assert inspect.iscoroutinefunction(getattr(kind, name)), name


def python(code, *arguments):
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_importing_it_loads_neither_numpy_nor_torch_nor_ray():
    code = "import sys, turnwise, turnwise.testing; print(*sys.modules)"
    done = python(code)
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"numpy", "torch", "ray", "gymnasium", "pydantic", "yaml", "click", "rich"}
    assert {"grpc", "google", "turnwise"} <= loaded


def test_importing_it_is_quick():
    code = "import time; t = time.perf_counter(); import turnwise; print(time.perf_counter() - t)"
    assert min(float(python(code).stdout) for _ in range(3)) < 0.5


def test_a_program_that_forgets_to_close_ends_in_good_order():
    code = """
import sys, turnwise
bot = turnwise.Client(sys.argv[1])
print(bot.dialogue().act(text="hello").action)
"""
    with FakeActor() as actor:
        begun = time.monotonic()
        done = python(code, actor.address)
        assert (done.returncode, done.stdout, done.stderr) == (0, "greet\n", "")
        assert time.monotonic() - begun < 10


def test_ctrl_c_ends_a_waiting_call_and_the_program():
    code = """
import signal, sys, threading, turnwise
timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
try:
    with turnwise.Client(sys.argv[1], timeout=20) as bot:
        timer.start()
        bot.dialogue().act(text="hello")
except KeyboardInterrupt:
    print("interrupted")
"""
    with FakeActor() as actor:
        actor.delay(math.inf)
        begun = time.monotonic()
        done = python(code, actor.address)
        assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")
        assert time.monotonic() - begun < 10

"""What public calls say before `init()` and after `shutdown()`: asked in a process of its own.

As tests/faults/test_not_initialized.py does for ringdp and ringdp.torch, in the environment that has the framework.
"""

import json
import subprocess
import sys

from driver.environ import environment

LIMIT = 100  # seconds
WHEN = ("before", "after")
ASK = """
import json, sys
import ringdp

package, when, setup, calls = json.loads(sys.argv[1])
names = {}
exec(setup, names)
names.update({name: getattr(sys.modules[package], name) for name in sys.modules[package].__all__})
if when == "after":
    ringdp.init()
    ringdp.shutdown()
found = {}
for call in calls:
    try:
        eval(call, names)
        found[call] = "works"
    except BaseException as error:
        found[call] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


def calls(text):
    """Those of a table: between bars, or on lines of their own."""
    return [call.strip() for line in text.strip().splitlines() for call in line.split("|")]


def check(package, when, setup, need_a_job, do_not):
    """Ask each call, whose names are the package's and those that `setup` makes."""
    asked = json.dumps([package.__name__, when, setup, calls(need_a_job) + calls(do_not)])
    done = subprocess.run(
        [sys.executable, "-c", ASK, asked], env=environment(), capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    for call in calls(need_a_job):
        answer = answers[call]
        assert "NotInitializedError: " in answer and "ringdp.init() first" in answer, (call, answer)
    assert {call: answers[call] for call in calls(do_not)} == dict.fromkeys(calls(do_not), "works")


def check_tables(package, texts, elsewhere):
    """Each public name is in one of the tables, is an error, or has a test elsewhere."""
    known = {call.split("(")[0] for text in texts for call in calls(text)} | elsewhere
    public = {name: getattr(package, name) for name in package.__all__}
    errors = {n for n, v in public.items() if isinstance(v, type) and issubclass(v, BaseException)}
    assert set(public) - errors - known == set()

"""Where an iteration ends, and which signals are meant."""

import signal

import pytest

from ringdp import signals
from ringdp.errors import UsageError
from ringdp.preempt import Rounds


@pytest.mark.parametrize(
    ("steps", "asked", "ends"),
    [
        ("AAAA", 0, 0),
        ("ABABAB", 2, 3),  # asked before A's step: B's still belongs to it
        ("ABABAB", 3, 3),
        ("ABABAB", 0, 2),  # in the first round nobody knows: an optimizer has stepped again
        ("AABAABAAB", 4, 4),
        ("ABCABCABC", 4, 5),
        ("ABABBB", 4, 4),
        ("ABCDCDCD", 4, 5),
    ],
)
def test_where_an_iteration_ends(steps, asked, ends):
    rounds = Rounds()
    is_only = len(set(steps)) == 1
    found = [
        n
        for n, optimizer in enumerate(steps)
        if rounds.stepped(optimizer, is_only, n >= asked) and n >= asked
    ]
    assert found[0] == ends


def test_names_of_signals():
    assert signals.wanted({}) == [signal.SIGTERM, signal.SIGUSR1]
    assert signals.wanted({"RINGDP_PREEMPT_SIGNALS": " sigusr2, term"}) == [signal.SIGUSR2, signal.SIGTERM]
    assert signals.wanted({"RINGDP_PREEMPT_SIGNALS": "None"}) == []
    for text, why in {
        "USR3": "'USR3' is no signal",
        "TERM,": "'' is no signal",
        "STOP": "cannot be caught",
    }.items():
        with pytest.raises(UsageError, match=why):
            signals.wanted({"RINGDP_PREEMPT_SIGNALS": text})

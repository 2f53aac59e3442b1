"""The state machine of a run, pure: a state and a fact in, a `Commit` out.

Nothing here awaits, reads a clock or sees a store. `moves` says what a run needs next, `steps` is the life of a step
and `parallel` that of one with several effects, `attempts` what both are made of, `waits` how a run comes to wait
and goes on, `messages` how one reaches it, `control` what others do to it, `restore` the way back to an earlier state;
`state` holds what they share.
"""

from .attempts import in_flight, span
from .control import (
    UNKNOWN_OUTCOME,
    adopt,
    answer,
    ask_unknown,
    cancel,
    create,
    decide_unknown,
    pause,
    quarantine,
    retry_failed,
    set_limits,
    unpause,
)
from .elsewhere import elsewhere
from .messages import deliver
from .moves import Answer, Ask, Busy, Deliver, Later, Move, Perform, Rest, Wake, next_move
from .parallel import (
    PARALLEL,
    at_seq,
    begun_record,
    ended_record,
    failure_of,
    intents_of,
    known_by,
    landing,
    park,
    reuse,
    settle_all,
)
from .restore import fork, forked_vars, next_seq, restore
from .state import Stamp, restore_seq, seq_of
from .steps import (
    claim,
    complete,
    fail_node,
    hand_back,
    inside,
    intent_of,
    late,
    lost,
    move,
    node_failed,
    promise,
    retry,
    reused,
    settle,
)
from .waits import check_answer, expire, resume, same_answer, wait_of

__all__ = [
    "PARALLEL",
    "UNKNOWN_OUTCOME",
    "Answer",
    "Ask",
    "Busy",
    "Deliver",
    "Later",
    "Move",
    "Perform",
    "Rest",
    "Stamp",
    "Wake",
    "adopt",
    "answer",
    "ask_unknown",
    "at_seq",
    "begun_record",
    "cancel",
    "check_answer",
    "claim",
    "complete",
    "create",
    "decide_unknown",
    "deliver",
    "elsewhere",
    "ended_record",
    "expire",
    "fail_node",
    "failure_of",
    "fork",
    "forked_vars",
    "hand_back",
    "in_flight",
    "inside",
    "intent_of",
    "intents_of",
    "known_by",
    "landing",
    "late",
    "lost",
    "move",
    "next_move",
    "next_seq",
    "node_failed",
    "park",
    "pause",
    "promise",
    "quarantine",
    "restore",
    "restore_seq",
    "resume",
    "retry",
    "retry_failed",
    "reuse",
    "reused",
    "same_answer",
    "seq_of",
    "set_limits",
    "settle",
    "settle_all",
    "span",
    "unpause",
    "wait_of",
]

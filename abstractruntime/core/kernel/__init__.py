"""The state machine of a run, pure: a state and a fact in, a `Commit` out.

Nothing here awaits, reads a clock or sees a store. `moves` says what a run needs next, `steps` is the life of a step,
`waits` how a run comes to wait and goes on, `control` what others do to it; `state` holds what they share.
"""

from .control import (
    UNKNOWN_OUTCOME,
    adopt,
    answer,
    ask_unknown,
    cancel,
    create,
    decide_unknown,
    pause,
    set_limits,
    unpause,
)
from .moves import Answer, Ask, Busy, Later, Move, Perform, Rest, Wake, next_move
from .state import Stamp, restore_seq, seq_of
from .steps import (
    claim,
    complete,
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
    "UNKNOWN_OUTCOME",
    "Answer",
    "Ask",
    "Busy",
    "Later",
    "Move",
    "Perform",
    "Rest",
    "Stamp",
    "Wake",
    "adopt",
    "answer",
    "ask_unknown",
    "cancel",
    "check_answer",
    "claim",
    "complete",
    "create",
    "decide_unknown",
    "expire",
    "hand_back",
    "inside",
    "intent_of",
    "late",
    "lost",
    "move",
    "next_move",
    "node_failed",
    "pause",
    "promise",
    "restore_seq",
    "resume",
    "retry",
    "reused",
    "same_answer",
    "seq_of",
    "set_limits",
    "settle",
    "unpause",
    "wait_of",
]

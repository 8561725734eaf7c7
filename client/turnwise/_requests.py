"""Builds requests from what callers give.

Whatever can be known to be wrong without the server is refused here, naming the argument, the value
and what is wanted. What depends on the domain is the server's to judge: it may have grown.
"""

import math
import sys
import threading
import time
import uuid
from array import array
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from turnwise._errors import invalid
from turnwise.v1 import dialogue_pb2 as pb

Request: TypeAlias = (
    pb.StartDialogueRequest | pb.ActRequest | pb.FeedbackRequest | pb.EndRequest | pb.DescribeDomainRequest
)
SlotValue: TypeAlias = str | float | bool | None

MODES = MappingProxyType({"teach": pb.TEACH, "serve": pb.SERVE, "shadow": pb.SHADOW, "evaluate": pb.EVALUATE})
TERMINATING = ("success", "failure", "goodbye")
TRUNCATING = ("idle", "handoff", "limit", "abandoned")
OUTCOMES = TERMINATING + TRUNCATING

_MAX_ID_BYTES = 128
_MAX_COMMENT_BYTES = 4096
_MAX_OBSERVATION_BYTES = 3 * 1024 * 1024


def new_id() -> str:
    """32 hex digits, random: a dialogue, request or feedback id."""
    return uuid.uuid4().hex


class Revisions:
    """Milliseconds since the epoch, strictly increasing over the life of one client; thread-safe."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def next(self) -> int:
        """A revision higher than every one before."""
        with self._lock:
            self._last = max(self._last + 1, time.time_ns() // 1_000_000)
            return self._last


def checked_timeout(timeout: object) -> float:
    """Seconds that a call may take.

    Raises:
        InvalidRequest: It is not a finite number above 0.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise invalid("timeout", timeout, "seconds above 0")
    return float(timeout)


def start_request(dialogue_id: str, user: str, mode: str) -> pb.StartDialogueRequest:
    """A checked StartDialogueRequest.

    Raises:
        InvalidRequest: The id is empty or over 128 bytes, or the mode is unknown.
    """
    if mode not in MODES:
        raise invalid("mode", mode, f"one of {', '.join(MODES)}")
    _check_text("id", dialogue_id, _MAX_ID_BYTES, empty=False)
    _check_text("user", user, _MAX_ID_BYTES)
    return pb.StartDialogueRequest(dialogue_id=dialogue_id, user=user, mode=MODES[mode])


def observation(
    text: str | None, slots: Mapping[str, SlotValue] | None, features: Iterable[float] | None
) -> pb.Observation:
    """A checked Observation.

    Raises:
        InvalidRequest: A value is of the wrong type, NaN or infinite.
    """
    seen = pb.Observation(features=_float32("features", features))
    if text is not None:
        seen.text = _utf8("text", text)
    if slots is not None and not isinstance(slots, Mapping):
        raise invalid("slots", slots, "a mapping from slot name to str, number or bool")
    for name, value in (slots or {}).items():
        if value is not None:
            seen.slots.append(_slot(_utf8("slots", name), value))
    if seen.ByteSize() > _MAX_OBSERVATION_BYTES:  # it would break the stream it shares with others
        raise invalid("observation", f"{seen.ByteSize()} bytes", f"at most {_MAX_OBSERVATION_BYTES}")
    return seen


def act_request(token: bytes, seen: pb.Observation, allowed: Sequence[str] | None) -> pb.ActRequest:
    """A checked ActRequest with a request id of its own.

    Raises:
        InvalidRequest: `allowed` is empty or no sequence of ids.
    """
    return pb.ActRequest(token=token, observation=seen, allowed=_allowed(allowed), request_id=new_id())


def feedback_request(
    revision: int,
    dialogue_id: str,
    decision_id: str,
    *,
    token: bytes = b"",
    reward: float | None = None,
    correction: str | None = None,
    retract: bool = False,
    comment: str = "",
    teacher: str = "",
) -> pb.FeedbackRequest:
    """A checked FeedbackRequest: one of reward, correction, retract, or a comment alone.

    Raises:
        InvalidRequest: None or several of them, a reward that is no finite number, or a correction
            without a decision to correct.
    """
    request = _feedback(revision, dialogue_id, decision_id, token)
    given = [
        name
        for name, there in (
            ("reward", reward is not None),
            ("correction", correction is not None),
            ("retract", retract),
        )
        if there
    ]
    if len(given) > 1 or (not given and not comment):
        got = " and ".join(given) or "none of them"
        raise invalid("feedback", got, "exactly one of reward, correction, retract, or a comment alone")
    _check_text("teacher", teacher, _MAX_ID_BYTES)
    _check_text("comment", comment, _MAX_COMMENT_BYTES)
    request.teacher, request.comment = teacher, comment
    if reward is not None:
        request.reward = _number("reward", reward)
    elif correction is not None:
        if not decision_id:
            raise invalid("decision_id", decision_id, "the decision that the correction is for")
        request.correction = _action("correction", correction)
    elif retract:
        request.retraction.SetInParent()
    else:
        request.comment_only.SetInParent()
    return request


def overridden_request(
    revision: int, dialogue_id: str, decision_id: str, token: bytes, action: str, probability: float | None
) -> pb.FeedbackRequest:
    """Says that another action went out.

    Raises:
        InvalidRequest: The action is no id, or the probability is not in (0, 1].
    """
    request = _feedback(revision, dialogue_id, decision_id, token)
    request.overridden.action = _action("action", action)
    if probability is not None:
        number = _number("probability", probability)
        if not 0 < number <= 1:
            raise invalid("probability", probability, "a number in (0, 1], or None if unknown")
        request.overridden.probability = number
    return request


def dropped_request(revision: int, dialogue_id: str, decision_id: str, token: bytes) -> pb.FeedbackRequest:
    """Says that nothing went out."""
    request = _feedback(revision, dialogue_id, decision_id, token)
    request.dropped.SetInParent()
    return request


def end_request(
    revision: int, token: bytes, outcome: str, reward: float | None, last_state: pb.Observation | None
) -> pb.EndRequest:
    """A checked EndRequest.

    Raises:
        InvalidRequest: The outcome is unknown, or the reward is no finite number.
    """
    if outcome not in OUTCOMES:
        wanted = f"one of {', '.join(TERMINATING)} (terminates), {', '.join(TRUNCATING)} (truncates)"
        raise invalid("outcome", outcome, wanted)
    return pb.EndRequest(
        token=token,
        outcome=outcome,
        reward=None if reward is None else _number("reward", reward),
        last_state=last_state,
        request_id=new_id(),
        revision=revision,
    )


def _feedback(revision: int, dialogue_id: str, decision_id: str, token: bytes) -> pb.FeedbackRequest:
    _check_text("dialogue_id", dialogue_id, _MAX_ID_BYTES, empty=False)
    _check_text("decision_id", decision_id, _MAX_ID_BYTES)
    return pb.FeedbackRequest(
        dialogue_id=dialogue_id,
        decision_id=decision_id,
        token=token,
        feedback_id=new_id(),
        revision=revision,
    )


def _slot(name: str, value: SlotValue) -> pb.Slot:
    value = _plain(value)
    if isinstance(value, bool):
        return pb.Slot(name=name, flag=value)
    if isinstance(value, str):
        return pb.Slot(name=name, category=_utf8(f"slots[{name}]", value))
    return pb.Slot(name=name, number=_number(f"slots[{name}]", value, "a str, a bool or a finite number"))


def _number(field: str, value: Any, wanted: str = "a finite number") -> float:
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise invalid(field, value, wanted)
    return float(value)


def _plain(value: Any) -> Any:
    """A scalar of an array library as Python's own; anything else as it is."""
    if not isinstance(value, str | int | float) and callable(getattr(value, "item", None)):
        try:
            return value.item()
        except (TypeError, ValueError):  # more than one element: no scalar, and refused as such
            return value
    return value


def _float32(field: str, values: Iterable[float] | None) -> bytes:
    """Little-endian float32 of a sequence, or of a one-dimensional buffer of floats."""
    if values is None:
        return b""
    wanted = "a flat sequence of finite floats"
    if isinstance(values, str | bytes | bytearray | Mapping):
        raise invalid(field, values, wanted)
    floats = array("f")
    try:
        floats.extend(iter(values))
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a row of a torch tensor
        raise invalid(field, values, wanted) from None
    for index, value in enumerate(floats):
        if not math.isfinite(value):
            raise invalid(f"{field}[{index}]", value, "a finite float32")
    if sys.byteorder == "big":
        floats.byteswap()
    return floats.tobytes()


def _allowed(allowed: Sequence[str] | None) -> list[str]:
    if allowed is None:
        return []
    wanted = "at least one action id, or None for all"
    if isinstance(allowed, str) or not isinstance(allowed, Iterable):
        raise invalid("allowed", allowed, f"a sequence of {wanted}")
    ids = list(allowed)
    if not ids:  # on the wire an empty list means all actions
        raise invalid("allowed", allowed, wanted)
    return [_action("allowed", action) for action in ids]


def _action(field: str, action: object) -> str:
    if not action:
        raise invalid(field, action, "an action id")
    return _utf8(field, action)


def _check_text(field: str, value: object, limit: int, *, empty: bool = True) -> None:
    low = 0 if empty else 1
    if not low <= len(_utf8(field, value).encode()) <= limit:
        raise invalid(field, value, f"{low} to {limit} bytes of UTF-8")


def _utf8(field: str, value: object) -> str:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:  # a lone surrogate, which the wire cannot carry
            pass
        else:
            return value
    raise invalid(field, value, "a str of valid Unicode")

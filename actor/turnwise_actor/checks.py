"""What is wrong with a request: every violation of it at once, with the value got and the values wanted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from turnwise.v1 import dialogue_pb2
from turnwise_actor.errors import BadRequestError, Violation
from turnwise_actor.facts import TERMINATED, TRUNCATED
from turnwise_actor.policy import Domain, Encoder, EncodingError, RawObservation
from turnwise_actor.policy.domain_file import did_you_mean

MAX_ID_BYTES = 128
MAX_REQUEST_ID_BYTES = 64
MAX_TEXT_BYTES = 8_192
MAX_REVISION = 2**63 - 1
MAX_COMMENT_BYTES = 4_096
_SHOWN_CHARACTERS = 40
_SHOWN_NAMES = 20


class Checks:
    """Checks requests against one domain; each method raises BadRequestError."""

    def __init__(self, domain: Domain, encoder: Encoder, max_token_bytes: int) -> None:
        self._domain = domain
        self._encoder = encoder
        self._max_token_bytes = max_token_bytes

    def token(self, token: bytes, *, optional: bool = False) -> None:
        """Size of a token; what it says is for `Tokens.open`."""
        if (token or optional) and len(token) <= self._max_token_bytes:
            return
        wanted = f"1 to {self._max_token_bytes} bytes, from StartDialogueReply or the last Turn"
        raise BadRequestError([Violation("token", f"{len(token)} bytes", wanted)])

    def start(self, request: dialogue_pb2.StartDialogueRequest) -> None:
        """A request to begin a dialogue."""
        _refuse(
            [
                *_size("dialogue_id", request.dialogue_id, 1, MAX_ID_BYTES),
                *_size("user", request.user, 0, MAX_ID_BYTES),
                *_mode(request.mode),
            ]
        )

    def act(self, request: dialogue_pb2.ActRequest) -> RawObservation:
        """A turn; returns its observation as the encoder takes it."""
        raw, violations = self._observation("observation", request.observation)
        for name in dict.fromkeys(request.allowed):
            violations += self._action("allowed", name)
        violations += _size("request_id", request.request_id, 1, MAX_REQUEST_ID_BYTES)
        _refuse(violations)
        return raw

    def feedback(self, request: dialogue_pb2.FeedbackRequest) -> None:
        """Feedback or a delivery."""
        violations = [
            *_size("dialogue_id", request.dialogue_id, 1, MAX_ID_BYTES),
            *_decision_id(request.decision_id),
            *_size("feedback_id", request.feedback_id, 1, MAX_REQUEST_ID_BYTES),
            *_revision(request.revision),
            *_size("teacher", request.teacher, 0, MAX_ID_BYTES),
            *_size("comment", request.comment, 0, MAX_COMMENT_BYTES),
            *self._kind(request),
        ]
        _refuse(violations)

    def end(self, request: dialogue_pb2.EndRequest) -> None:
        """The end of a dialogue."""
        violations = _size("request_id", request.request_id, 1, MAX_REQUEST_ID_BYTES)
        violations += _revision(request.revision)
        if request.outcome not in (*TERMINATED, *TRUNCATED):
            wanted = f"{', '.join(TERMINATED)} (terminated) or {', '.join(TRUNCATED)} (truncated)"
            violations.append(Violation("outcome", _shown(request.outcome), wanted))
        if request.HasField("reward"):
            violations += self._reward(request.reward)
        if request.HasField("last_state"):
            violations += self._observation("last_state", request.last_state)[1]
        _refuse(violations)

    def _kind(self, request: dialogue_pb2.FeedbackRequest) -> list[Violation]:
        kind = request.WhichOneof("kind")
        violations = []
        if kind is None:
            wanted = "one of reward, correction, retraction, comment_only, overridden, dropped"
            violations.append(Violation("kind", "none", wanted))
        elif kind == "reward":
            violations += self._reward(request.reward)
        elif kind == "correction":
            violations += self._action("correction", request.correction)
        elif kind == "overridden":
            violations += self._overridden(request.overridden)
        if kind in ("correction", "overridden", "dropped") and not request.decision_id:
            wanted = f"the decision_id of the turn that the {kind} is about"
            violations.append(Violation("decision_id", "''", wanted))
        return violations

    def _overridden(self, overridden: dialogue_pb2.Overridden) -> list[Violation]:
        violations = self._action("overridden.action", overridden.action)
        if overridden.HasField("probability") and not 0.0 < overridden.probability <= 1.0:
            got = repr(overridden.probability)
            violations.append(Violation("overridden.probability", got, "a number in (0, 1], or none"))
        return violations

    def _reward(self, reward: float) -> list[Violation]:
        low, high = self._domain.rewards.range
        if low <= reward <= high:
            return []
        return [Violation("reward", repr(reward), f"{low:g} to {high:g}, the domain's rewards.range")]

    def _action(self, field: str, name: str) -> list[Violation]:
        known = self._domain.action_ids
        if name in self._domain.action_index:
            return []
        wanted = f"an action of the domain: {_names(known)}{did_you_mean(name[:MAX_ID_BYTES], known)}"
        return [Violation(field, _shown(name), wanted)]

    def _observation(
        self, field: str, observation: dialogue_pb2.Observation
    ) -> tuple[RawObservation, list[Violation]]:
        """The observation as the encoder takes it, and what is wrong with it."""
        violations = []
        if len(observation.text.encode()) > MAX_TEXT_BYTES:
            got = f"{len(observation.text.encode())} bytes"
            violations.append(Violation(f"{field}.text", got, f"at most {MAX_TEXT_BYTES} bytes of UTF-8"))
        slots, slot_violations = _slots(field, observation.slots)
        features, feature_violations = _features(field, observation.features)
        violations += [*slot_violations, *feature_violations]
        raw = RawObservation(
            text=observation.text if observation.HasField("text") else None, slots=slots, features=features
        )
        try:
            self._encoder.validate(raw)
        except EncodingError as error:
            faulty = {each.field for each in violations}
            for each in error.violations:
                path = field + each.field.removeprefix("observation")
                if path not in faulty:
                    violations.append(Violation(path, each.got, each.wanted))
        return raw, violations


def _slots(
    field: str, slots: Iterable[dialogue_pb2.Slot]
) -> tuple[dict[str, str | float | bool], list[Violation]]:
    values: dict[str, str | float | bool] = {}
    violations = []
    for slot in slots:
        kind = slot.WhichOneof("value")
        path = f"{field}.slots[{slot.name[:MAX_ID_BYTES]}]"
        if kind is None:
            violations.append(Violation(path, "no value", "category, number or flag; leave absent slots out"))
        elif slot.name in values:
            violations.append(Violation(path, "the name twice", "at most one entry a name"))
        else:
            values[slot.name] = getattr(slot, kind)
    return values, violations


def _features(field: str, packed: bytes) -> tuple[np.ndarray | None, list[Violation]]:
    if not packed:
        return None, []
    if len(packed) % 4:
        wanted = "little-endian float32, 4 bytes each"
        return None, [Violation(f"{field}.features", f"{len(packed)} bytes", wanted)]
    return np.frombuffer(packed, dtype="<f4"), []


def _mode(mode: int) -> list[Violation]:
    known = dialogue_pb2.Mode.values()
    if mode in known:
        return []
    wanted = "TEACH, SERVE, SHADOW or EVALUATE (1 to 4; 0 is taken as TEACH)"
    return [Violation("mode", str(mode), wanted)]


def _decision_id(decision_id: str) -> list[Violation]:
    if not decision_id or (len(decision_id) == 32 and set(decision_id) <= set("0123456789abcdef")):
        return []
    wanted = "32 lower-case hex digits from Turn.decision_id, or nothing for the whole dialogue"
    return [Violation("decision_id", _shown(decision_id), wanted)]


def _revision(revision: int) -> list[Violation]:
    if revision <= MAX_REVISION:
        return []
    return [Violation("revision", str(revision), f"at most {MAX_REVISION}: milliseconds since the epoch")]


def _size(field: str, text: str, least: int, most: int) -> list[Violation]:
    size = len(text.encode())
    if least <= size <= most:
        return []
    return [Violation(field, f"{size} bytes", f"{least} to {most} bytes of UTF-8")]


def _refuse(violations: Sequence[Violation]) -> None:
    if violations:
        raise BadRequestError(violations)


def _shown(value: str) -> str:
    if len(value) > _SHOWN_CHARACTERS:
        return f"{value[:_SHOWN_CHARACTERS]!r}… ({len(value)} characters)"
    return repr(value)


def _names(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")

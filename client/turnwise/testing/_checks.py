"""What a fake actor refuses, and how it says so."""

import math
import struct
from collections.abc import Sequence
from typing import TypeAlias

import grpc

from turnwise._requests import OUTCOMES
from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1 import status_pb2

SlotKind: TypeAlias = "Sequence[str] | type[float] | type[bool]"


class Refusal(Exception):
    """An answer that is a status."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        reason: str = "",
        violations: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status_pb2.Status(code=code.value[0], message=message)
        if violations:
            listed = [status_pb2.BadRequest.FieldViolation(field=f, description=d) for f, d in violations]
            self._attach("google.rpc.BadRequest", status_pb2.BadRequest(field_violations=listed))
        if reason:
            self._attach("google.rpc.ErrorInfo", status_pb2.ErrorInfo(reason=reason, domain="turnwise"))

    def _attach(self, name: str, detail: status_pb2.BadRequest | status_pb2.ErrorInfo) -> None:
        self.status.details.add(type_url=f"type.googleapis.com/{name}", value=detail.SerializeToString())


class Checks:
    """What an actor refuses with INVALID_ARGUMENT; every violation is named."""

    def __init__(self, domain: pb.DomainDescription, any_slot: bool) -> None:
        self.actions = [action.id for action in domain.actions]
        self._domain = domain
        self._slots = None if any_slot else {slot.name: slot for slot in domain.slots}

    def start(self, request: pb.StartDialogueRequest) -> None:
        wrong = self._size("dialogue_id", request.dialogue_id, 1, 128) + self._size(
            "user", request.user, 0, 128
        )
        if request.mode not in pb.Mode.values():
            wrong.append(("mode", f"got {request.mode}; wanted one of {', '.join(pb.Mode.keys())}"))
        refuse(wrong)

    def act(self, request: pb.ActRequest) -> None:
        wrong = self._observation("observation", request.observation)
        wrong += [each for action in request.allowed for each in self._action("allowed", action)]
        refuse(wrong + self._size("request_id", request.request_id, 1, 64))

    def feedback(self, request: pb.FeedbackRequest) -> None:
        wrong = self._size("dialogue_id", request.dialogue_id, 1, 128)
        wrong += self._size("feedback_id", request.feedback_id, 1, 64)
        wrong += self._size("comment", request.comment, 0, 4096)
        kind = request.WhichOneof("kind")
        if kind is None:
            wrong.append(("kind", "got none; wanted a reward, a correction, …"))
        elif kind == "reward":
            wrong += self._reward(request.reward)
        elif kind == "correction":
            wrong += self._action("correction", request.correction)
        elif kind == "overridden":
            wrong += self._action("overridden.action", request.overridden.action)
            if request.overridden.HasField("probability") and not 0 < request.overridden.probability <= 1:
                got = request.overridden.probability
                wrong.append(("overridden.probability", f"got {got}; wanted a number in (0, 1]"))
        if not request.revision:
            wrong.append(("revision", "got 0; wanted milliseconds since the epoch"))
        refuse(wrong)

    def end(self, request: pb.EndRequest) -> None:
        wrong = self._size("request_id", request.request_id, 1, 64)
        if request.outcome not in OUTCOMES:
            wrong.append(("outcome", f"got {request.outcome!r}; wanted one of {', '.join(OUTCOMES)}"))
        if request.HasField("reward"):
            wrong += self._reward(request.reward)
        if request.HasField("last_state"):
            wrong += self._observation("last_state", request.last_state)
        refuse(wrong)

    def _observation(self, path: str, seen: pb.Observation) -> list[tuple[str, str]]:
        wrong = []
        if len(seen.features) != 4 * self._domain.features:
            got, wanted = len(seen.features) / 4, self._domain.features
            wrong.append((f"{path}.features", f"got {got:g} floats; wanted {wanted}"))
        elif not all(map(math.isfinite, struct.unpack(f"<{self._domain.features}f", seen.features))):
            wrong.append((f"{path}.features", "got NaN or an infinity; wanted finite floats"))
        names = [slot.name for slot in seen.slots]
        for slot in seen.slots:
            field = f"{path}.slots[{slot.name}]"
            if names.count(slot.name) > 1:
                wrong.append((field, "got it twice; wanted one entry a name"))
            wrong += self._slot(field, slot)
        return wrong

    def _slot(self, field: str, slot: pb.Slot) -> list[tuple[str, str]]:
        got = slot.WhichOneof("value")
        if got == "number" and not math.isfinite(slot.number):
            return [(field, f"got {slot.number}; wanted a finite number")]
        if self._slots is None:
            return [] if got else [(field, "got no value; wanted one")]
        if slot.name not in self._slots:
            return [(field, f"got {slot.name!r}; wanted one of {', '.join(self._slots)}")]
        wanted = self._slots[slot.name].type
        if got != {"bool": "flag"}.get(wanted, wanted):
            return [(field, f"got {got}; wanted {wanted}")]
        return []

    def _action(self, field: str, action: str) -> list[tuple[str, str]]:
        if action in self.actions:
            return []
        return [(field, f"got {action!r}; wanted one of {', '.join(self.actions)}")]

    def _reward(self, reward: float) -> list[tuple[str, str]]:
        low, high = self._domain.reward_min, self._domain.reward_max
        return [] if low <= reward <= high else [("reward", f"got {reward}; wanted {low:g} to {high:g}")]

    def _size(self, field: str, text: str, low: int, high: int) -> list[tuple[str, str]]:
        size = len(text.encode())
        return [] if low <= size <= high else [(field, f"got {size} bytes; wanted {low} to {high}")]


def refuse(violations: list[tuple[str, str]]) -> None:
    if violations:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "invalid request", violations=violations)

import re

import grpc
import pytest

import turnwise
from turnwise import _errors
from turnwise._errors import error_from_rpc, error_from_status
from turnwise.testing import FakeActor
from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1 import dialogue_pb2_grpc, status_pb2

CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
EXPECTED = {
    "CANCELLED": turnwise.Cancelled,
    "UNKNOWN": turnwise.ServerFault,
    "INVALID_ARGUMENT": turnwise.InvalidRequest,
    "DEADLINE_EXCEEDED": turnwise.DeadlineExceeded,
    "NOT_FOUND": turnwise.NotFound,
    "ALREADY_EXISTS": turnwise.Conflict,
    "PERMISSION_DENIED": turnwise.AccessDenied,
    "RESOURCE_EXHAUSTED": turnwise.Overloaded,
    "FAILED_PRECONDITION": turnwise.NotReady,
    "ABORTED": turnwise.Conflict,
    "OUT_OF_RANGE": turnwise.InvalidRequest,
    "UNIMPLEMENTED": turnwise.NotSupported,
    "INTERNAL": turnwise.ServerFault,
    "UNAVAILABLE": turnwise.ActorUnavailable,
    "DATA_LOSS": turnwise.ServerFault,
    "UNAUTHENTICATED": turnwise.AccessDenied,
}
REASONS = {
    ("TOKEN_INVALID", "PERMISSION_DENIED"): turnwise.TokenRejected,
    ("TOKEN_FOREIGN", "PERMISSION_DENIED"): turnwise.TokenRejected,
    ("TOKEN_EXPIRED", "FAILED_PRECONDITION"): turnwise.TokenExpired,
    ("DIALOGUE_ENDED", "FAILED_PRECONDITION"): turnwise.DialogueEnded,
    ("NO_POLICY", "UNAVAILABLE"): turnwise.ActorUnavailable,
    ("DRAINING", "UNAVAILABLE"): turnwise.ActorUnavailable,
    ("NOT_RECORDED", "UNAVAILABLE"): turnwise.ActorUnavailable,
}


@pytest.fixture(scope="module", params=[True, False], ids=["converse", "unary"])
def refusing(request):
    with FakeActor(converse=request.param) as actor, turnwise.Client(actor.address) as bot:
        yield actor, bot


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_every_status_maps(code, refusing):
    actor, bot = refusing
    talk = bot.dialogue()
    talk.act(text="hello")
    actor.refuse(code, "because", times=1000)
    try:
        with pytest.raises(turnwise.TurnwiseError) as caught:
            talk.act(text="hello", timeout=1)
    finally:
        actor.refuse(code, times=0)
    assert type(caught.value) is EXPECTED[code.name]
    assert caught.value.code is code
    assert "because" in str(caught.value)


@pytest.mark.parametrize(("reason", "code"), REASONS)
def test_every_reason_maps(reason, code, refusing):
    actor, bot = refusing
    talk = bot.dialogue()
    talk.act(text="hello")
    actor.refuse(grpc.StatusCode[code], "because", reason, times=1000)
    try:
        with pytest.raises(turnwise.TurnwiseError) as caught:
            talk.act(text="hello", timeout=1)
    finally:
        actor.refuse(grpc.StatusCode[code], times=0)
    assert type(caught.value) is REASONS[reason, code]
    assert caught.value.reason == reason
    assert reason in str(caught.value)


def test_the_tree_in_the_docstring_is_the_tree():
    drawn = re.findall(r"^ {4}([│├└─ ]*)(\w+)", _errors.__doc__ or "", re.MULTILINE)
    path = []
    for indent, name in drawn:
        depth = len(indent) // 4
        kind = getattr(turnwise, name)
        assert issubclass(kind, path[depth - 1] if depth else Exception)
        path[depth:] = [kind]
    named = {getattr(turnwise, name) for name in turnwise.__all__}
    errors = {each for each in named if isinstance(each, type) and issubclass(each, Exception)}
    assert errors == {getattr(turnwise, name) for _, name in drawn}


def test_an_unknown_code_is_read_as_unknown():
    error = error_from_status(status_pb2.Status(code=99, message="new"))
    assert type(error) is turnwise.ServerFault
    assert error.code is grpc.StatusCode.UNKNOWN


def test_ok_is_no_error():
    with pytest.raises(ValueError, match="OK"):
        error_from_status(status_pb2.Status(code=0))


def test_details_that_cannot_be_read_take_nothing_away():
    status = status_pb2.Status(code=3, message="bad")
    status.details.add(type_url="type.googleapis.com/google.rpc.BadRequest", value=b"\xff\xff")
    status.details.add(type_url="type.googleapis.com/google.rpc.Help", value=b"\xff")
    error = error_from_status(status)
    assert type(error) is turnwise.InvalidRequest
    assert error.violations == ()


class BrokenRpc(grpc.RpcError):
    def __init__(self, *metadata):
        self._metadata = metadata

    def code(self):
        return grpc.StatusCode.UNAVAILABLE

    def details(self):
        return "the proxy says no"

    def trailing_metadata(self):
        return self._metadata


@pytest.mark.parametrize("details", [b"\xff\xff", status_pb2.Status(code=3).SerializeToString()])
def test_foreign_status_details_do_not_hide_the_status(details):
    error = error_from_rpc(BrokenRpc(("grpc-status-details-bin", details)))
    assert type(error) is turnwise.ActorUnavailable
    assert error.message == "the proxy says no"


def test_violations_reach_the_caller_by_stream_and_unary(refusing):
    _, bot = refusing
    talk = bot.dialogue()
    turn = talk.act(text="hello")
    with pytest.raises(turnwise.InvalidRequest) as caught:
        turn.correct("gret")
    (violation,) = caught.value.violations
    assert violation.field == "correction"
    assert violation.description == "got 'gret'; wanted one of greet, bye"
    assert "correction: got 'gret'; wanted one of greet, bye" in str(caught.value)


def test_the_fake_refuses_on_the_wire_what_the_sdk_refuses_before_it():
    with FakeActor(features=1, slots={"n": float}) as actor, grpc.insecure_channel(actor.address) as channel:
        stub = dialogue_pb2_grpc.DialogueStub(channel)
        token = stub.StartDialogue(pb.StartDialogueRequest(dialogue_id="d"), timeout=5).token
        nan = b"\x00\x00\xc0\x7f"
        seen = pb.Observation(
            features=nan, slots=[pb.Slot(name="n", number=float("nan")), pb.Slot(name="m", flag=True)]
        )
        with pytest.raises(grpc.RpcError) as caught:
            stub.Act(pb.ActRequest(token=token, observation=seen, allowed=["x"]), timeout=5)
        error = error_from_rpc(caught.value)
        assert isinstance(error, turnwise.InvalidRequest)
        assert [field for field, _ in error.violations] == [
            "observation.features",
            "observation.slots[n]",
            "observation.slots[m]",
            "allowed",
            "request_id",
        ]

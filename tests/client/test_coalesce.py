from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise._coalesce import MOST_BYTES, MOST_REQUESTS, coalesced
from turnwise.v1 import dialogue_pb2 as pb


def request_of(number, size):
    return pb.ConverseRequest(correlation_id=number, act=pb.ActRequest(token=bytes(size)))


@settings(deadline=None)
@given(st.lists(st.sampled_from([0, 100, 65_536, MOST_BYTES // 2, 2 * MOST_BYTES]), max_size=20))
def test_every_request_goes_once_and_in_order(sizes):
    messages = list(coalesced(request_of(number, size) for number, size in enumerate(sizes)))
    sent = [request for message in messages for request in (message, *message.also)]
    assert [request.correlation_id for request in sent] == list(range(len(sizes)))
    assert [len(request.act.token) for request in sent] == sizes
    for message in messages:
        assert not message.also or message.ByteSize() < 1.01 * MOST_BYTES


def test_no_more_go_together_than_may():
    messages = list(coalesced(request_of(number, 0) for number in range(2 * MOST_REQUESTS + 1)))
    assert [1 + len(message.also) for message in messages] == [MOST_REQUESTS, MOST_REQUESTS, 1]

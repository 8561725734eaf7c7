from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.v1 import token_pb2, training_pb2
from turnwise_actor.parts import joining, joining_here, with_parts


@settings(deadline=None)
@given(st.lists(st.integers(0, 70_000), max_size=5))
def test_a_message_with_parts_is_that_message(sizes: list[int]) -> None:
    facts = [training_pb2.Fact(key=f"k{size}", dialogue_id="d" * size) for size in sizes]
    head = token_pb2.TokenState(issued_ms=7, user="ann", unrecorded=["x"])
    bodies = [fact.SerializeToString() for fact in facts]
    whole = with_parts(head, token_pb2.TokenState.UNSETTLED_FIELD_NUMBER, bodies)
    head.unsettled.extend(facts)
    assert token_pb2.TokenState.FromString(whole) == head


@settings(deadline=None)
@given(st.binary(max_size=5), st.integers(1, 2**29 - 1), st.lists(st.binary(max_size=300), max_size=5))
def test_compiled_or_not_the_parts_are_the_same(head: bytes, field: int, parts: list[bytes]) -> None:
    assert joining(head, field, parts) == joining_here(head, field, parts)

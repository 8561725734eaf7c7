import hashlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise_actor.policy import Domain, Encoder, EncodingError, RawObservation
from turnwise_actor.policy.encoder import MAX_FEATURE, MAX_TEXT_CHARS, words_of

PLAIN: dict[str, Any] = {
    "name": "shop",
    "state": {
        "text": {"size": 64},
        "slots": {
            "intent": ["greet", "order"],
            "items": {"type": "number", "min": -1, "max": 9},
            "vip": {"type": "bool"},
        },
        "features": 2,
        "history": 2,
    },
    "actions": [{"id": "a"}, {"id": "b"}, {"id": "c"}],
}
ENCODER = Encoder(Domain.from_mapping(PLAIN))
AT = {name: index for index, name in enumerate(ENCODER.feature_names())}
TEXT_ONLY = Encoder(Domain.from_mapping({**PLAIN, "state": {"text": {"size": 1024}}}))


def features(*numbers: float) -> Any:
    return np.array(numbers or (0.0, 0.0), np.float32)


def seen(history: tuple[str, ...] = (), **fields: Any) -> dict[str, float]:
    """The inputs that are not zero, by name."""
    raw = RawObservation(**{"features": features(), **fields})
    x = ENCODER.encode(raw, history)
    return {name: float(x[index]) for name, index in AT.items() if x[index]}


def violations(**fields: Any) -> list[str]:
    with pytest.raises(EncodingError) as caught:
        ENCODER.validate(RawObservation(**{"features": features(), **fields}))
    return [str(violation) for violation in caught.value.violations]


def words(text: str) -> Any:
    return TEXT_ONLY.encode(RawObservation(text=text))[1:]


def test_the_layout_is_text_slots_features_history() -> None:
    assert ENCODER.feature_names() == [
        "text",
        *(f"text[{i}]" for i in range(64)),
        *("slots[intent]", "slots[intent]=greet", "slots[intent]=order", "slots[intent]=<other>"),
        *("slots[items]", "slots[items].clamped", "slots[items].value"),
        *("slots[vip]", "slots[vip].value"),
        *("features[0]", "features[1]"),
        *("history[1]=a", "history[1]=b", "history[1]=c", "history[2]=a", "history[2]=b", "history[2]=c"),
    ]
    assert ENCODER.size == len(AT) == 82


def test_what_is_absent_is_all_zeros() -> None:
    assert seen() == {}


def test_empty_text_is_not_absent_text() -> None:
    assert seen(text="") == {"text": 1.0}


def test_categories_are_one_hot_and_unknown_ones_are_other() -> None:
    assert seen(slots={"intent": "order"}) == {"slots[intent]": 1.0, "slots[intent]=order": 1.0}
    assert seen(slots={"intent": "Order"}) == {"slots[intent]": 1.0, "slots[intent]=<other>": 1.0}


@pytest.mark.parametrize(
    ("number", "value", "clamped"),
    [(-1, -1, 0), (4, 0, 0), (9, 1, 0), (10, 1, 1), (-9e300, -1, 1), (6.5, 0.5, 0)],
)
def test_numbers_are_scaled_by_their_range_and_clamped_with_a_flag(
    number: float, value: float, clamped: int
) -> None:
    x = ENCODER.encode(RawObservation(slots={"items": number}, features=features()))
    got = [float(x[AT[name]]) for name in ("slots[items]", "slots[items].value", "slots[items].clamped")]
    assert got == [1.0, value, clamped]


def test_false_is_not_absent() -> None:
    assert seen(slots={"vip": False}) == {"slots[vip]": 1.0, "slots[vip].value": -1.0}
    assert seen(slots={"vip": True}) == {"slots[vip]": 1.0, "slots[vip].value": 1.0}


def test_features_pass_unchanged() -> None:
    assert seen(features=features(3.5, -1e5)) == {"features[0]": 3.5, "features[1]": -1e5}


def test_history_is_seen_newest_first_and_only_as_far_as_it_goes() -> None:
    assert seen(history=("a",)) == {"history[1]=a": 1.0}
    assert seen(history=("c", "b", "a")) == {"history[1]=a": 1.0, "history[2]=b": 1.0}


def test_an_unknown_action_in_the_history_is_refused() -> None:
    with pytest.raises(EncodingError, match=r"history\[1\]: got 'z'; wanted an action id"):
        seen(history=("a", "z"))


def test_case_form_and_punctuation_do_not_matter() -> None:
    assert words_of("\uff28ello, WORLD! «ﬁn»…") == ["hello", "world", "fin"]
    assert words_of("I don't - I don\u2019t") == ["i", "don't", "i", "don't"]
    assert words_of("'quoted' it's") == ["quoted", "it's"]
    assert words_of("नमस्ते, 你好。👍 ?") == ["नमस्ते", "你好", "👍"]


def test_word_order_and_misspellings_matter_little_and_other_words_much() -> None:
    asked = words("cancel my ticket please")
    assert 0.95 > asked @ words("please cancel my ticket") > 0.8
    assert 0.9 > asked @ words("cancle my tickets please") > 0.4
    assert abs(asked @ words("good evening everybody")) < 0.2


def test_text_beyond_the_limit_is_ignored() -> None:
    long = "word " * (MAX_TEXT_CHARS // 5) + "x"
    assert len(long) == MAX_TEXT_CHARS
    assert np.array_equal(words(long), words(long + " and something else"))


def test_a_golden_sentence_keeps_its_encoding() -> None:
    """Weights out there rely on it. If this fails on purpose, raise LAYOUT_VERSION in domain.py."""
    x = words("Could you tell me, 世界, when the “Straße” opens? 👍 don't")
    places = np.flatnonzero(x)
    digest = hashlib.sha256(repr([(int(i), round(float(x[i]), 4)) for i in places]).encode()).hexdigest()
    assert (len(places), digest[:16]) == (55, "ac399c3baea838d5")


texts = st.none() | st.text(max_size=300) | st.text(st.characters(), max_size=50)
slots = st.fixed_dictionaries(
    {},
    optional={
        "intent": st.sampled_from(["greet", "order"]) | st.text(max_size=9),
        "items": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**300), 10**300),
        "vip": st.booleans(),
    },
)
vectors = st.tuples(*[st.floats(-MAX_FEATURE, MAX_FEATURE, width=32)] * 2).map(lambda pair: features(*pair))
histories = st.lists(st.sampled_from("abc"), max_size=5)


@given(texts, slots, vectors, histories)
def test_every_valid_observation_is_encoded_soundly(
    text: str | None, slots: Any, vector: Any, history: Any
) -> None:
    raw = RawObservation(text, slots, vector)
    x = ENCODER.encode(raw, history)
    assert x.shape == (ENCODER.size,)
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    norm = float(np.linalg.norm(x[1:65].astype(np.float64)))
    assert norm == 0.0 or math.isclose(norm, 1.0, rel_tol=1e-6)
    assert (np.abs(np.delete(x, [AT["features[0]"], AT["features[1]"]])) <= 1.0 + 1e-6).all()
    again = Encoder(Domain.from_mapping(PLAIN)).encode(raw, history)
    assert np.array_equal(x, again)


@given(
    st.dictionaries(
        st.sampled_from(["intent", "items", "vip", "x"]), st.none() | st.text() | st.floats() | st.booleans()
    )
)
def test_any_slots_are_encoded_or_refused(slots: Any) -> None:
    try:
        x = ENCODER.encode(RawObservation(slots=slots, features=features()))
    except EncodingError:
        return
    assert np.isfinite(x).all()


def test_all_violations_are_told_at_once() -> None:
    bad: Any = {"intnet": "greet", "intent": 3, "items": math.nan, "vip": 1}
    assert violations(slots=bad, features=features(1.0, math.inf), text=3) == [
        "observation.text: got 3; wanted a string",
        "observation.slots[intnet]: got an unknown slot; wanted one of the slots intent, items, vip"
        " (did you mean 'intent'?)",
        "observation.slots[intent]: got 3; wanted a string",
        "observation.slots[items]: got nan; wanted a finite number",
        "observation.slots[vip]: got 1; wanted true or false",
        "observation.features[1]: got inf; wanted a number from -1e+06 to 1e+06; not NaN",
    ]


@pytest.mark.parametrize(
    ("given_features", "violation"),
    [
        (None, "observation.features: got nothing; wanted 2 float32"),
        (features(1.0, 2.0, 3.0), "observation.features: got 3; wanted 2 float32"),
        (np.zeros(2), "observation.features: got float64; wanted 2 float32"),
        (np.zeros((1, 2), np.float32), "observation.features: got shape (1, 2); wanted 2 float32"),
        (
            features(0.0, math.nan),
            "observation.features[1]: got nan; wanted a number from -1e+06 to 1e+06; not NaN",
        ),
    ],
)
def test_features_must_be_as_many_as_the_domain_says(given_features: Any, violation: str) -> None:
    assert violations(features=given_features) == [violation]


def test_what_the_domain_does_not_have_must_not_be_sent() -> None:
    bare = Encoder(Domain.from_mapping({**PLAIN, "state": {"slots": {"vip": {"type": "bool"}}}}))
    with pytest.raises(EncodingError) as caught:
        bare.validate(RawObservation("hi", {}, features()))
    assert [violation.field for violation in caught.value.violations] == [
        "observation.text",
        "observation.features",
    ]
    with pytest.raises(EncodingError, match="none: the domain has no slots"):
        TEXT_ONLY.validate(RawObservation(slots={"vip": True}))
    bare.validate(RawObservation(features=np.zeros(0, np.float32)))


def test_a_grown_domain_keeps_the_names_of_its_inputs() -> None:
    state = {**PLAIN["state"], "features": 3, "history": 3}
    state["slots"] = {"new": ["x"], **state["slots"], "intent": ["bye", "greet", "order"]}
    grown = Encoder(
        Domain.from_mapping({**PLAIN, "state": state, "actions": [{"id": "z"}, *PLAIN["actions"]]})
    )
    names = grown.feature_names()
    assert len(set(names)) == len(names) == grown.size
    assert set(ENCODER.feature_names()) < set(names)
    raw = RawObservation("two tickets", {"intent": "order", "items": 3.0}, features(1.0, 2.0))
    wider = RawObservation(raw.text, raw.slots, features(1.0, 2.0, 0.0))
    old, new = ENCODER.encode(raw, ("a", "b")), grown.encode(wider, ("a", "b"))
    assert {n: v for n, v in zip(names, new, strict=True) if v} == {
        n: old[i] for n, i in AT.items() if old[i]
    }

import array
import math
import threading
import time
from typing import Any

import pytest

import turnwise
from turnwise.testing import FakeActor

ACTIONS = {"greet": "Hello!", "ask_size": "Which size?", "bye": "Goodbye."}


@pytest.fixture(params=[True, False], ids=["converse", "unary"])
def actor(request):
    script = ["greet", "ask_size", "bye"]
    with FakeActor(ACTIONS, script, features=2, converse=request.param) as fake:
        yield fake


@pytest.fixture
def bot(actor: FakeActor):
    with turnwise.Client(actor.address) as client:
        yield client


SEEN: dict[str, Any] = {"features": [0.5, -1]}


def test_a_turn_says_what_was_decided(actor, bot):
    actor.policy_version, actor.learned_through = (3, 17), 42
    with bot.dialogue(id="d1", user="ann", mode="evaluate") as talk:
        assert talk.id == "d1"
        turn = talk.act(text="hello", slots={"intent": "greet", "items": 3, "vip": True, "no": None}, **SEEN)
        assert (turn.action, turn.say, turn.index, turn.probability) == ("greet", "Hello!", 0, 1.0)
        assert turn.q_values == {"greet": 1.0, "ask_size": 0.0, "bye": 0.0}
        assert turn.policy_version == turnwise.PolicyVersion(3, 17)
        assert str(turn.policy_version) == "3.17"
        assert turn.learned_through == 42
        assert turn.recorded
        assert len(turn.decision_id) == 32
        assert talk.act(**SEEN).index == 1
        assert talk.turns[0] is turn
    (first, second) = actor.received
    assert (first.dialogue_id, first.user, first.mode) == ("d1", "ann", "evaluate")
    assert (first.text, second.text) == ("hello", None)
    assert first.slots == {"intent": "greet", "items": 3.0, "vip": True}
    assert first.features == (0.5, -1.0)
    assert first.allowed == tuple(ACTIONS)


def test_versions_are_ordered_by_generation_then_number():
    version = turnwise.PolicyVersion
    assert version(2, 1) > version(1, 900) > version(1, 9)


def test_only_allowed_actions_have_a_value(actor, bot):
    turn = bot.dialogue().act(allowed=["bye", "ask_size"], **SEEN)
    assert turn.action == "ask_size"
    assert turn.q_values == {"ask_size": 1.0, "bye": 0.0}


def test_a_dialogue_begins_when_entered_or_at_its_first_act(actor, bot):
    talk = bot.dialogue(id="lazy")
    assert actor.started == []
    talk.act(**SEEN)
    assert actor.started == ["lazy"]
    with bot.dialogue(id="entered"):
        assert actor.started == ["lazy", "entered"]


def test_dialogues_without_an_id_get_one_each(actor, bot):
    assert len({bot.dialogue().id for _ in range(10)}) == 10


def test_feedback_of_all_kinds_reaches_its_own_turn(actor, bot):
    with bot.dialogue(user="ann") as talk:
        first, second = talk.act(**SEEN), talk.act(**SEEN)
        assert second.reward(0.5, "good") == turnwise.Receipt("LEARNER", 1)
        first.reward(-1)
        first.correct("bye", comment="too long")
        first.retract()
        second.overridden("greet", probability=0.25)
        second.overridden("bye")
        second.dropped()
    kinds = [(each.kind, each.value, each.decision_id, each.comment) for each in actor.feedback]
    assert kinds == [
        ("reward", 0.5, second.decision_id, "good"),
        ("reward", -1.0, first.decision_id, ""),
        ("correction", "bye", first.decision_id, "too long"),
        ("retraction", None, first.decision_id, ""),
        ("overridden", "greet", second.decision_id, ""),
        ("overridden", "bye", second.decision_id, ""),
        ("dropped", None, second.decision_id, ""),
    ]
    revisions = [each.revision for each in actor.feedback]
    assert revisions == sorted(set(revisions))
    assert abs(revisions[0] / 1000 - time.time()) < 60
    assert len({each.feedback_id for each in actor.feedback}) == 7


def test_feedback_needs_no_dialogue_at_hand(actor, bot):
    turn = bot.dialogue(id="d").act(**SEEN)
    bot.feedback("d", turn.decision_id, reward=1, comment="late", teacher="bob")
    bot.feedback("d", turn.decision_id, correction="bye")
    bot.feedback("d", turn.decision_id, retract=True)
    bot.feedback("d", None, comment="nice talk")
    kinds = [(each.kind, each.value, each.decision_id != "", each.teacher) for each in actor.feedback]
    assert kinds == [
        ("reward", 1.0, True, "bob"),
        ("correction", "bye", True, ""),
        ("retraction", None, True, ""),
        ("comment_only", None, False, ""),
    ]


def test_feedback_is_taken_after_the_end(actor, bot):
    with bot.dialogue() as talk:
        turn = talk.act(**SEEN)
        talk.end("goodbye")
        turn.reward(1)
    assert len(actor.feedback) == 1


def test_an_end_says_how(actor, bot):
    with bot.dialogue(id="d") as talk:
        talk.act(**SEEN)
        receipt = talk.end(outcome="handoff", reward=-0.5, text="a human, please", features=[0, 0])
        assert receipt.settled == "LEARNER"
        assert talk.ended
    (end,) = actor.ends
    assert (end.dialogue_id, end.outcome, end.reward, end.has_last_state) == ("d", "handoff", -0.5, True)


def test_leaving_the_block_truncates_a_dialogue_begun_here(actor, bot):
    with bot.dialogue(id="d") as talk:
        talk.act(**SEEN)
    with pytest.raises(RuntimeError, match="mine"), bot.dialogue(id="e"):
        raise RuntimeError("mine")
    assert [(end.dialogue_id, end.outcome) for end in actor.ends] == [("d", "abandoned"), ("e", "abandoned")]


def test_leaving_hides_no_error_when_the_actor_is_gone(actor):
    def fail():
        actor.stop()
        raise RuntimeError("mine")

    bot = turnwise.Client(actor.address, timeout=0.3)
    with bot, pytest.raises(RuntimeError, match="mine"), bot.dialogue():
        fail()


def test_leaving_the_block_of_a_resumed_dialogue_or_a_fork_leaves_it_open(actor, bot):
    with bot.dialogue(id="d") as talk:
        turn = talk.act(**SEEN)
        with bot.resume(talk.token) as again:
            again.act(**SEEN)
        with talk.fork(turn.index) as fork:
            fork.act(**SEEN)
        assert actor.ends == []


def test_a_dialogue_resumes_from_its_token(actor, bot):
    talk = bot.dialogue(id="d\u00e9j\u00e0", user="ann")
    talk.act(**SEEN)
    token = talk.token
    assert isinstance(token, str)
    assert "=" not in token
    with turnwise.Client(actor.address) as another:
        again = another.resume(token)
        assert again.id == "d\u00e9j\u00e0"
        turn = again.act(**SEEN)
        assert (turn.index, turn.action) == (1, "ask_size")
        assert turn.q_values["ask_size"] == 1.0  # though it never saw the start
        turn.reward(1)
    assert actor.received[-1].user == "ann"


def test_a_fork_goes_on_right_after_its_turn(actor, bot):
    talk = bot.dialogue()
    for _ in range(3):
        talk.act(**SEEN)
    fork = talk.fork(0)
    assert [turn.index for turn in fork.turns] == [0]
    assert fork.act(**SEEN).index == 1
    assert talk.act(**SEEN).index == 3
    assert [turn.index for turn in talk.turns] == [0, 1, 2, 3]
    assert [turn.index for turn in fork.turns] == [0, 1]
    with pytest.raises(turnwise.InvalidRequest, match=r"index: got 7; wanted .*: 0, 1, 2, 3"):
        talk.fork(7)


def test_an_idle_dialogue_goes_on_as_a_new_one(actor, bot):
    with bot.dialogue(id="d") as talk:
        before = talk.act(**SEEN)
        actor.idle_timeout_s = -1
        after = talk.act(**SEEN)
        assert talk.id == after.dialogue_id != "d"
        before.reward(1)
        after.reward(1)
    assert [each.dialogue_id for each in actor.feedback] == ["d", after.dialogue_id]
    assert [end.dialogue_id for end in actor.ends] == [after.dialogue_id]


def test_the_domain_is_told(bot):
    domain = bot.domain()
    assert domain.actions["greet"] == ("Hello!",)
    assert list(domain.actions) == list(ACTIONS)
    assert (domain.features, domain.reward_min, domain.reward_max) == (2, -1.0, 1.0)


def test_an_ended_dialogue_takes_no_more(actor, bot):
    talk = bot.dialogue()
    talk.act(**SEEN)
    token = talk.token
    talk.end("failure")
    for call in (talk.act, talk.end):
        with pytest.raises(turnwise.DialogueEnded, match="has ended"):
            call()
    assert len(actor.ends) == 1
    with pytest.raises(turnwise.DialogueEnded):
        bot.resume(token).act(**SEEN)


def test_an_end_repeated_after_an_error_keeps_its_request_id(actor):
    with turnwise.Client(actor.address, timeout=0.2) as bot:
        talk = bot.dialogue()
        talk.act(**SEEN)
        actor.delay(math.inf)
        with pytest.raises(turnwise.DeadlineExceeded):
            talk.end("success", reward=1)
        actor.delay(0)
        talk.end("success", reward=1)
    assert len({end.request_id for end in actor.ends}) == 1


@pytest.mark.parametrize("token", ["", "x", "ab=c", "A" * 30, None, b"bytes", "\u00e9"])
def test_what_is_no_token_is_refused_here(bot, token):
    with pytest.raises(turnwise.TokenRejected, match="token"):
        bot.resume(token)


def test_altered_and_foreign_tokens_are_refused_there(actor, bot):
    talk = bot.dialogue()
    talk.act(**SEEN)
    altered = talk.token[:-3] + ("AAA" if talk.token[-3:] != "AAA" else "BBB")
    with pytest.raises(turnwise.TokenRejected) as caught:
        bot.resume(altered).act(**SEEN)
    assert caught.value.reason == "TOKEN_INVALID"
    with FakeActor(key=b"another", features=2) as stranger, turnwise.Client(stranger.address) as theirs:
        with pytest.raises(turnwise.TokenRejected) as caught:
            theirs.resume(talk.token).act(**SEEN)
        assert caught.value.reason == "TOKEN_FOREIGN"


def test_an_expired_token_is_refused_for_acts_and_taken_for_feedback(actor, bot):
    talk = bot.dialogue()
    turn = talk.act(**SEEN)
    actor.max_token_age_s = -1
    with pytest.raises(turnwise.TokenExpired):
        talk.act(**SEEN)
    assert turn.reward(1).settled == "LEARNER"


def misuse():
    nan = math.nan
    return {
        "outcome: got 'won'; wanted one of success": lambda bot, talk, turn: talk.end("won"),
        "mode: got 'learn'; wanted one of teach": lambda bot, talk, turn: bot.dialogue(mode="learn"),
        "id: got ''": lambda bot, talk, turn: bot.dialogue(id=""),
        "id: got 'ddd": lambda bot, talk, turn: bot.dialogue(id="d" * 129),
        "user: got 7": lambda bot, talk, turn: bot.dialogue(user=7),
        "reward: got nan; wanted a finite number": lambda bot, talk, turn: turn.reward(nan),
        "reward: got '1'": lambda bot, talk, turn: turn.reward("1"),
        "reward: got True": lambda bot, talk, turn: turn.reward(True),
        "reward: got inf": lambda bot, talk, turn: talk.end("success", reward=math.inf),
        "comment: got 'ccc": lambda bot, talk, turn: turn.reward(1, "c" * 4097),
        "correction: got ''; wanted an action id": lambda bot, talk, turn: turn.correct(""),
        "correction: got 3": lambda bot, talk, turn: turn.correct(3),
        "feedback: got 'reward and correction'; wanted exactly one": lambda bot, talk, turn: bot.feedback(
            "d", "e", reward=1, correction="bye"
        ),
        "feedback: got 'none of them'": lambda bot, talk, turn: bot.feedback("d", "e"),
        "decision_id: got ''": lambda bot, talk, turn: bot.feedback("d", None, correction="bye"),
        "dialogue_id: got ''": lambda bot, talk, turn: bot.feedback("", None, reward=1),
        "probability: got 0; wanted a number in": lambda bot, talk, turn: turn.overridden("bye", 0),
        "allowed: got \\[\\]; wanted at least one": lambda bot, talk, turn: talk.act(allowed=[]),
        "allowed: got 'bye'; wanted a sequence": lambda bot, talk, turn: talk.act(allowed="bye"),
        "text: got 3": lambda bot, talk, turn: talk.act(text=3),
        r"text: got '\\ud800'": lambda bot, talk, turn: talk.act(text="\ud800"),
        r"slots\[n\]: got nan": lambda bot, talk, turn: talk.act(slots={"n": nan}),
        r"slots\[n\]: got \[1\]": lambda bot, talk, turn: talk.act(slots={"n": [1]}),
        "slots: got 'n'": lambda bot, talk, turn: talk.act(slots="n"),
        "slots: got 1": lambda bot, talk, turn: talk.act(slots={1: "n"}),
        r"features\[1\]: got nan": lambda bot, talk, turn: talk.act(features=[0, nan]),
        r"features\[0\]: got inf": lambda bot, talk, turn: talk.act(features=[1e39]),
        "features: got 'ab'": lambda bot, talk, turn: talk.act(features="ab"),
        r"features: got b'\\x00": lambda bot, talk, turn: talk.act(features=b"\0\0\0\0"),
        r"features: got \[\[1\]\]": lambda bot, talk, turn: talk.act(features=[[1]]),
        "observation: got '4000.* bytes'; wanted at most": lambda bot, talk, turn: talk.act(
            text="x" * 4_000_000
        ),
        "features: got 3": lambda bot, talk, turn: talk.act(features=3),
        "timeout: got 0": lambda bot, talk, turn: talk.act(timeout=0),
    }


@pytest.mark.parametrize("message", misuse())
def test_misuse_is_refused_before_the_wire(message, actor, bot):
    talk = bot.dialogue()
    turn = talk.act(**SEEN)
    with pytest.raises(turnwise.InvalidRequest, match=message) as caught:
        misuse()[message](bot, talk, turn)
    assert caught.value.code is None
    assert (len(actor.received), actor.feedback, actor.ends) == (1, [], [])


def test_a_token_before_the_beginning_is_refused(bot):
    with pytest.raises(turnwise.InvalidRequest, match="token: got none; wanted a dialogue that has begun"):
        _ = bot.dialogue().token


@pytest.mark.parametrize(
    "address", ["localhost", "http://localhost:1", ":50051", "localhost:0", "h:99999", "", [], 7]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises((turnwise.InvalidRequest, TypeError)):
        turnwise.Client(address)


def test_credentials_never_leave_the_machine_in_plain_text():
    with pytest.raises(
        turnwise.InvalidRequest, match=r"tls: got None; .* credentials go to bot.example:50051"
    ):
        turnwise.Client("bot.example:50051", credentials="secret")


def test_features_may_be_any_flat_floats(actor, bot):
    numpy = pytest.importorskip("numpy")
    talk = bot.dialogue()
    given = [
        (0.5, 1),
        array.array("d", [0.5, 1]),
        memoryview(array.array("f", [0.5, 1])),
        numpy.array([0.5, 1], numpy.float32),
        numpy.array([0.5, 1], numpy.float16),
        numpy.array([0.5, 0, 1, 0])[::2],
        (each for each in (0.5, 1)),
    ]
    for features in given:
        talk.act(
            features=features, slots={"n": numpy.float32(2), "b": numpy.bool_(True), "i": numpy.int64(3)}
        )
    assert {act.features for act in actor.received} == {(0.5, 1.0)}
    assert actor.received[0].slots == {"n": 2.0, "b": True, "i": 3.0}
    with pytest.raises(turnwise.InvalidRequest, match="features"):
        talk.act(features=numpy.zeros((2, 2)))
    with pytest.raises(turnwise.InvalidRequest, match=r"slots\[n\]"):
        talk.act(slots={"n": numpy.zeros(2)})
    talk.turns[0].reward(numpy.float32(0.5))


def test_many_threads_share_a_client(actor, bot):
    talks = [bot.dialogue() for _ in range(8)]
    errors = []

    def speak(talk):
        try:
            for _ in range(25):
                talk.act(**SEEN).reward(1)
        except turnwise.TurnwiseError as error:
            errors.append(error)

    threads = [threading.Thread(target=speak, args=(talk,)) for talk in talks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [[turn.index for turn in talk.turns] for talk in talks] == [list(range(25))] * 8
    revisions = [each.revision for each in actor.feedback]
    assert len(set(revisions)) == 200


def test_two_threads_on_one_dialogue_take_turns(actor, bot):
    talk = bot.dialogue()
    threads = [threading.Thread(target=talk.act, kwargs=SEEN) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(turn.index for turn in talk.turns) == [0, 1, 2, 3, 4]


def test_a_closed_client_says_so(actor):
    bot = turnwise.Client(actor.address)
    talk = bot.dialogue()
    talk.act(**SEEN)
    bot.close()
    bot.close()
    with pytest.raises(turnwise.ClientClosed):
        talk.act(**SEEN)


def test_closing_ends_the_calls_of_other_threads(actor):
    bot = turnwise.Client(actor.address)
    talk = bot.dialogue()
    talk.act(**SEEN)
    actor.delay(math.inf)
    caught = []

    def wait():
        with pytest.raises(turnwise.ClientClosed) as error:
            talk.act(**SEEN)
        caught.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while len(actor.received) < 2:
        time.sleep(0.01)
    bot.close()
    waiting.join(5)
    assert caught

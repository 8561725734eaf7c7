# cython: language_level=3, boundscheck=False, initializedcheck=False, cdivision=True
"""The turns that are as they should be, compiled: opened, checked, decided, written and sealed in batches.

Whatever is out of the ordinary is left to `turns.Turns`: what is wrong with a request and has to be named, a
token that is too old or too full, an idle dialogue, a disk that is needed. What is answered here is answered
as there, to the bit.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.tuple cimport PyTuple_GET_ITEM
from libc.math cimport fabsf, isfinite
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from turnwise_actor.compiled.forward cimport Forward
from turnwise_actor.compiled.secret cimport Secret
from turnwise_actor.compiled.wire cimport (
    Reader, Span, field_size, inside, number_size, put_field, put_head, put_number, put_raw, put_text,
    read_fixed64, read_span, read_varint, skip, text_size,
)

import os

import numpy as np

from turnwise.v1 import dialogue_pb2
from turnwise_actor import facts
from turnwise_actor.errors import RequestError
from turnwise_actor.facts import PackedFact
from turnwise_actor.policy import BoolSlot, CategorySlot, NumberSlot, probabilities
from turnwise_actor.policy.encoder import MAX_FEATURE, encode_text

cdef extern from "Python.h":
    object PyUnicode_DecodeUTF8(const char*, Py_ssize_t, const char*)

cdef extern from "blake2b.h":
    ctypedef struct blake2b:
        pass
    void blake2b_begin(blake2b*, size_t) noexcept nogil
    void blake2b_add(blake2b*, const void*, size_t) noexcept nogil
    void blake2b_end(blake2b*, uint8_t*) noexcept nogil

cdef extern from "<byteswap.h>":
    uint64_t bswap_64(uint64_t) nogil

cdef enum:
    MOST_REQUESTS = 256
    MOST_ROOM = 1 << 20  # bytes that are kept from batch to batch
    CATEGORY = 1
    NUMBER = 2
    FLAG = 3
    ID_DIGITS = 32
    ID_BYTES = 16
    BRANCH_DIGITS = 15
    SEED_BYTES = 32
    MODES = 5

cdef float _LARGEST = MAX_FEATURE
cdef Py_ssize_t _MOST_REQUEST_ID = 64
cdef Py_ssize_t _MOST_TEXT = 8192
cdef Py_ssize_t _TOKEN_HEAD = 18
cdef Py_ssize_t _TAG = 16
cdef const char* _HEX = "0123456789abcdef"
cdef object _new_tuple = tuple.__new__


# Requests.

@cython.no_gc  # nothing that it has leads back to it
@cython.final
cdef class Act:
    """A request for a turn that is well formed, in the one form in which protobuf itself would write it."""

    cdef readonly unsigned long long correlation_id
    cdef readonly unsigned int timeout_ms
    cdef bint _lone
    """Not of a stream: answered with a Turn, not with a ConverseReply that has it."""
    cdef Py_ssize_t _place
    cdef bytes _content
    cdef Span _act, _token, _request_id, _observation, _features, _before_slots, _after_slots
    cdef bint _has_text, _has_features
    cdef object _text
    cdef list _slots
    """(name, CATEGORY, NUMBER or FLAG, value, the field as it came)."""
    cdef list _allowed

    # What its token says.
    cdef Span _plain
    """In `Turns._opened`, while the batch is answered; so are parent and user."""
    cdef Secret _secret
    cdef Span _dialogue, _user, _parent
    cdef uint64_t _index, _mode
    cdef int64_t _issued_ms
    cdef list _history
    """Actions by their places."""
    cdef list _unsettled
    """The facts that the next token has to carry."""
    cdef bint _has_strange
    """... some of them new here, and not for us to take up: without a number, or memory is full."""

    # What was decided.
    cdef int _action
    cdef float _probability
    cdef const float* _chances
    cdef const float* _values
    """Rows of Turns, of this batch."""
    cdef uint8_t[SEED_BYTES] _seed
    cdef bint _has_seed
    cdef uint8_t[2 + ID_DIGITS] _key
    """Of the fact: d:, and the decision's id."""
    cdef uint64_t _branch
    """The id as `branches` remembers it."""
    cdef bytes _mask, _say

    def message(self):
        """The same as an ActRequest."""
        return dialogue_pb2.ActRequest.FromString(_bytes(self._act))

    def reply(self, bytes turn not None):
        """What answers it, serialized, given its Turn."""
        cdef bytes reply
        if self._lone:
            return turn
        reply = PyBytes_FromStringAndSize(NULL, self._around(PyBytes_GET_SIZE(turn)) + PyBytes_GET_SIZE(turn))
        put_raw(self._begin(_start(reply), PyBytes_GET_SIZE(turn)), _start(turn), PyBytes_GET_SIZE(turn))
        return reply

    cdef Py_ssize_t _around(self, Py_ssize_t turn_size) noexcept:
        """Bytes of the reply that come before a Turn of so many."""
        return 0 if self._lone else number_size(self.correlation_id) + field_size(turn_size) - turn_size

    cdef uint8_t* _begin(self, uint8_t* to, Py_ssize_t turn_size) noexcept:
        """Writes them."""
        return to if self._lone else put_head(put_number(to, 1, self.correlation_id), 3, turn_size)


def read_act(bytes content not None):
    """An Act of a serialized ActRequest; None where protobuf has to be asked."""
    cdef Act act = Act.__new__(Act)
    act._lone = True
    act._content = content
    act._act = _span(content)
    return act if _read_act(act) else None


def read_converse(bytes content not None):
    """The Acts of a serialized ConverseRequest, `also` included; None where protobuf has to be asked."""
    cdef list acts = []
    return acts if _read_converse(content, _span(content), acts, True) else None


cdef bint _read_converse(bytes content, Span span, list acts, bint outer):
    cdef Act act = Act.__new__(Act)
    cdef Reader reader = inside(span)
    cdef Span part
    cdef uint64_t number
    cdef uint8_t tag, before = 0
    act._content = content
    acts.append(act)
    if len(acts) > MOST_REQUESTS:
        return False
    while reader.at < reader.end:
        tag = reader.at[0]
        reader.at += 1
        if tag < before or (tag == before and tag != 0x3A):
            return False
        before = tag
        if tag == 0x08:
            if not read_varint(&reader, &number):
                return False
            act.correlation_id = number
        elif tag == 0x10:
            if not read_varint(&reader, &number) or number > 0xFFFFFFFF:
                return False
            act.timeout_ms = <unsigned int> number
        elif tag == 0x22:
            if not read_span(&reader, &act._act):
                return False
        elif tag == 0x3A and outer:
            if not read_span(&reader, &part) or not _read_converse(content, part, acts, False):
                return False
        else:
            return False
    return act._act.at != NULL and _read_act(act)


cdef bint _read_act(Act act):
    cdef Reader reader = inside(act._act)
    cdef Span part
    cdef uint8_t tag, before = 0
    while reader.at < reader.end:
        tag = reader.at[0]
        reader.at += 1
        if tag < before or (tag == before and tag != 0x1A) or not read_span(&reader, &part):
            return False
        before = tag
        if tag == 0x0A:
            act._token = part
        elif tag == 0x12:
            act._observation = part
            if not _read_observation(act):
                return False
        elif tag == 0x1A:
            name = _text(part)
            if name is None:
                return False
            if act._allowed is None:
                act._allowed = []
            act._allowed.append(name)
        elif tag == 0x22:
            act._request_id = part
            if not _is_text(part):
                return False
        else:
            return False
    return True


cdef bint _read_observation(Act act):
    """Fields in order, each in its shortest form, none that says nothing: as protobuf would write them."""
    cdef Reader reader = inside(act._observation)
    cdef const uint8_t* field
    cdef Span part
    cdef uint8_t tag, before = 0
    act._before_slots = Span(reader.at, 0)
    act._after_slots = Span(reader.at, 0)
    while reader.at < reader.end:
        field = reader.at
        tag = field[0]
        reader.at += 1
        if tag < before or (tag == before and tag != 0x12) or not read_span(&reader, &part):
            return False
        before = tag
        if tag == 0x0A:
            if part.size > _MOST_TEXT:
                return False
            act._text = _text(part)
            if act._text is None:
                return False
            act._has_text = True
            act._before_slots.size = reader.at - act._before_slots.at
            act._after_slots.at = reader.at
        elif tag == 0x12:
            if not _read_slot(act, part, PyBytes_FromStringAndSize(<const char*> field, reader.at - field)):
                return False
            act._after_slots.at = reader.at
        elif tag == 0x1A and part.size:
            act._features = part
            act._has_features = True
        else:
            return False
    act._after_slots.size = reader.end - act._after_slots.at
    return True


cdef bint _read_slot(Act act, Span span, bytes field):
    cdef Reader reader = inside(span)
    cdef Span part
    cdef uint64_t number
    cdef double value
    cdef uint8_t tag
    if reader.at == reader.end or reader.at[0] != 0x0A:
        return False
    reader.at += 1
    if not read_span(&reader, &part) or not part.size:
        return False
    name = _text(part)
    if name is None or reader.at == reader.end:
        return False
    tag = reader.at[0]
    reader.at += 1
    if tag == 0x12:
        if not read_span(&reader, &part):
            return False
        word = _text(part)
        if word is None:
            return False
        slot = (name, CATEGORY, word, field)
    elif tag == 0x19:
        if not read_fixed64(&reader, &number):
            return False
        memcpy(&value, &number, 8)
        slot = (name, NUMBER, value, field)
    elif tag == 0x20:
        if not read_varint(&reader, &number) or number > 1:
            return False
        slot = (name, FLAG, bool(number), field)
    else:
        return False
    if act._slots is None:
        act._slots = []
    act._slots.append(slot)
    return reader.at == reader.end


cdef inline Span _span(bytes content):
    return Span(<const uint8_t*> PyBytes_AS_STRING(content), PyBytes_GET_SIZE(content))


cdef inline Span _body(fact):
    """Of a PackedFact."""
    return _span(<bytes> PyTuple_GET_ITEM(fact, 1))


cdef inline bytes _bytes(Span span):
    return PyBytes_FromStringAndSize(<const char*> span.at, span.size)


cdef object _text(Span span):
    """None: not UTF-8."""
    try:
        return PyUnicode_DecodeUTF8(<const char*> span.at, span.size, NULL)
    except UnicodeDecodeError:
        return None


cdef bint _is_text(Span span):
    cdef Py_ssize_t i
    for i in range(span.size):
        if span.at[i] > 0x7F:
            return _text(span) is not None
    return True


cdef inline uint8_t* _start(bytes content):
    return <uint8_t*> PyBytes_AS_STRING(content)


# Answers.

cdef class Turns:
    """Answers the plain turns of one actor, from the parts that `turns.Turns` has, too."""

    cdef object _tokens, _policies, _uplink, _branches
    cdef dict _pending
    cdef set _settled, _settled_before
    """Where `Uplink.known` keeps what it knows of facts; as of this batch."""
    cdef dict _younger, _older
    """Where `Branches.known` keeps the continuations of decisions."""
    cdef dict _secrets
    """By the id that is in a token's head."""
    cdef list _taken_up
    """Keys of facts that the tokens of a batch have brought: another actor's, or forgotten here since."""
    cdef Py_ssize_t _room
    """For so many."""
    cdef uint8_t* _opened
    cdef Py_ssize_t _opened_size, _opened_room
    """What the tokens of a batch say, one after the other."""
    cdef Secret _opening
    """What opened the token before, of this batch."""
    cdef bytes _domain_name, _fingerprint
    cdef list _action_ids, _says
    cdef dict _action_index, _slot_plans, _action_places
    cdef Py_ssize_t _inputs, _actions, _text_size, _feature_count, _features_at, _history_at, _history_length
    cdef int64_t _idle_ms, _leeway_ms, _oldest_ms
    cdef uint64_t _max_turns
    cdef Py_ssize_t _most_branched, _most_facts, _most_fact_bytes, _most_token_bytes, _to_come_bytes
    cdef object _policy, _network
    cdef Forward _forward
    cdef bytes _version, _version_text
    cdef uint64_t _learned_through
    cdef list _explorations
    cdef double[MODES] _epsilons
    """By mode; below 0 where it is not the best action that is preferred."""
    cdef object _x, _q, _p, _masks
    """Rows to work in: inputs, values, chances, what is allowed."""
    cdef float* _x_row
    cdef float* _q_row
    cdef float* _p_row
    cdef uint8_t* _mask_row
    """The first of each."""

    def __init__(self, domain, encoder, tokens, policies, uplink, branches, config, overhead_bytes):
        self._tokens, self._policies, self._uplink, self._branches = tokens, policies, uplink, branches
        self._secrets = {}
        self._domain_name = domain.name.encode()
        self._fingerprint = domain.fingerprint.encode()
        self._action_ids = [action_id.encode() for action_id in domain.action_ids]
        self._action_places = {name: place for place, name in enumerate(self._action_ids)}
        self._most_branched = config.max_branched
        self._says = [tuple([say.encode() for say in action.say]) for action in domain.actions]
        self._action_index = {name: domain.action_index[name] for name in domain.action_ids}
        self._actions = len(self._action_ids)
        self._inputs = encoder.size
        self._text_size = encoder.text_size
        self._features_at, self._history_at = encoder.features_at, encoder.history_at
        self._feature_count, self._history_length = domain.state.features, domain.state.history
        self._slot_plans = {
            name: _slot_plan(slot, encoder.slot_at[name]) for name, slot in domain.state.slots.items()
        }
        self._idle_ms = 1000 * domain.dialogue.idle_timeout_s
        self._max_turns = domain.dialogue.max_turns
        self._leeway_ms = int(1000 * config.clock_leeway_s)
        self._oldest_ms = int(1000 * (config.max_age_s + config.clock_leeway_s))
        self._most_facts, self._most_fact_bytes = config.max_facts, config.max_fact_bytes
        self._most_token_bytes = config.max_token_bytes
        self._to_come_bytes = 5 * self._actions + overhead_bytes

    def answer(self, list acts not None):
        """Of each: its reply, serialized; or why there is none; or the facts that leave its token no room.

        Or None, where it is not for here to say. That is so of all that protobuf has read.
        """
        cdef list outcomes = [None] * len(acts), going = []
        cdef Py_ssize_t place
        cdef Act act
        cdef int64_t now_ms
        policy = self._policies.current
        if policy is None or not (self._uplink.can_record and self._uplink.has_room):
            return outcomes
        self._use(policy)
        self._pending, self._settled, self._settled_before = self._uplink.known()
        self._opening = None
        self._make_room(acts)
        now_ms = facts.now_ms()
        self._room, _, _ = self._uplink.room()
        self._taken_up = []
        try:
            for place, asked in enumerate(acts):
                if type(asked) is not Act:
                    continue
                act = asked
                if self._open(act, now_ms):
                    if act._has_strange:
                        act._unsettled = self._uplink.add(act._unsettled)
                    if not self._is_sound(act):
                        continue
                    if self._has_room(act):
                        act._place = place
                        going.append(act)
                    elif act._unsettled:
                        outcomes[place] = act._unsettled
        finally:  # whatever comes of the turns, these are to be sent
            if self._taken_up:
                self._uplink.send_on(self._taken_up)
        if going and self._decide(policy, going):
            self._write(going, outcomes, now_ms)
        return outcomes

    cdef int _make_room(self, list acts) except -1:
        """For what the tokens of these say; of a large batch before it is let go."""
        cdef Py_ssize_t size = 0
        for asked in acts:
            if type(asked) is Act:
                size += (<Act> asked)._token.size
        if size > self._opened_room or self._opened_room > MOST_ROOM:
            free(self._opened)
            self._opened_room = 0
            self._opened = <uint8_t*> malloc(size + 1)
            if self._opened == NULL:
                raise MemoryError
            self._opened_room = size
        self._opened_size = 0
        return 0

    def __dealloc__(self):
        free(self._opened)

    cdef _use(self, policy):
        """Makes ready for a policy; nothing to do for the one before."""
        if policy is self._policy:
            return
        version = policy.version
        self._policy, self._network = policy, policy.network
        self._forward = self._network.forward
        self._version_text = str(version).encode()
        self._version = dialogue_pb2.PolicyVersion(
            generation=version.generation, number=version.number
        ).SerializeToString()
        self._learned_through = policy.learned_through
        self._explorations = [
            policy.exploration.of(mode) for mode in ("teach", "teach", "serve", "shadow", "evaluate")
        ]
        for mode, exploration in enumerate(self._explorations):
            self._epsilons[mode] = exploration.epsilon if exploration.kind == "greedy" else -1.0

    # Tokens.

    cdef Secret _secret_of(self, key):
        cdef Secret secret = self._secrets.get(key.head_id)
        if secret is None or secret.key is not key:
            secret = self._secrets[key.head_id] = Secret(key)
        return secret

    cdef bint _open(self, Act act, int64_t now_ms):
        """Opens the token; whether it is one to go on from here."""
        cdef Span token = act._token, sealed
        cdef Py_ssize_t head
        cdef int64_t age_ms
        if not _TOKEN_HEAD + _TAG <= token.size <= self._most_token_bytes or token.at[0] != 1:
            return False
        head = _TOKEN_HEAD + token.at[17]
        if head + _TAG > token.size:
            return False
        if self._opening is None or memcmp(token.at + 1, self._opening.head_id, 4):
            key = self._tokens.key_of(PyBytes_FromStringAndSize(<const char*> token.at + 1, 4))
            if key is None:
                return False
            self._opening = self._secret_of(key)
        act._secret = self._opening
        sealed = Span(token.at + head, token.size - head)
        act._plain = Span(self._opened + self._opened_size, sealed.size - _TAG)
        self._opened_size += act._plain.size
        if not act._secret.open(
            token.at + 5, Span(token.at, head), _span(self._domain_name), sealed, <uint8_t*> act._plain.at
        ):
            return False
        act._dialogue = Span(token.at + _TOKEN_HEAD, head - _TOKEN_HEAD)
        if not self._read_state(act):
            return False
        age_ms = now_ms - act._issued_ms
        return (
            -self._leeway_ms <= age_ms <= self._oldest_ms
            and age_ms <= self._idle_ms
            and act._index < self._max_turns
        )

    cdef bint _read_state(self, Act act):
        cdef Reader reader = inside(act._plain)
        cdef Span part
        cdef uint64_t number
        cdef uint8_t tag
        act._mode = dialogue_pb2.TEACH
        act._history, act._unsettled, act._has_strange = [], [], False
        while reader.at < reader.end:
            tag = reader.at[0]
            reader.at += 1
            if tag == 0x08 or tag == 0x10 or tag == 0x18:
                if not read_varint(&reader, &number):
                    return False
                if tag == 0x08:
                    act._issued_ms = <int64_t> number
                elif tag == 0x10:
                    act._index = number
                else:
                    act._mode = number
                continue
            if not read_span(&reader, &part):
                return False
            if tag == 0x22:
                act._user = part
            elif tag == 0x2A:
                act._parent = part
            elif tag == 0x32:
                known = self._action_places.get(_bytes(part))
                if known is not None:  # a token of an older domain may name some that are gone
                    act._history.append(known)
            elif tag == 0x3A:
                if not self._read_fact(act, part):
                    return False
            elif tag != 0x42:  # turns that were not recorded have to be told of
                return False
        if len(act._history) > self._history_length:
            act._history = act._history[len(act._history) - self._history_length:]
        return 1 <= act._mode <= 4

    cdef bint _read_fact(self, Act act, Span span):
        """Keeps a fact that is not known to be settled; the one that is on its way, if there is."""
        cdef Reader reader = inside(span)
        cdef Span key, part
        cdef uint64_t incarnation = 0, sequence = 0
        cdef uint8_t tag
        if span.size and span.at[0] == 0x0A:  # all that we have written begin with their key
            reader.at += 1
            if not read_span(&reader, &key):
                return False
            name = _text(key)
            if name in self._settled or name in self._settled_before:
                return True
            known = self._pending.get(name)
            if known is not None:
                act._unsettled.append(known)
                return True
            while reader.at < reader.end:
                tag = reader.at[0]
                reader.at += 1
                if tag == 0x51:
                    if not read_fixed64(&reader, &incarnation):
                        return False
                elif tag == 0x58:
                    if not read_varint(&reader, &sequence):
                        return False
                elif tag == 0x0A or tag > 0x7F or not skip(&reader, tag & 7):
                    return False
            if name is not None:
                fact = _new_tuple(PackedFact, (name, _bytes(span), incarnation, sequence))
                act._unsettled.append(fact)
                if sequence and len(self._taken_up) < self._room:
                    self._pending[name] = fact
                    self._taken_up.append(name)
                else:
                    act._has_strange = True
                return True
        return False

    # Checks.

    cdef bint _is_sound(self, Act act):
        """Whether the domain takes the request."""
        cdef Py_ssize_t i
        cdef const float* features = <const float*> act._features.at
        cdef float value
        if not 1 <= act._request_id.size <= _MOST_REQUEST_ID:
            return False
        if act._has_text and not self._text_size:
            return False
        if act._has_features != (self._feature_count > 0) or act._features.size != 4 * self._feature_count:
            return False
        for i in range(self._feature_count):
            memcpy(&value, features + i, 4)
            if not fabsf(value) <= _LARGEST:
                return False
        if act._slots is not None and not self._are_sound(act._slots):
            return False
        if act._allowed is not None:
            for name in act._allowed:
                if name not in self._action_index:
                    return False
        return True

    cdef bint _has_room(self, Act act):
        """Whether the token to come can carry what is decided beside what it carries already."""
        cdef Py_ssize_t carried = 0
        for fact in act._unsettled:
            carried += _body(fact).size
        return (
            len(act._unsettled) < self._most_facts
            and carried + act._observation.size + self._to_come_bytes <= self._most_fact_bytes
        )

    cdef bint _are_sound(self, list slots):
        names = set()
        for name, kind, value, _ in slots:
            plan = self._slot_plans.get(name)
            if plan is None or plan[0] != kind or name in names or (kind == NUMBER and not isfinite(value)):
                return False
            names.add(name)
        return True

    # Decisions.

    cdef bint _decide(self, policy, list going) except -1:
        """Chooses the actions; False: the policy gives no usable values here."""
        cdef Py_ssize_t count = len(going), row
        cdef Act act
        cdef float* x
        cdef float* q
        cdef float* p
        cdef uint8_t* mask
        self._make_rows(count)
        memset(self._x_row, 0, count * self._inputs * sizeof(float))
        for row in range(count):
            self._encode(going[row], self._x_row + row * self._inputs, row)
        if self._forward is not None:
            self._forward.run(self._x_row, self._q_row, count)
        else:
            self._q[:count] = self._network.q_values(self._x[:count])
        for row in range(count):
            act = going[row]
            q, p = self._q_row + row * self._actions, self._p_row + row * self._actions
            mask = self._mask_row + row * self._actions
            act._mask = self._allow(act, mask)
            if not _are_finite(q, mask, self._actions):
                return False
            if self._epsilons[act._mode] >= 0.0:
                _mix_greedy(q, mask, p, self._actions, self._epsilons[act._mode])
            else:
                exploration = self._explorations[act._mode]
                self._p[row] = probabilities(self._q[row], self._masks[row], exploration)
            act._values, act._chances = q, p
            if act._allowed is not None:
                _hide(q, mask, self._actions)
        for row in range(count):
            act = going[row]
            act._has_seed = False
            self._draw(act)
            self._identify(act)
        return True

    cdef _make_rows(self, Py_ssize_t count):
        """Room for so many."""
        cdef float[:, ::1] x, q, p
        cdef uint8_t[:, ::1] masks
        if self._x is not None and len(self._x) >= count:
            return
        self._x = np.empty((count, self._inputs), np.float32)
        self._q, self._p = (np.empty((count, self._actions), np.float32) for _ in "qp")
        self._masks = np.empty((count, self._actions), np.bool_)
        x, q, p, masks = self._x, self._q, self._p, self._masks.view(np.uint8)
        self._x_row, self._q_row, self._p_row, self._mask_row = &x[0, 0], &q[0, 0], &p[0, 0], &masks[0, 0]

    cdef _encode(self, Act act, float* x, Py_ssize_t row):
        """Writes the policy's inputs to a row, all zero, that begins at `x`."""
        cdef Py_ssize_t lag, at
        cdef double number, value
        if act._has_text:
            x[0] = 1.0
            encode_text(act._text, self._text_size, self._x[row])
        if act._slots is not None:
            for name, kind, given, _ in act._slots:
                _, at, low, high, places = self._slot_plans[name]
                x[at] = 1.0
                if kind == CATEGORY:
                    x[<Py_ssize_t> places.get(given, at + 1 + len(places))] = 1.0
                elif kind == NUMBER:
                    value = given
                    number = min(max(value, <double> low), <double> high)
                    x[at + 1] = number != value
                    x[at + 2] = 2.0 * ((number - <double> low) / (<double> high - <double> low)) - 1.0
                else:
                    x[at + 1] = 1.0 if given else -1.0
        if act._has_features:
            memcpy(x + self._features_at, act._features.at, act._features.size)
        for lag in range(len(act._history)):
            at = act._history[len(act._history) - 1 - lag]
            x[self._history_at + lag * self._actions + at] = 1.0

    cdef bytes _allow(self, Act act, uint8_t* mask):
        """Fills the mask; the same packed, empty where all is allowed."""
        cdef Py_ssize_t i
        cdef bytearray packed
        memset(mask, act._allowed is None, self._actions)
        if act._allowed is None:
            return b""
        for name in act._allowed:
            mask[<Py_ssize_t> self._action_index[name]] = 1
        packed = bytearray((self._actions + 7) // 8)
        for i in range(self._actions):
            packed[i // 8] |= mask[i] << (i % 8)
        for i in range(self._actions):
            if not mask[i]:
                return bytes(packed)
        return b""

    cdef _draw(self, Act act):
        """The action, by the seed unless it is certain; and what to say."""
        cdef const float* p = act._chances
        cdef uint64_t number
        cdef blake2b hash
        cdef Py_ssize_t i, best = 0, chosen = 0
        cdef double total = 0.0, uniform, reached = 0.0
        for i in range(self._actions):
            total += p[i]
            if p[i] > p[best]:
                best = i
        chosen = best
        if p[best] < 1.0:
            self._seed(act)
            blake2b_begin(&hash, sizeof(number))
            blake2b_add(&hash, act._seed, SEED_BYTES)
            blake2b_end(&hash, <uint8_t*> &number)
            uniform = <double> (number >> 11) * 2.0**-53 * total
            for i in range(self._actions):
                reached += p[i]
                if p[i] > 0.0:
                    chosen = i  # rounding may leave the number at the very end: the last possible one is meant
                if reached > uniform:
                    break
        act._action = <int> chosen
        act._probability = p[chosen]
        says = self._says[chosen]
        if len(says) < 2:
            act._say = says[0] if says else b""
        else:
            self._seed(act)
            memcpy(&number, act._seed + SEED_BYTES - 8, 8)
            act._say = says[<Py_ssize_t> (number % <uint64_t> len(says))]

    cdef void _seed(self, Act act) noexcept:
        """As `policy.decision_seed`; asked for only where something is left to chance."""
        cdef uint8_t[20] index
        cdef Span[4] parts
        if act._has_seed:
            return
        parts[0] = act._dialogue
        parts[1] = Span(&index[0], _put_decimal(index, act._index) - index)
        parts[2] = act._request_id
        parts[3] = _span(self._version_text)
        act._secret.seed(parts, 4, act._seed)
        act._has_seed = True

    cdef _identify(self, Act act):
        """The decision's id, as `decisions.decision_id` makes it."""
        cdef bytes action = self._action_ids[act._action]
        cdef blake2b hash
        cdef uint8_t[ID_BYTES] digest
        cdef int i
        blake2b_begin(&hash, ID_BYTES)
        _add_part(&hash, act._dialogue)
        _add_part(&hash, act._parent)
        if act._slots is None or len(act._slots) < 2:
            _add_part(&hash, act._observation)
        else:
            _add_ordered(&hash, act)
        _add_part(&hash, _span(act._mask))
        _add_part(&hash, _span(action))
        _add_part(&hash, _span(self._version_text))
        blake2b_end(&hash, digest)
        memcpy(act._key, b"d:", 2)
        for i in range(ID_BYTES):
            act._key[2 + 2 * i] = _HEX[digest[i] >> 4]
            act._key[3 + 2 * i] = _HEX[digest[i] & 15]
        memcpy(&act._branch, digest, 8)
        act._branch = bswap_64(act._branch) >> 4

    # What is written.

    cdef _write(self, list going, list outcomes, int64_t now_ms):
        """Facts to the uplink, tokens and turns to the outcomes."""
        cdef Py_ssize_t at = 0
        cdef Act act
        cdef list written = []
        cdef bytes nonces
        cdef Secret secret
        self._younger, self._older = self._branches.known()
        for act in going:
            if self._is_first(act) or self._is_one_more(act, outcomes):
                written.append(act)
        self._note(written, now_ms)
        secret = self._secret_of(self._tokens.sealing_key)
        nonces = os.urandom(12 * len(written))
        for act in written:
            outcomes[act._place] = self._reply(act, secret, _start(nonces) + at, now_ms)
            at += 12

    cdef bint _is_first(self, Act act):
        """Whether it is the first that comes of its parent; notes it then, as `Branches.add` would."""
        cdef uint64_t number
        if not _read_branch(act._parent, &number):
            return False
        parent = number
        if parent in self._younger or parent in self._older:
            return False
        self._younger[parent] = act._branch
        if len(self._younger) >= self._most_branched:
            self._branches.turn()
            self._younger, self._older = self._branches.known()
        return True

    cdef bint _is_one_more(self, Act act, list outcomes):
        """Whether its parent may be continued by it; otherwise, why not is what comes of it."""
        parent = _text(act._parent)
        name = PyUnicode_DecodeUTF8(<const char*> act._key + 2, ID_DIGITS, NULL)
        try:
            self._branches.add("" if parent else _text(act._dialogue), parent, name)
        except RequestError as error:
            outcomes[act._place] = error
        self._younger, self._older = self._branches.known()
        return outcomes[act._place] is None

    cdef _note(self, list written, int64_t now_ms):
        """Facts to the uplink, and to the turns that go on carrying them."""
        cdef Act act
        cdef str key
        cdef list keys = []
        cdef Py_ssize_t room
        cdef uint64_t incarnation, sequence
        room, incarnation, sequence = self._uplink.room()
        for act in written:
            key = PyUnicode_DecodeUTF8(<const char*> act._key, sizeof(act._key), NULL)
            if key in self._settled or key in self._settled_before:
                continue
            fact = self._pending.get(key)
            if fact is None:
                if len(keys) < room:
                    fact = self._fact(act, key, now_ms, incarnation, sequence)
                    self._pending[key] = fact
                    keys.append(key)
                    sequence += 1
                else:  # it is left in its token
                    fact = self._fact(act, key, now_ms, 0, 0)
            act._unsettled.append(fact)
        self._uplink.took(keys)

    cdef _fact(self, Act act, str key, int64_t now_ms, uint64_t incarnation, uint64_t sequence):
        """What was decided; numbered, unless the sequence is 0."""
        cdef bytes action = self._action_ids[act._action], body, name
        cdef Py_ssize_t place, width = self._actions * sizeof(float)
        cdef Py_ssize_t decided = (
            field_size(ID_DIGITS) + text_size(act._parent.size) + number_size(act._index)
            + field_size(act._observation.size) + text_size(PyBytes_GET_SIZE(act._mask))
            + field_size(PyBytes_GET_SIZE(action)) + field_size(width)
            + field_size(PyBytes_GET_SIZE(self._version)) + field_size(PyBytes_GET_SIZE(self._fingerprint))
            + number_size(act._mode) + 2
        )
        cdef uint8_t* to
        for place in act._history:
            name = self._action_ids[place]
            decided += field_size(PyBytes_GET_SIZE(name))
        body = PyBytes_FromStringAndSize(
            NULL,
            field_size(2 + ID_DIGITS) + text_size(act._dialogue.size) + number_size(now_ms)
            + field_size(decided) + (9 + number_size(sequence) if sequence else 0),
        )
        to = _start(body)
        to = put_field(to, 1, act._key, 2 + ID_DIGITS)
        to = put_text(to, 2, act._dialogue.at, act._dialogue.size)
        to = put_number(to, 3, now_ms)
        to = put_head(to, 5, decided)
        to = put_field(to, 1, act._key + 2, ID_DIGITS)
        to = put_text(to, 2, act._parent.at, act._parent.size)
        to = put_number(to, 3, act._index)
        to = put_field(to, 4, act._observation.at, act._observation.size)
        for place in act._history:
            name = self._action_ids[place]
            to = put_field(to, 5, _start(name), PyBytes_GET_SIZE(name))
        to = put_text(to, 6, _start(act._mask), PyBytes_GET_SIZE(act._mask))
        to = put_field(to, 7, _start(action), PyBytes_GET_SIZE(action))
        to = put_field(to, 8, act._chances, width)
        to = put_field(to, 9, _start(self._version), PyBytes_GET_SIZE(self._version))
        to = put_field(to, 10, _start(self._fingerprint), PyBytes_GET_SIZE(self._fingerprint))
        to = put_number(to, 11, act._mode)
        to = put_number(to, 12, 1)
        if sequence:
            to[0] = 0x51
            to = put_raw(to + 1, &incarnation, 8)
            put_number(to, 11, sequence)
        return _new_tuple(PackedFact, (key, body, incarnation, sequence))

    cdef bytes _reply(self, Act act, Secret secret, const uint8_t* nonce, int64_t now_ms):
        """The Turn and what is around it, with the token for the next."""
        cdef bytes action = self._action_ids[act._action], reply
        cdef uint8_t* to
        cdef Py_ssize_t begin = self._history_begin(act), width = self._actions * sizeof(float)
        cdef Py_ssize_t state_size = self._state_size(act, begin, now_ms)
        cdef Py_ssize_t token_size = _TOKEN_HEAD + act._dialogue.size + state_size + _TAG
        cdef Py_ssize_t size = (
            text_size(act._dialogue.size) + number_size(act._index) + field_size(ID_DIGITS)
            + field_size(PyBytes_GET_SIZE(action)) + text_size(PyBytes_GET_SIZE(act._say)) + 5
            + field_size(width) + field_size(PyBytes_GET_SIZE(self._version))
            + number_size(self._learned_through) + 2 + field_size(token_size)
            + field_size(PyBytes_GET_SIZE(self._fingerprint))
        )
        reply = PyBytes_FromStringAndSize(NULL, act._around(size) + size)
        to = act._begin(_start(reply), size)
        to = put_text(to, 1, act._dialogue.at, act._dialogue.size)
        to = put_number(to, 2, act._index)
        to = put_field(to, 3, act._key + 2, ID_DIGITS)
        to = put_field(to, 4, _start(action), PyBytes_GET_SIZE(action))
        to = put_text(to, 5, _start(act._say), PyBytes_GET_SIZE(act._say))
        to[0] = 0x35
        to = put_raw(to + 1, &act._probability, 4)
        to = put_field(to, 7, act._values, width)
        to = put_field(to, 8, _start(self._version), PyBytes_GET_SIZE(self._version))
        to = put_number(to, 9, self._learned_through)
        to = put_number(to, 10, 1)
        to = put_head(to, 11, token_size)
        to = self._put_token(to, act, secret, nonce, begin, state_size, now_ms)
        put_field(to, 12, _start(self._fingerprint), PyBytes_GET_SIZE(self._fingerprint))
        return reply

    cdef uint8_t* _put_token(
        self, uint8_t* to, Act act, Secret secret, const uint8_t* nonce, Py_ssize_t begin, Py_ssize_t size,
        int64_t now_ms
    ) except NULL:
        cdef Span head = Span(to, _TOKEN_HEAD + act._dialogue.size)
        to[0] = 1
        to = put_raw(to + 1, secret.head_id, 4)
        to = put_raw(to, nonce, 12)
        to[0] = <uint8_t> act._dialogue.size
        to = put_raw(to + 1, act._dialogue.at, act._dialogue.size)
        self._put_state(to, act, begin, now_ms)
        secret.seal(nonce, head, _span(self._domain_name), to, <int> size)
        return to + size + _TAG

    cdef Py_ssize_t _history_begin(self, Act act) noexcept:
        """The first of its history that the next token still has."""
        return max(len(act._history) + 1 - self._history_length, 0)

    cdef Py_ssize_t _state_size(self, Act act, Py_ssize_t begin, int64_t now_ms) except -1:
        """Of the next token."""
        cdef Py_ssize_t i, size = (
            number_size(now_ms) + number_size(act._index + 1) + number_size(act._mode)
            + text_size(act._user.size) + field_size(ID_DIGITS) + field_size(PyBytes_GET_SIZE(self._fingerprint))
        )
        for i in range(begin, len(act._history)):
            size += field_size(PyBytes_GET_SIZE(self._action_ids[<Py_ssize_t> act._history[i]]))
        if self._history_length:
            size += field_size(PyBytes_GET_SIZE(self._action_ids[act._action]))
        for fact in act._unsettled:
            size += field_size(_body(fact).size)
        return size

    cdef _put_state(self, uint8_t* to, Act act, Py_ssize_t begin, int64_t now_ms):
        """All that is sealed."""
        cdef bytes name
        cdef Span body
        cdef Py_ssize_t i
        to = put_number(to, 1, now_ms)
        to = put_number(to, 2, act._index + 1)
        to = put_number(to, 3, act._mode)
        to = put_text(to, 4, act._user.at, act._user.size)
        to = put_field(to, 5, act._key + 2, ID_DIGITS)
        for i in range(begin, len(act._history)):
            name = self._action_ids[<Py_ssize_t> act._history[i]]
            to = put_field(to, 6, _start(name), PyBytes_GET_SIZE(name))
        if self._history_length:
            name = self._action_ids[act._action]
            to = put_field(to, 6, _start(name), PyBytes_GET_SIZE(name))
        to = put_field(to, 8, _start(self._fingerprint), PyBytes_GET_SIZE(self._fingerprint))
        for fact in act._unsettled:
            body = _body(fact)
            to = put_field(to, 7, body.at, body.size)


def _slot_plan(slot, at):
    """(kind, first input, min, max, inputs of the categories)."""
    if isinstance(slot, CategorySlot):
        return CATEGORY, at, 0.0, 0.0, {word: at + 1 + i for i, word in enumerate(slot.categories)}
    if isinstance(slot, NumberSlot):
        return NUMBER, at, slot.min, slot.max, {}
    assert isinstance(slot, BoolSlot)
    return FLAG, at, 0.0, 0.0, {}


def _slot_name(slot):
    return slot[0]


cdef inline void _add_part(blake2b* hash, Span part) noexcept:
    cdef uint32_t size = <uint32_t> part.size
    blake2b_add(hash, &size, 4)
    blake2b_add(hash, part.at, part.size)


cdef _add_ordered(blake2b* hash, Act act):
    """The observation, its slots in order of name."""
    cdef uint32_t size = <uint32_t> act._observation.size
    cdef bytes field
    blake2b_add(hash, &size, 4)
    blake2b_add(hash, act._before_slots.at, act._before_slots.size)
    for _, _, _, field in sorted(act._slots, key=_slot_name):
        blake2b_add(hash, _start(field), PyBytes_GET_SIZE(field))
    blake2b_add(hash, act._after_slots.at, act._after_slots.size)


cdef uint8_t* _put_decimal(uint8_t* to, uint64_t value) noexcept:
    cdef uint8_t[20] digits
    cdef int count = 0
    while value or not count:
        digits[count] = <uint8_t> (48 + value % 10)
        value //= 10
        count += 1
    while count:
        count -= 1
        to[0] = digits[count]
        to += 1
    return to


cdef bint _read_branch(Span name, uint64_t* number) noexcept:
    """Whether it is an id: the number that `branches` makes of it."""
    cdef int i
    cdef uint8_t digit
    number[0] = 0
    if name.size < BRANCH_DIGITS:
        return False
    for i in range(BRANCH_DIGITS):
        digit = name.at[i]
        if 48 <= digit <= 57:
            digit -= 48
        elif 97 <= digit <= 102:
            digit -= 87
        else:
            return False
        number[0] = number[0] << 4 | digit
    return True


cdef bint _are_finite(const float* q, const uint8_t* mask, Py_ssize_t size) noexcept:
    cdef Py_ssize_t i
    for i in range(size):
        if mask[i] and not isfinite(q[i]):
            return False
    return True


cdef void _mix_greedy(
    const float* q, const uint8_t* mask, float* p, Py_ssize_t size, double epsilon
) noexcept:
    """As `policy.greedy` and `policy.mix`: bit by bit the same numbers."""
    cdef Py_ssize_t i, allowed = 0
    cdef float best = 0.0, ties = 0.0, of_best, of_other
    cdef double uniform
    for i in range(size):
        if mask[i]:
            if not allowed or q[i] > best:
                best = q[i]
            allowed += 1
    for i in range(size):
        if mask[i] and q[i] == best:
            ties += 1.0
    of_best, of_other = <float> 1.0 / ties, 0.0
    if epsilon > 0.0:
        uniform = 1.0 / <double> allowed
        of_best = <float> ((1.0 - epsilon) * of_best + epsilon * uniform)
        of_other = <float> (epsilon * uniform)
    for i in range(size):
        p[i] = of_best if mask[i] and q[i] == best else of_other if mask[i] else <float> 0.0


cdef void _hide(float* q, const uint8_t* mask, Py_ssize_t size) noexcept:
    """NaN where not allowed."""
    cdef uint32_t nan = 0x7FC00000
    cdef Py_ssize_t i
    for i in range(size):
        if not mask[i]:
            memcpy(q + i, &nan, 4)

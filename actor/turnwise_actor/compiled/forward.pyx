# cython: language_level=3, boundscheck=False, initializedcheck=False, cdivision=True
"""The forward pass of `policy.network`, compiled; weights are turned round, so that they are read in order.

D: inputs, A: actions, B: batch.
"""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import numpy as np

cdef extern from "forward.h":
    enum: BLOCK
    enum: LINE
    enum: MOST_ROWS
    enum: RELU
    enum: TANH
    enum: SILU
    int most_rows
    void (*products)(
        int, const float* const*, size_t, const float*, const float*, float*, size_t, size_t, size_t*, int*
    ) noexcept nogil
    void (*norm)(float*, size_t, const float*, const float*, float) noexcept nogil
    void (*activate)(float*, size_t, int) noexcept nogil
    void choose_kernel() noexcept nogil
    void turn(const float*, size_t, size_t, int, float*) noexcept nogil

_KINDS = {"relu": RELU, "tanh": TANH, "silu": SILU}

choose_kernel()


cdef inline size_t _blocks(size_t size) noexcept:
    return (size + BLOCK - 1) / BLOCK * BLOCK


def _room(size_t size):
    """<float32>[size], all zero, at the start of a cache line: a vector across two takes twice as long."""
    room = np.zeros(size + LINE, np.float32)
    begin = -(room.ctypes.data // room.itemsize) % LINE
    return room[begin: begin + size]


def _turned(array, bint centred):
    """<float32>[out, in] as forward.h wants it, flat; less the means over `out`, if so."""
    cdef const float[:, ::1] weight = np.ascontiguousarray(array, np.float32)
    turned = _room(weight.shape[1] * _blocks(weight.shape[0]))
    cdef float[::1] out = turned
    turn(&weight[0, 0], weight.shape[0], weight.shape[1], centred, &out[0])
    return turned


cdef class Forward:
    """Q-values of one set of parameters. Works in memory of its own, so it keeps the interpreter's lock.

    Args:
        layers: (weight <float32>[out, in], bias, scale or None, shift or None) of each; the last is the head.
        activation: relu, tanh or silu.
        eps: Of the layer norms.
    """

    def __cinit__(self, list layers not None, str activation not None, float eps):
        cdef int i
        self._depth = len(layers)
        self._activation = _KINDS[activation]
        self._eps = eps
        self._held = []
        self._inputs = layers[0][0].shape[1]
        self._actions = layers[-1][0].shape[0]
        self._widest = max([_blocks(layer[0].shape[0]) for layer in layers])
        self._layers = <Layer*> calloc(self._depth, sizeof(Layer))
        self._one = <float*> self._hold(_room(MOST_ROWS * self._widest))
        self._other = <float*> self._hold(_room(MOST_ROWS * self._widest))
        self._places = <size_t*> calloc(max(self._inputs, self._widest), sizeof(size_t))
        self._counts = <int*> calloc(max(self._inputs, self._widest), sizeof(int))
        if not (self._layers and self._places and self._counts):
            raise MemoryError
        for i, (weight, bias, scale, shift) in enumerate(layers):
            # A layer norm begins by subtracting the mean over the units, which is linear in W and b.
            self._layers[i].size = weight.shape[0]
            self._layers[i].weight = self._hold(_turned(weight, scale is not None))
            self._layers[i].bias = self._hold(_turned(bias[:, None], scale is not None))
            if scale is not None:
                self._layers[i].scale = self._hold(scale)
                self._layers[i].shift = self._hold(shift)

    def __dealloc__(self):
        free(self._layers)
        free(self._places)
        free(self._counts)

    cdef const float* _hold(self, array):
        cdef const float[::1] view = np.ascontiguousarray(array, np.float32)
        self._held.append(view)
        return &view[0]

    cdef void run(self, const float* x, float* q, Py_ssize_t count) noexcept:
        """x: count times D numbers; q: count times A, written."""
        cdef Py_ssize_t at
        for at in range(0, count, most_rows):
            self._pass(x + at * self._inputs, q + at * self._actions, <int> min(count - at, most_rows))

    cdef void _pass(self, const float* x, float* q, int count) noexcept:
        """Of so many rows, at most `most_rows`; those that a power of 2 has more are the last one again."""
        cdef const float* before[MOST_ROWS]
        cdef float* after = self._one
        cdef size_t n_in = self._inputs, apart = self._inputs
        cdef int i, row, rows = 1
        cdef Layer* layer
        while rows < count:
            rows *= 2
        for i in range(self._depth):
            layer = &self._layers[i]
            for row in range(rows):
                before[row] = x + min(row, count - 1) * apart
            products(
                rows, before, n_in, layer.weight, layer.bias, after, self._widest, _blocks(layer.size),
                self._places, self._counts,
            )
            n_in, apart = layer.size, self._widest
            if i < self._depth - 1:
                for row in range(count):
                    if layer.scale != NULL:
                        norm(after + row * apart, n_in, layer.scale, layer.shift, self._eps)
                    activate(after + row * apart, n_in, self._activation)
            x = after
            after = self._other if after == self._one else self._one
        for row in range(count):
            memcpy(q + row * self._actions, x + row * apart, self._actions * sizeof(float))

    def q_values(self, obs):
        """<float32>[B, A] of <float32>[B, D]."""
        if obs.ndim != 2 or obs.shape[1] != self._inputs:
            raise ValueError(f"obs: got shape {obs.shape}; wanted [B, {self._inputs}]")
        q = np.empty((obs.shape[0], self._actions), np.float32)
        if not obs.shape[0]:
            return q
        cdef const float[:, ::1] x = np.ascontiguousarray(obs, np.float32)
        cdef float[:, ::1] out = q
        self.run(&x[0, 0], &out[0, 0], x.shape[0])
        return q

# cython: language_level=3, boundscheck=False, initializedcheck=False, cdivision=True
"""The forward pass of `policy.network`, compiled; weights are turned round, so that they are read in order.

D: inputs, A: actions, B: batch.
"""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import numpy as np

cdef extern from "forward.h":
    enum: BLOCK
    enum: ROWS
    enum: RELU
    enum: TANH
    enum: SILU
    void (*row)(const float*, size_t, const float*, const float*, float*, size_t, size_t*) noexcept nogil
    void (*rows)(
        const float*, size_t, size_t, const float*, const float*, float*, size_t, size_t
    ) noexcept nogil
    void choose_kernel() noexcept nogil
    void turn(const float*, size_t, size_t, int, float*, size_t) noexcept nogil
    void norm(float*, size_t, const float*, const float*, float) noexcept nogil
    void activate(float*, size_t, int) noexcept nogil

_KINDS = {"relu": RELU, "tanh": TANH, "silu": SILU}

choose_kernel()


cdef inline size_t _blocks(size_t size) noexcept:
    return (size + BLOCK - 1) / BLOCK * BLOCK


def _turned(array, bint centred):
    """<float32>[in, out] of <float32>[out, in], rows in whole blocks, flat; less the means over `out`, if so."""
    cdef const float[:, ::1] weight = np.ascontiguousarray(array, np.float32)
    turned = np.zeros(weight.shape[1] * _blocks(weight.shape[0]), np.float32)
    cdef float[::1] out = turned
    turn(&weight[0, 0], weight.shape[0], weight.shape[1], centred, &out[0], _blocks(weight.shape[0]))
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
        self._one = <float*> calloc(ROWS * self._widest, sizeof(float))
        self._other = <float*> calloc(ROWS * self._widest, sizeof(float))
        self._places = <size_t*> calloc(max(self._inputs, self._widest), sizeof(size_t))
        if not (self._layers and self._one and self._other and self._places):
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
        free(self._one)
        free(self._other)
        free(self._places)

    cdef const float* _hold(self, array):
        cdef const float[::1] view = np.ascontiguousarray(array, np.float32)
        self._held.append(view)
        return &view[0]

    cdef void run(self, const float* x, float* q, Py_ssize_t count) noexcept:
        """x: count times D numbers; q: count times A, written."""
        cdef Py_ssize_t at = 0
        cdef int together
        while at < count:
            together = ROWS if count - at >= ROWS else 1
            self._pass(x + at * self._inputs, q + at * self._actions, together)
            at += together

    cdef void _pass(self, const float* x, float* q, int together) noexcept:
        """Of ROWS rows or of one; the same to the bit."""
        cdef const float* before = x
        cdef float* after = self._one
        cdef size_t n_in = self._inputs, apart = self._inputs
        cdef int i, each
        cdef Layer* layer
        for i in range(self._depth):
            layer = &self._layers[i]
            if together == 1:
                row(before, n_in, layer.weight, layer.bias, after, _blocks(layer.size), self._places)
            else:
                rows(before, apart, n_in, layer.weight, layer.bias, after, self._widest, _blocks(layer.size))
            n_in, apart = layer.size, self._widest
            if i < self._depth - 1:
                for each in range(together):
                    if layer.scale != NULL:
                        norm(after + each * apart, n_in, layer.scale, layer.shift, self._eps)
                    activate(after + each * apart, n_in, self._activation)
            before = after
            after = self._other if after == self._one else self._one
        for each in range(together):
            memcpy(q + each * self._actions, before + each * apart, self._actions * sizeof(float))

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

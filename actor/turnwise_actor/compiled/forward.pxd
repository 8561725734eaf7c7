cdef struct Layer:
    size_t size
    const float* weight
    const float* bias
    const float* scale
    const float* shift


cdef class Forward:
    cdef list _held
    cdef int _depth, _activation
    cdef float _eps
    cdef size_t _inputs, _actions, _widest
    cdef Layer* _layers
    cdef float* _one
    cdef float* _other
    cdef size_t* _places
    cdef int* _counts
    cdef const float* _hold(self, array)
    cdef void _pass(self, const float* x, float* q, int count) noexcept
    cdef void run(self, const float* x, float* q, Py_ssize_t count) noexcept

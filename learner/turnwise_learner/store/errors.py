"""What can be wrong with a store. OSError: it is away, full or not allowed; trying again may help."""


class StoreError(Exception):
    """Something in the store is not as it must be; the message says what, and what can be done."""


class StoreRefusedError(StoreError):
    """This learner must not use this store: trying again is of no use."""

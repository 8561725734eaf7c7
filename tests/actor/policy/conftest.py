from hypothesis import settings

# The machines that run this are slow at times: no deadline per example, pytest's timeout is enough.
settings.register_profile("turnwise", deadline=None)
settings.load_profile("turnwise")

"""A recorder whose worker sleeps: what is taken in stays in the journal, as if the process were about to be killed."""

import contextlib
from collections.abc import Generator

from begat import Recorder
from begat.recording.shipping import Shipping


@contextlib.contextmanager
def asleep(recorder: Recorder) -> Generator[Shipping]:
    """The worker of a recorder, which does nothing until the block ends."""
    shipping = recorder._shipping
    assert shipping is not None
    shipping._wake = lambda: None
    yield shipping
    del shipping._wake

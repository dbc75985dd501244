import os
import threading
import time
import uuid

import pytest

from begat.identity import new_uid


def test_a_uid_is_a_uuid_of_version_7():
    parsed = uuid.UUID(new_uid())
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122


def test_a_uid_tells_the_time_it_was_made():
    before_ms = time.time_ns() // 1_000_000
    told_ms = uuid.UUID(new_uid()).int >> 80
    assert before_ms <= told_ms <= time.time_ns() // 1_000_000 + 1


def test_uids_of_a_process_sort_in_the_order_they_were_made():
    made = [new_uid() for _ in range(5000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_uids_keep_their_order_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch):
    first = new_uid()
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    assert new_uid() > first


def test_threads_never_get_the_same_uid():
    made: list[str] = []

    def make() -> None:
        made.extend([new_uid() for _ in range(2000)])

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8000


def test_a_forked_child_counts_from_a_place_of_its_own(monkeypatch: pytest.MonkeyPatch):
    # With one millisecond for all, parent and child would go on with the same counter if it were not begun anew.
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    new_uid()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, new_uid().encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    theirs = os.read(reading, 100).decode()
    os.close(reading)
    ours = new_uid()
    assert theirs[:28] != ours[:28]  # the last 8 digits are random in any case

"""Between any two steps of gc others log, delete, retire, damage and mend the same content, and nothing is lost."""

from pathlib import Path

import pytest

from begat import sweep
from begat.identity import digest_of
from faults.interleaved import play
from trees import memory_folder


@pytest.mark.parametrize("seed", [4, 14, 17, 45])
def test_nothing_is_lost_whatever_is_done_between_two_steps_of_gc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    with memory_folder(tmp_path) as root:
        world = play(root / "store", seed, monkeypatch, rounds=4, acts=6)
    assert len(world.contents) > 5


@pytest.mark.slow
def test_nothing_is_lost_in_many_more_orders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = 0
    for seed in range(1000, 1025):
        with memory_folder(tmp_path) as root, monkeypatch.context() as patch:
            moves += play(root / "store", seed, patch, rounds=4, acts=6).moves
    assert moves > 5


def test_a_gc_that_moves_what_others_have_come_to_hold_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_fingerprint", lambda holders: digest_of(b"always the same"))
    with memory_folder(tmp_path) as root, pytest.raises(AssertionError, match="seed 61"):
        play(root / "store", 61, monkeypatch, rounds=4, acts=6)

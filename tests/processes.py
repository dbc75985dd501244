"""What tests ask of processes that they did not start themselves."""

from pathlib import Path


def is_running(pid: int) -> bool:
    """Whether a process is there and not just waiting to be looked at."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

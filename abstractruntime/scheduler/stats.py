"""What a scheduler has done so far."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class SchedulerStats:
    """Counts since the scheduler was made; `errors` holds the last ones, as `"<instant>: Run <id>: <error>"`."""

    runs_resumed: int = 0
    runs_failed: int = 0
    poll_cycles: int = 0
    last_poll_at: str | None = None
    errors: list[str] = field(default_factory=list)

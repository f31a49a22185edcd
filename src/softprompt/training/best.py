"""Which prompt of a run is best."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..storage.record import EpochRecord


def is_best(metric: str | None, record: EpochRecord, history: Sequence[EpochRecord]) -> bool:
    """Whether no earlier record is as good; among equal scores the lower loss is better."""
    rank = None if metric is None else _rank(metric, record)
    if metric is None or rank is None:
        return False
    return all(earlier is None or rank > earlier for earlier in (_rank(metric, each) for each in history))


def _rank(metric: str, record: EpochRecord) -> tuple[float, float] | None:
    """More is better; ``None`` where nothing was measured. A loss that is not finite is worse than any other."""
    if getattr(record, metric) is None:
        return None
    loss = -record.eval_loss if record.eval_loss is not None and math.isfinite(record.eval_loss) else -math.inf
    return (loss, 0.0) if metric == "eval_loss" else (getattr(record, metric), loss)

"""Plans of rows that are tensors."""

import torch

from softprompt.engine.plans import plan_rows


def plan_of(virtual, rows, labels=None):
    """Rows under a prefix prompt of ``virtual`` tokens; without labels, nothing is supervised."""
    lists = None if labels is None else [row.tolist() for row in labels]
    return plan_rows(virtual, [row.tolist() for row in rows], lists, torch.device("cpu"))

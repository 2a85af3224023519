"""Predictions -> numbers, with intervals and significance. Beside the flow; imports no other room.

    references [N], predictions [N]      --compute(names)-->   {"accuracy": 0.94, "macro_f1": 0.91}
    references [N], predictions [S, N]   --intervals-->        Interval(mean, low, high)
    two systems' predictions [S, N]      --significance-->     p-value --holm--> adjusted p-value

Every metric is a plain function `(references, predictions, ..., weights=None)`. With `weights [R, N]` (how often each
example counts in each of R resamples) it returns all R values, mostly from one matrix product: this is what makes
bootstraps and permutation tests fast for any metric.
"""

from research.metrics.lookup import compute, find, known, reads

__all__ = ["compute", "find", "known", "reads"]

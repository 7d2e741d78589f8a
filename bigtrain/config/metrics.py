"""Which way is better, of the metrics that bigtrain's objectives have."""

from __future__ import annotations

WAYS = {
    **dict.fromkeys(("loss", "perplexity", "rmse", "mae", "cross_entropy", "teacher_divergence"), "minimize"),
    **dict.fromkeys(("accuracy", "precision", "recall", "f1", "pearson"), "maximize"),
}

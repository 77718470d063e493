"""triattn inside an engine's process: plans, scores, compaction and the link to the control plane."""

__version__ = "0.1.0"

"""Ground truth that knows no method: the only place that trains."""

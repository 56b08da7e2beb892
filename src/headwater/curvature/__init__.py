"""One file per curvature."""

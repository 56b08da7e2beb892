"""Per-example gradients: captured as factors, sketched, kept exact."""

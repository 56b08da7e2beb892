"""Arithmetic on two tables: scores, and what is known to be true. Imports only the types."""

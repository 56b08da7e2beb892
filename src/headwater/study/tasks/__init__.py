"""The tasks: rows and queries whose class is known by construction. One file a family, by name in `registry`."""

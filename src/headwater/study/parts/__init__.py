"""The parts of the study: each measures something in a world and leaves cells. One file a part, by name in `registry`."""

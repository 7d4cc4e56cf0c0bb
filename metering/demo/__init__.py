"""The demonstration: the whole pipeline on one machine, live."""

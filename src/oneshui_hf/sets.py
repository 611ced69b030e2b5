"""Names of the image sets of a split, in the order of every table and file."""

from __future__ import annotations

EVALUATED = ("retain", "forget", "val", "test")  # sets that metrics are reported on
COMPARED = ("retain", "forget", "test")  # sets that ToW compares with the oracle; val chose epochs and options
PREDICTED = (*EVALUATED, "support")  # sets that predictions are stored for
ATTACKED = ("forget", "test")  # members and non-members of membership inference attacks
SPLIT_SETS = ("retain", "forget", "support", "reserved", "val", "test")  # disjoint sets that a split consists of

"""The parts of a benchmark: the grid and its file, the jobs that it consists of, their estimated cost, and the set-up."""

"""The parts of a benchmark: the grid and its file, its jobs, their estimated cost, and the set-up."""

"""Publication on the Hub: the public contents of a run or data set, push and pull."""

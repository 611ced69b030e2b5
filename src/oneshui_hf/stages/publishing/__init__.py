"""Publication on the Hub: what of a run or a data set is public, and how it is pushed and pulled."""

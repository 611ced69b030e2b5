"""The commands, from training to publication: one a module, each callable from Python and from the command line."""

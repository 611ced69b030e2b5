"""`python -m oneshui_hf`, which is also what `accelerate launch -m oneshui_hf` and torchrun start."""

from oneshui_hf.cli import main

main()

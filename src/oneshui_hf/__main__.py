"""`python -m oneshui_hf`, which is also what `accelerate launch -m oneshui_hf` and torchrun start."""

from .cli import main

main()

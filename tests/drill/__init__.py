"""The drill: kills, full disks, two commands at once, crafted runs and malformed commands, on generated faces.

    nox -s drill
    nox -s drill -- --only kills --case train:17        # one case again

It counts what ended right, what ended with one sentence, and what failed. Every case is drawn from a seed. It runs on Linux. With a C
compiler it injects faults into every file operation (`shim.c`), without one into those that Python announces.
"""

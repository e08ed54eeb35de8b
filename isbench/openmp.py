"""A setting of OpenMP for isbench's own programs. The library leaves it to the program that it is part of."""

import os

# How long a thread of GNU's OpenMP, which is torch's on Linux, spins before it sleeps. Its 300,000 rounds keep the core
# from the thread that it waits for: beside a busy process, an update of LeNet on two threads of two cores took 2 to 20
# times as long as with 1,000, which OpenMP takes itself where it knows of more threads than cores. Alone it takes as
# long. OpenMP reads this once, as torch is imported, so programs import this module before that.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

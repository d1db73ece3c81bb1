"""The tool behind the Makefile: sets up, starts, tests and takes down the development stack.

`python3 -m dev <command>`. What runs before `.dev/venv` exists needs the standard library only.
"""

import sys
from pathlib import Path

# What the project declares is read by the program's own module (`dev.project`).
sys.path.append(str(Path(__file__).resolve().parent.parent / "src"))

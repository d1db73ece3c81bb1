"""The tool behind the Makefile: sets up, starts, tests and takes down the development stack.

`python3 -m dev <command>`. What runs before the private environment exists (`.dev/venv`) is standard library only.
"""

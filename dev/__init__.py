"""The tool behind the Makefile: sets up, starts, tests and takes down the development stack.

`python3 -m dev <command>`. What runs before `.dev/venv` exists needs the standard library only.
"""

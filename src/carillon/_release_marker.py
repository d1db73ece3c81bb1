"""Made by a test, which takes it away again: a release that differs from the one before."""

"""Correctness of compression on the real engine, against a dense masked oracle. How to write a test: README.md."""

"""Convolutions with a fast form for each backend, and their plain reference."""

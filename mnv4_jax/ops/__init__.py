"""Convolutions whose fast form depends on the backend, each beside its plain reference."""

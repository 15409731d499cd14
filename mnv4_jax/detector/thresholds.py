"""Reads the --threshold of a command line: the p_fake from which a picture is called fake."""

import argparse

from input_pipeline.cli import UserError

HELP = (
    "p_fake from which a picture is called fake (0.5), or a false-alarm rate that the checkpoint"
    " has a threshold for, as 5%%"
)


def check(parser: argparse.ArgumentParser, given: str) -> None:
    """Exits with an error if `given` is neither a number from 0 to 1 nor a rate like 5%."""
    number = given.removesuffix("%")
    try:
        valid = 0 <= float(number) <= (100 if number != given else 1)
    except ValueError:
        valid = False
    if not valid:
        parser.error(f"--threshold={given}: must be from 0 to 1, or a rate like 5%")


def choose(given: str, thresholds: dict[str, float]) -> float:
    """`given` as a number; for a false-alarm rate like "5%", its entry in `thresholds`."""
    if not given.endswith("%"):
        return float(given)
    rate = f"{float(given[:-1]) / 100:g}"
    if rate not in thresholds:
        known = "none (trained without Validation, or --raw)"
        if thresholds:
            known = f"thresholds for {', '.join(f'{100 * float(r):g}%' for r in thresholds)}"
        raise UserError(
            f"--threshold={given}: the checkpoint has {known}; or give a number from 0 to 1"
        )
    return thresholds[rate]

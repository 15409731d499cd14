"""One table of this project against its peers and the machine's limit, the ratio first:

    python benchmarks/comparison.py --data=$MNV4_DATA/rvf10k [--rounds=5]

Runs `train_step.py`, `inference.py` and `pipeline.py`, whose docstrings say what is compared. Above
1 this project is faster.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
OURS = {"train_step": "mnv4_jax", "inference": "mnv4_jax", "pipeline": "this pipeline"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="an image folder; default: pictures of noise")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", default="128:64,224:32", help="of training, px:batch, ...")
    parser.add_argument("--batches", default="1,64", help="of inference")
    parser.add_argument("--size", type=int, default=224, help="of inference, px")
    parser.add_argument("--images", type=int, default=2048, help="to decode in one measurement")
    args = parser.parse_args()
    flags = {
        "train_step": [f"--sizes={args.sizes}"],
        "inference": [f"--batches={args.batches}", f"--size={args.size}"],
        "pipeline": [f"--data={args.data}", f"--images={args.images}"],
    }
    print("| ratio | what | images/s | peer | its images/s |\n| --- | --- | --- | --- | --- |")
    for name, ours in OURS.items():
        for what, rates in measured(name, f"--rounds={args.rounds}", *flags[name]).items():
            rate = rates.pop(ours)
            for peer, other in rates.items():
                if peer.startswith("decoded before"):  # this pipeline too, from its cache
                    continue
                cells = (f"{rate / other:.2f}×", what, f"{rate:,.1f}", peer, f"{other:,.1f}")
                print(f"| {' | '.join(cells)} |", flush=True)


def measured(name, *flags):
    """{what was timed: {contender: images/s}} of a benchmark; its own table goes to stderr."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "out.jsonl")
        command = [sys.executable, HERE / f"{name}.py", f"--out={out}", *flags]
        subprocess.run(command, check=True, stdout=sys.stderr)
        lines = [json.loads(line) for line in out.read_text().splitlines()]
    rates = {}
    for line in lines:
        if name == "pipeline":
            what, contenders = name, {k: statistics.median(v) for k, v in line["rates"].items()}
        else:
            what, contenders = f"{name}, {line['px']} px, batch {line['batch']}", {}
            contenders[line["what"]] = line["images_per_s"]
        rates.setdefault(what, {}).update(contenders)
    return rates


if __name__ == "__main__":
    main()

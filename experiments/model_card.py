"""The figures of docs/MODEL_CARD.md: the shipped detector on the Test splits of its own sets.

    python experiments/model_card.py --data=$MNV4_DATA

Only for reporting: no choice depends on these. Takes ten minutes on one core.
"""

import argparse
import csv
import pathlib

import numpy as np
from leave_one_out import FAMILIES, PHOTOGRAPHS
from sklearn.metrics import roc_auc_score

from input_pipeline.decode import decode
from mnv4_jax.detector.detector import Detector
from mnv4_jax.measure.corruptions import corrupt
from mnv4_jax.measure.groups import rates_by_group

_RATE = "0.05"
_DAMAGE = (("jpeg", 75), ("jpeg", 50), ("webp", 50), ("screenshot", 0.6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=pathlib.Path, help="the folder of image sets")
    parser.add_argument("--checkpoint", help="default: the detector in the box")
    parser.add_argument("--split", default="Test")
    args = parser.parse_args()
    detector = Detector(args.checkpoint)
    threshold = detector.thresholds[_RATE]

    def files(name, label):
        return sorted((args.data / name / args.split / label).glob("*.jpg"))

    real = {name: detector(files(name, "Real")) for name in PHOTOGRAPHS}
    pooled = np.concatenate(list(real.values()))
    print(f"{args.split}, threshold for 5% false alarms on Validation: {threshold:.4f}\n")
    print("| fakes | n | AUC against | AUC | found at the threshold |")
    print("| --- | --- | --- | --- | --- |")
    for family, name in FAMILIES.items():
        fake = detector(files(name, "Fake"))
        against = {"its own photographs": real[name]} if name in real else {}
        for title, photographs in (against | {"all photographs": pooled}).items():
            labels = np.repeat([1, 0], [len(fake), len(photographs)])
            auc = roc_auc_score(labels, np.concatenate([fake, photographs]))
            found = (fake >= threshold).mean()
            print(f"| {family} | {len(fake)} | {title} | {auc:.3f} | {found:.1%} |", flush=True)

    titles = [f"after {kind} {level:g}" for kind, level in _DAMAGE]
    print("\n| photographs | n | called fake |", " | ".join(titles), "|")
    print("| --- | --- | --- |", " --- |" * len(titles), sep="")
    for name in PHOTOGRAPHS:
        pixels = [decode(file.read_bytes()) for file in files(name, "Real")]
        cells = [(real[name] >= threshold).mean()]
        for kind, level in _DAMAGE:
            damaged = [corrupt(p, kind, level, seed=0) for p in pixels]
            cells.append((detector(damaged) >= threshold).mean())
        print(f"| {name} | {len(pixels)} |", " | ".join(f"{x:.1%}" for x in cells), "|", flush=True)

    with open(args.data / "utkface" / args.split / "sources.csv", newline="") as file:
        rows = {pathlib.Path(row["file"]).name: row for row in csv.DictReader(file)}
    named = [rows[file.name] for file in files("utkface", "Real")]
    columns = {c: [row[c] for row in named] for c in ("age", "gender", "race")}
    labels = np.ones(len(named), int)
    groups = rates_by_group(labels, real["utkface"], columns, threshold)
    print(
        "\n| utkface | group | n | false alarms | 95% interval |\n| --- | --- | --- | --- | --- |"
    )
    for column, table in groups.items():
        for value, row in table["groups"].items():
            rate = row["false_alarm_rate"]
            low, high = rate["ci95"]
            print(
                f"| {column} | {value} | {row['n_real']} | {rate['value']:.1%}"
                f" | {low:.1%} to {high:.1%} |"
            )
        print(f"| {column} | largest gap | | {table['gap']:.1%} | |")


if __name__ == "__main__":
    main()

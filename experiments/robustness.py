"""Gains and costs of adversarial training, on the training set and on other sets.

    python experiments/robustness.py --data=$MNV4_DATA --workdir=runs/robustness

Every row is trained on `--home` at 128 px, once per seed, and evaluated on its Test: clean,
attacked (fakes alone, the worst attack on each picture), damaged, and clean on the other sets.
Existing runs and reports are not made again; the table has the finished rows, with medians over
seeds; frontier-HOME.png shows what robustness costs. A budget is in whole 255ths: half a 255th is
lost when a file is rounded.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np
from leave_one_out import FAMILIES, PHOTOGRAPHS
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

METHODS = ("none", "fgsm", "pgd", "trades")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=pathlib.Path, help="the folder of image sets")
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--home", default="rvf10k", help="the set that is trained on")
    parser.add_argument(
        "--init_from", default="shipped", help="where each row starts; empty: fresh"
    )
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument(
        "--budgets", nargs="*", type=int, default=[1, 2], help="trained for, 255ths"
    )
    parser.add_argument("--attack", default="1,2,4", help="judged by, 255ths")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--pictures", type=int, default=64, help="to attack")
    parser.add_argument("--attack_steps", type=int, default=20, help="gradients an attack takes")
    args = parser.parse_args()
    rows = [("none", 0)] if "none" in args.methods else []
    rows += [(m, budget) for m in args.methods if m != "none" for budget in args.budgets]
    for seed in args.seeds:
        for method, budget in rows:
            run(method, budget, seed, args)
            print_table(rows, args)
    plot_frontier(rows, args)


def run(method: str, budget: int, seed: int, args) -> None:
    """Trains and evaluates a row for one seed, unless its reports exist."""
    workdir = folder_of(method, budget, seed, args)
    workdir.mkdir(parents=True, exist_ok=True)
    fields = {
        "data.dir": args.data / args.home,
        "data.image_size": 128,
        "data.crop_pct": 0.8,
        "model.init_from": args.init_from,
        "seed": seed,
        "train.steps": args.steps,
        "train.eval_every_steps": args.steps,
        "train.learning_rate": 1e-3 if args.init_from else 3e-3,
        "train.warmup_epochs": 0.2,
        "train.adversary.method": method,
    } | ({"train.adversary.budget": budget} if budget else {})
    home = workdir / "home" / "report.json"
    if not home.exists():
        config = [f"--config.{name}={value}" for name, value in fields.items()]
        small = ["--config=configs/small.py", f"--workdir={workdir}"]
        command(workdir, "mnv4_jax.main", *small, *config)
        judged = [
            f"--checkpoint={workdir}",
            f"--out={home.parent}",
            f"--data={args.data / args.home}",
        ]
        attack = [
            f"--attack={args.attack}",
            f"--attack_pictures={args.pictures}",
            f"--attack_steps={args.attack_steps}",
        ]
        command(workdir, "mnv4_jax.evaluate", *judged, *attack)
    elsewhere = workdir / "elsewhere.json"
    if not elsewhere.exists():
        elsewhere.write_text(json.dumps(score_elsewhere(workdir, args)))


def folder_of(method: str, budget: int, seed: int, args) -> pathlib.Path:
    return args.workdir / f"{args.home}_{method}_{budget}_{args.steps}_{seed}"


def score_elsewhere(workdir: pathlib.Path, args) -> dict[str, float]:
    """{family: AUC of its Test fakes against the Test photographs of all sets}, not attacked."""
    from mnv4_jax.detector.detector import Detector

    detector = Detector(workdir)

    def p_fake(name, label):
        return detector(sorted((args.data / name / "Test" / label).glob("*.jpg")))

    real = np.concatenate([p_fake(name, "Real") for name in PHOTOGRAPHS])
    aucs = {}
    for family, name in FAMILIES.items():
        if name != args.home:
            fake = p_fake(name, "Fake")
            labels = np.repeat([1, 0], [len(fake), len(real)])
            aucs[family] = float(roc_auc_score(labels, np.concatenate([fake, real])))
    return aucs


def command(workdir: pathlib.Path, *module_and_flags: str) -> None:
    with open(workdir / "log.txt", "a") as log:
        subprocess.run(
            [sys.executable, "-m", *module_and_flags],
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )


def print_table(rows, args) -> None:
    budgets = [int(budget) for budget in args.attack.split(",")]
    families = [family for family, name in FAMILIES.items() if name != args.home]
    titles = ["training", "seeds", "AUC", "accuracy", "ECE"]
    titles += [f"{what} at {b}/255" for b in budgets for what in ("AUC", "accuracy")]
    titles += ["AUC, damaged (mean)", *families]
    print(f"\n| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
    for row in rows:
        found = [figures(folder, budgets, families) for folder in finished(*row, args)]
        cells = [f"{x:.3f}" for x in np.median(found, axis=0)] if found else ["–"]
        print(f"| {name_of(*row)} | {len(found)} |", " | ".join(cells), "|", flush=True)


def plot_frontier(rows, args) -> None:
    """A point per run: AUC on clean pictures and at the lowest budget of `--attack`."""
    axes = Figure(figsize=(5, 4), layout="constrained").subplots()
    lowest = int(args.attack.split(",")[0])
    for row in rows:
        points = [figures(folder, [lowest], []) for folder in finished(*row, args)]
        if points:
            clean, _, _, attacked, *_ = zip(*points, strict=True)
            axes.plot(clean, attacked, "o", label=name_of(*row))
    axes.axhline(0.7, color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel=f"AUC on {args.home} Test", ylabel=f"AUC under attack at {lowest}/255, worst")
    axes.legend(title="trained on")
    axes.figure.savefig(args.workdir / f"frontier-{args.home}.png", dpi=110)


def finished(method: str, budget: int, args) -> list[pathlib.Path]:
    folders = [folder_of(method, budget, seed, args) for seed in args.seeds]
    return [folder for folder in folders if (folder / "elsewhere.json").exists()]


def name_of(method: str, budget: int) -> str:
    return "plain" if method == "none" else f"{method}, {budget}/255"


def figures(workdir: pathlib.Path, budgets: list[int], families: list[str]) -> list[float]:
    report = json.loads((workdir / "home" / "report.json").read_text())
    elsewhere = json.loads((workdir / "elsewhere.json").read_text())
    worst = {
        row["budget"]: row
        for row in report["attack"]["rows"]
        if row["attack"] == "worst" and row["on"] == "fakes"
    }
    return [
        *(report[key]["value"] for key in ("auc", "accuracy", "ece")),
        *(worst[b][key]["value"] for b in budgets for key in ("auc", "accuracy")),
        np.mean([row["auc"]["value"] for row in report["robustness"]["rows"][1:]]),
        *(elsewhere[family] for family in families),
    ]


if __name__ == "__main__":
    main()

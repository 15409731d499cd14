"""The recipe's experiments: trains missing runs, and prints the table of docs/RESULTS.md.

    python experiments/ablations.py --data=$MNV4_DATA --workdir=runs/ablations
    python experiments/ablations.py --data=$MNV4_DATA --workdir=runs/ablations --only=cpu_

Choices are based on Validation; Test is printed for finished rows, and no choice depends on it. The
rows "cpu_" take 12 minutes each on 2 cores, the long ones up to an hour. The others take hours on a
CPU; on one H100 with 16 cores they took 17 minutes, six to eight at a time (--jobs), each stopped
after 400 s, before the end of the longest ones.

Most were run before today's defaults: every row starts from `THEN`, followed by its own fields.
"""

import argparse
import concurrent.futures
import json
import pathlib
import subprocess
import sys

THEN = ["data.crop=native", "gabor.response=real"]
WHOLE_PX = {"rvf10k": 256, "dfdc_faces": 224}  # the whole picture was scored
NOW = ["data.eval_image_size=0", "gabor.response=magnitude"]

LIGHT = ["train.batch_size=128", "train.epochs=120", "train.eval_every_steps=375"]
LONG = [
    "data.image_size=224", "train.batch_size=128", "train.epochs=110",
    "train.eval_every_steps=344", "augment.erase=0.5", "model.drop_path_rate=0.1",
    "train.weight_decay=0.1",
]  # fmt: skip
DAMAGE = [
    "data.jpeg_prob=0.3", "data.downscale_prob=0.2", "augment.blur=0.7", "augment.noise=0.02",
]  # fmt: skip
STRONGER = ["data.jpeg_prob=0.5", "data.downscale_prob=0.3", *DAMAGE[2:], "augment.erase=0.3"]

CPU = ["data.image_size=160"]
WHOLE = ["data.crop=resize", "data.crop_pct=1.0", "data.eval_image_size=0"]
MOVED = [
    "data.crop=resize", "data.crop_pct=0.889", "data.image_size=128", "data.eval_image_size=144",
]  # fmt: skip
DFDC = [*WHOLE, "data.image_size=128", "train.learning_rate=1e-3"]

HUNDRED = [
    "data.image_size=128", "train.batch_size=128", "train.epochs=100",
    "train.eval_every_steps=375",
]  # fmt: skip

# name: (data set, fields beyond configs/small.py and THEN, a trial of trials.py)
EXPERIMENTS = {
    "rvf_20ep": ("rvf10k", ["data.image_size=128", "train.epochs=20"]),
    "f_rvf_20ep": ("rvf10k", ["data.image_size=224", "train.epochs=20"]),
    "rvf_none": ("rvf10k", ["data.image_size=128", "gabor.mode=none", *LIGHT]),
    "rvf_concat": ("rvf10k", ["data.image_size=128", *LIGHT]),
    "rvf_damage": ("rvf10k", ["data.image_size=128", *LIGHT, *STRONGER]),
    "rvf_224": ("rvf10k", ["data.image_size=224", *LIGHT]),
    "rvf_224_erase_dp": ("rvf10k", [*LONG, *LIGHT]),
    "f_rvf": ("rvf10k", LONG),
    "f_rvf_none": ("rvf10k", [*LONG, "gabor.mode=none"]),
    "f_rvf_learn": ("rvf10k", [*LONG, "gabor.learnable=True"]),
    "f_rvf_damage": ("rvf10k", [*LONG, *DAMAGE]),
    "dfdc_8": (
        "dfdc_faces",
        ["data.image_size=128", "train.batch_size=128", "train.steps=1750",
         "train.eval_every_steps=350"],
    ),
    "dfdc_224": (
        "dfdc_faces",
        ["data.image_size=224", "train.batch_size=256", "train.epochs=20",
         "train.eval_every_steps=188"],
    ),
    "f_dfdc_damage": (
        "dfdc_faces", [*LONG, *DAMAGE, "train.epochs=18", "train.eval_every_steps=375"]
    ),
    "g_dfdc": (
        "dfdc_faces",
        [*LONG, "train.batch_size=256", "train.epochs=22", "train.eval_every_steps=188",
         "train.learning_rate=0.003"],
    ),
    "cpu_concat": ("rvf10k", CPU),
    "cpu_concat_1": ("rvf10k", [*CPU, "seed=1"]),
    "cpu_concat_2": ("rvf10k", [*CPU, "seed=2"]),
    "cpu_none": ("rvf10k", [*CPU, "gabor.mode=none"]),
    "cpu_none_1": ("rvf10k", [*CPU, "gabor.mode=none", "seed=1"]),
    "cpu_none_2": ("rvf10k", [*CPU, "gabor.mode=none", "seed=2"]),
    "cpu_enhance": ("rvf10k", [*CPU, "gabor.mode=enhance"]),
    "cpu_whole": ("rvf10k", [*WHOLE, *CPU]),
    "cpu_whole_128": ("rvf10k", [*WHOLE, "data.image_size=128"]),
    "cpu_whole_128_erase": (
        "rvf10k",
        [*WHOLE, "data.image_size=128", "train.epochs=30", "augment.erase=0.5",
         "model.drop_path_rate=0.1", "train.weight_decay=0.1"],
    ),
    "cpu_moved_128": ("rvf10k", MOVED),
    "cpu_moved_128_1": ("rvf10k", [*MOVED, "seed=1"]),
    "cpu_magnitude": ("rvf10k", [*MOVED, "gabor.response=magnitude"]),
    "cpu_magnitude_1": ("rvf10k", [*MOVED, "gabor.response=magnitude", "seed=1"]),
    "cpu_magnitude_2": ("rvf10k", [*MOVED, "gabor.response=magnitude", "seed=2"]),
    "cpu_none_128": ("rvf10k", [*MOVED, "gabor.mode=none", "data.eval_image_size=0"]),
    "cpu_look": ("rvf10k", [*MOVED, "data.eval_image_size=0"], "look"),
    "cpu_whole_dfdc": ("dfdc_faces", [*DFDC, "train.epochs=5"]),
    "cpu_whole_dfdc_long": (
        "dfdc_faces", [*DFDC, "augment.erase=0.3", "model.drop_path_rate=0.1"]
    ),
    "cpu_long": ("rvf10k", HUNDRED),
    "cpu_small": ("rvf10k", ["data.crop=resize", *NOW]),
    "cpu_small_128": ("rvf10k", ["data.crop=resize", "data.image_size=128", *NOW]),
    "cpu_magnitude_long": ("rvf10k", [*HUNDRED, *NOW]),
    "cpu_magnitude_dfdc": ("dfdc_faces", [*DFDC, *NOW, "train.epochs=5"]),
    "cpu_mixup": ("rvf10k", CPU, "mixup"),
    "cpu_cutmix": ("rvf10k", CPU, "cutmix"),
    "cpu_sam": ("rvf10k", [*CPU, "train.epochs=10"], "sam"),
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="the folder of image sets")
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--only", default="", help="the experiments whose names begin so")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--seconds", type=float, help="each run is stopped after so long")
    args = parser.parse_args()
    names = [name for name in EXPERIMENTS if name.startswith(args.only)]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda name: train(name, args), names))
    print(
        "| run | beyond what all rows start from | pictures seen | train AUC | best Validation AUC",
        end="",
    )
    print(" (at step) | Test AUC | Test accuracy |\n| --- | --- | --- | --- | --- | --- | --- |")
    for name in names:
        print(row(name, args.workdir / name / "metrics.jsonl"))


def train(name: str, args) -> None:
    """Runs one experiment unless its metrics exist."""
    data, fields, *trial = EXPERIMENTS[name]
    workdir = args.workdir / name
    if (workdir / "metrics.jsonl").exists():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    program = ["experiments/trials.py", *trial] if trial else ["-m", "mnv4_jax.main"]
    command = [sys.executable, *program, "--config=configs/small.py"]
    command += [f"--workdir={workdir}", f"--config.data.dir={args.data}/{data}"]
    fields = [*THEN, f"data.eval_image_size={WHOLE_PX[data]}", *fields]
    command += [f"--config.{field}" for field in fields]
    with open(workdir / "log.txt", "w") as log:
        run = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            run.wait(args.seconds)
        except subprocess.TimeoutExpired:
            run.terminate()  # it saves and exits
            run.wait()


def row(name: str, metrics: pathlib.Path) -> str:
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    split = {s: [x for x in lines if x["split"] == s] for s in ("train", "validation", "test")}
    best = max(split["validation"], key=lambda x: x["auc"] or 0)
    last = split["train"][-1]
    _, fields, *trial = EXPERIMENTS[name]
    config = dict(field.split("=") for field in fields)
    seen = last["step"] * int(config.get("train.batch_size", 64))
    test = split["test"][-1] if split["test"] else None
    return (
        f"| {name} | {' '.join([*trial, *fields])} | {seen:,} | {last['auc']:.3f}"
        f" | {best['auc']:.3f} ({best['step']})"
        + (f" | {test['auc']:.3f} | {test['accuracy']:.3f} |" if test else " | – | – |")
    )


if __name__ == "__main__":
    main()

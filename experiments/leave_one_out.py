"""Tests a recipe on a family of fakes that it has not seen: one run for each family left out.

    python experiments/leave_one_out.py --data=$MNV4_DATA --workdir=runs/leave_one_out

A cell is the AUC of the family's Validation fakes against the Validation photographs of all sets,
after training on all other fakes and the Train photographs. No choice depends on a Test split.
700 steps of 64 take 10 to 20 minutes on one core. Existing runs are not made again, and the table
is printed with the finished cells.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np

FAMILIES = {
    "face swap": "dfdc_faces",
    "StyleGAN": "rvf10k",
    "StyleGAN2": "stylegan2_faces",
    "studio GAN": "studio_gan_faces",
    "diffusion": "diffusion_faces",
}
PHOTOGRAPHS = ("dfdc_faces", "rvf10k", "utkface")
_VIEW = ["data.image_size=128", "data.crop_pct=0.8"]
_DAMAGE = [
    "data.jpeg_prob=0.6", "data.downscale_prob=0.5", "data.downscale=(0.35,0.95)",
    "augment.blur=0.8", "augment.noise=0.02", "augment.erase=0.3",
]  # fmt: skip
_LEVELLED = [
    *_DAMAGE, "data.zoom=(0.6,1.25)", "augment.brightness=0.25", "augment.contrast=0.25",
    "data.downscale_prob=0.6", "data.downscale=(0.3,0.95)", "augment.blur=1.2",
]  # fmt: skip
RECIPES = {
    "mixture": _VIEW,
    "mixture, blended": [*_VIEW, "data.blended=balanced"],
    "damage": [*_VIEW, *_DAMAGE],
    "damage, WebP and gamma": [*_VIEW, *_DAMAGE, "data.webp_prob=0.2", "augment.gamma=0.5"],
    "damage, no bank": [*_VIEW, *_DAMAGE, "gabor.mode=none"],
    "damage, blended": [*_VIEW, *_DAMAGE, "data.blended=balanced"],
    "damage, consistency": [*_VIEW, *_DAMAGE, "train.consistency=1.0"],
    "levelled": [*_VIEW, *_LEVELLED],
    "levelled, blended": [*_VIEW, *_LEVELLED, "data.blended=balanced"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=pathlib.Path, help="the folder of image sets")
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=FAMILIES)
    args = parser.parse_args()
    for family in args.families:
        for recipe in args.recipes:
            cell(recipe, family, args)
            print_table(args)


def cell(recipe: str, family: str, args) -> None:
    """Trains and scores one cell, unless its result exists."""
    workdir = folder_of(recipe, family, args)
    if (workdir / "left_out.json").exists():
        return
    left_out = FAMILIES[family]
    sets = [args.data / name for name in (*FAMILIES.values(), "utkface") if name != left_out]
    if left_out in PHOTOGRAPHS:
        sets.append(photographs_of(args, left_out))
    fields = dict(field.split("=", 1) for field in RECIPES[recipe])  # the last of a name wins
    if fields.get("data.blended") == "balanced":
        fields["data.blended"] = f"{without_fakes(sets):.2f}"
    command = [sys.executable, "-m", "mnv4_jax.main", "--config=configs/small.py"]
    command += [f"--workdir={workdir}", f"--config.data.dir={','.join(map(str, sets))}"]
    command += [
        f"--config.train.steps={args.steps}",
        f"--config.train.eval_every_steps={args.steps}",
    ]
    command += [
        f"--config.seed={args.seed}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / "log.txt", "w") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
    (workdir / "left_out.json").write_text(json.dumps(score(workdir, family, args)))


def folder_of(recipe: str, family: str, args) -> pathlib.Path:
    name = f"{recipe} without {family} {args.steps} {args.seed}"
    return args.workdir / name.replace(", ", "_").replace(" ", "_")


def without_fakes(sets: list[pathlib.Path]) -> float:
    """The share of photographs in batches that come from sets without fakes: as many fakes must be
    made for neither look to mean a class. Sets are drawn by the square roots of their sizes."""
    reals = lone = 0.0
    for folder in sets:
        fake, real = (len(list(folder.glob(f"Train/{label}/*"))) for label in ("Fake", "Real"))
        drawn = (fake + real) ** 0.5 if real else 0
        reals, lone = reals + drawn, lone + drawn * (not fake)
    return lone / reals


def photographs_of(args, name: str) -> pathlib.Path:
    """A set with the photographs of another one, as links."""
    folder = args.workdir / "sets" / f"{name}_real"
    for split in ("Train", "Validation"):
        link = folder / split / "Real"
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((args.data / name / split / "Real").resolve())
    return folder


def score(workdir: pathlib.Path, family: str, args) -> dict[str, float]:
    """{"auc", "false_alarms"}: of the left-out family; share of photographs called fake at 0.5."""
    from sklearn.metrics import roc_auc_score

    from mnv4_jax.detector.detector import Detector

    detector = Detector(workdir)

    def p_fake(name, label):
        files = sorted((args.data / name / "Validation" / label).glob("*.jpg"))
        return detector(files)

    fakes = p_fake(FAMILIES[family], "Fake")
    reals = np.concatenate([p_fake(name, "Real") for name in PHOTOGRAPHS])
    labels = np.repeat([1, 0], [len(fakes), len(reals)])
    auc = roc_auc_score(labels, np.concatenate([fakes, reals]))
    return {"auc": float(auc), "false_alarms": float((reals >= 0.5).mean())}


def print_table(args) -> None:
    print(f"\n| recipe, {args.steps} steps, seed {args.seed} |", " | ".join(args.families), end="")
    print(" | mean | worst |\n|", " --- |" * (len(args.families) + 3), sep="")
    for recipe in args.recipes:
        aucs = []
        for family in args.families:
            file = folder_of(recipe, family, args) / "left_out.json"
            aucs.append(json.loads(file.read_text())["auc"] if file.exists() else float("nan"))
        cells = [*aucs, np.mean(aucs), np.min(aucs)]
        texts = ["–" if np.isnan(x) else f"{x:.3f}" for x in cells]
        print(f"| {recipe} |", " | ".join(texts), "|", flush=True)


if __name__ == "__main__":
    main()

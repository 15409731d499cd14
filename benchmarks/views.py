"""Does it pay to look at a test picture several times? Prints the table of docs/RESULTS.md.

    python benchmarks/views.py --checkpoint=runs/rvf10k_long --data=$MNV4_DATA/rvf10k

Logits of the views are averaged.
"""

import functools

import numpy as np

from input_pipeline import cli
from input_pipeline.batches import eval_batches
from input_pipeline.sources import open_source
from mnv4_jax import checkpoint, compilation_cache, scoring, sharding
from mnv4_jax.metrics import binary_metrics

CROP_PX = 224


def corner(images: np.ndarray, bottom: bool, right: bool) -> np.ndarray:
    """[B, H, W, 3] -> [B, CROP_PX, CROP_PX, 3]"""
    top, left = (side - CROP_PX for side in images.shape[1:3])
    return images[:, bottom * top :, right * left :][:, :CROP_PX, :CROP_PX]


CORNERS = [
    functools.partial(corner, bottom=b, right=r) for b in (False, True) for r in (False, True)
]
WHOLE, MIRRORED = (lambda images: images), (lambda images: images[:, :, ::-1])
ROWS = {
    "the whole picture": [WHOLE],
    "and mirrored": [WHOLE, MIRRORED],
    f"four {CROP_PX} px corners": CORNERS,
    "all six": [WHOLE, MIRRORED, *CORNERS],
}


def main() -> None:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True, help="an image folder")
    args = parser.parse_args()
    compilation_cache.enable()
    loaded = checkpoint.load(args.checkpoint)
    config = scoring.evaluation_config(loaded.config.data)
    mesh = sharding.make_mesh()

    def logits(source, view):
        with eval_batches(source, config, batch_size=16) as batches:
            seen = (b | {"image": np.ascontiguousarray(view(b["image"]))} for b in batches)
            return scoring.score(loaded.model, seen, mesh)

    columns = []
    for split in ("Validation", "Test"):
        source = open_source(args.data, split)
        scores = {view: logits(source, view) for view in ROWS["all six"]}
        labels = scores[WHOLE].labels
        columns.append([])
        for views in ROWS.values():
            mean = np.mean([scores[view].logits for view in views], axis=0)
            found = binary_metrics(labels, mean)
            columns[-1].append(f"{found['auc']:.4f}, {found['accuracy']:.3f}")
    print("| views | Validation AUC, accuracy | Test AUC, accuracy |\n| --- | --- | --- |")
    for name, *cells in zip(ROWS, *columns, strict=True):
        print("|", " | ".join([name, *cells]), "|")


if __name__ == "__main__":
    cli.run(main)

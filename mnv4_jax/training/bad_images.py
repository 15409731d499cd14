"""Lists the damaged pictures of a run in a file, and stops the run if there are too many."""

import threading

import jax
from etils import epath

from input_pipeline.cli import UserError, printable
from mnv4_jax.runtime import line_file

_ALWAYS_ALLOWED = 5  # damaged pictures: in a small set a single one can exceed 1%


class BadImages:
    """Lists damaged pictures in WORKDIR/bad_images.txt and counts those of Train; thread-safe.

    The count restarts with the process: after repairing the pictures, a user can resume the run.
    """

    def __init__(self, workdir: epath.Path, n_train: int):
        # In a bucket each new line rewrites the whole file, so each process has its own file.
        process = jax.process_index()
        own = f".{process}" if process and line_file.in_bucket(workdir) else ""
        self._file = workdir / f"bad_images{own}.txt"
        self._limit = max(_ALWAYS_ALLOWED, n_train // 100)
        self._lock = threading.Lock()
        known = self._file.read_text().splitlines() if self._file.exists() else []
        self._named = {line.split("\t")[0] for line in known}
        self._of_train: set[str] = set()

    def note(self, image_id: str, reason: str) -> None:
        """Records a damaged picture of Train."""
        self.name(image_id, reason)
        self._of_train.add(image_id)

    def name(self, image_id: str, reason: str) -> None:
        """Records a damaged picture of any split."""
        image_id = printable(image_id)
        with self._lock:
            if image_id not in self._named:
                self._named.add(image_id)
                line_file.append_text(self._file, f"{image_id}\t{reason}\n")

    def check(self) -> None:
        """Raises UserError if over 5 pictures and over 1% of the training set are damaged."""
        if len(self._of_train) > self._limit:
            raise UserError(
                f"{len(self._of_train)} damaged pictures, more than 1% of the training set"
                f" (up to {_ALWAYS_ALLOWED} are always allowed):"
                f" repair or remove those named in {self._file}"
            )

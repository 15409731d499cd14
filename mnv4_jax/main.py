"""Trains a detector: python -m mnv4_jax.main --config=configs/small.py --workdir=runs/small

Any field of the config can be set: --config.train.epochs=5. Running the same command again resumes
from the last checkpoint. Exit status: 0 done, 2 an error that the user can fix, 75 preempted (run
again), 130 Ctrl-C.
"""

import sys

from absl import flags

from input_pipeline.cli import UserError, run
from mnv4_jax.config import parse_flags
from mnv4_jax.ops import kernels
from mnv4_jax.runtime import compilation_cache, memory, processes

flags.DEFINE_string("workdir", None, "where checkpoints, metrics and curves go")
processes.define_flags()


def main() -> int:
    if {"--help", "-h"} & set(sys.argv):
        print(__doc__, flags.FLAGS.main_module_help())
        return 0
    config = parse_flags(sys.argv, flags.FLAGS)
    if not flags.FLAGS.workdir:
        raise UserError("--workdir is missing: where results go, like --workdir=runs/small")
    compilation_cache.enable()
    memory.keep_freed()
    if not memory.has_accelerator():
        kernels.prepare("kernels.cc")  # on a machine's first run, while Python imports
    processes.initialize_from(flags.FLAGS)

    processes.log_to(flags.FLAGS.workdir)
    from mnv4_jax.training import loop

    return loop.run(config, flags.FLAGS.workdir)


if __name__ == "__main__":
    with processes.exit_promptly():
        run(main)

import functools
import os
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from input_pipeline.cli import UserError
from mnv4_jax.models import classifier
from mnv4_jax.models.layers import BatchNorm
from mnv4_jax.runtime import processes
from mnv4_jax.runtime.mesh import batch_sharding, make_mesh, put_batch, replicated
from mnv4_jax.training.step import Program
from tests import small_net
from tests.processes import ROOT, free_port


def test_the_mesh_has_the_devices_in_the_order_of_their_processes():
    mesh = make_mesh(jax.devices()[::-1])
    assert mesh.axis_names == ("data",)
    assert list(mesh.devices) == sorted(jax.devices(), key=lambda d: d.id)


def test_rows_of_a_batch_go_to_the_devices_in_order():
    mesh = make_mesh()
    batch = {"image": np.arange(8 * 3, dtype=np.uint8).reshape(8, 3), "label": np.arange(8)}
    put = put_batch(batch, mesh)
    for name, value in batch.items():
        np.testing.assert_array_equal(put[name], value)
        assert put[name].sharding == batch_sharding(mesh)
    for i, device in enumerate(mesh.devices):
        (shard,) = [s for s in put["label"].addressable_shards if s.device == device]
        np.testing.assert_array_equal(shard.data, [2 * i, 2 * i + 1])


@pytest.fixture(scope="module")
def collectives():
    """{kind of BatchNorm: {collective: how many the compiled training step has}} on 4 devices."""
    return {kind: _collectives(kind) for kind in ("global", "local")}


def _collectives(batch_norm):
    config = small_net.get_config()
    config.model.batch_norm = batch_norm
    mesh = make_mesh()
    program = Program(config, mesh, 1e-3)
    state = jax.eval_shape(program.init, program.like)
    abstract = functools.partial(jax.ShapeDtypeStruct, sharding=batch_sharding(mesh))
    batch = {
        "image": abstract((8, 32, 32, 3), np.uint8),
        "label": abstract((8,), np.int32),
        "position": abstract((8,), np.uint32),
    }
    everywhere = replicated(mesh)
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state
    )
    lowered = jax.jit(program.step, donate_argnums=0).lower(state, batch)
    compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    found = re.findall(rf" ({kinds})(?:-start)?\(", compiled.as_text())
    return {kind: found.count(kind) for kind in set(found)}


def _layers():
    model = classifier.build(small_net.get_config(), seed=0)
    return sum(isinstance(node, BatchNorm) for _, node in nnx.iter_graph(model))


def test_local_batch_norm_costs_one_all_reduce_a_step(collectives):
    assert collectives["local"] == {"all-reduce": 1}


def test_global_batch_norm_costs_two_more_for_each_layer(collectives):
    assert _layers() > 5
    assert collectives["global"] == {"all-reduce": 2 * _layers() + 1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_processes": 2}, "--coordinator is missing"),
        ({"coordinator": "host:1"}, "--num_processes is missing"),
        ({"coordinator": "host:1", "num_processes": 2}, "--process_id is missing"),
        ({"coordinator": "host", "num_processes": 2, "process_id": 0}, "is not host:port"),
        ({"coordinator": "host:x", "num_processes": 2, "process_id": 0}, "is not host:port"),
        ({"coordinator": "h:1", "num_processes": 0, "process_id": 0}, "must be at least 1"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, "must be from 0 to 1"),
    ],
)
def test_flags_that_make_no_sense_are_one_line(given, message):
    with pytest.raises(UserError, match=message):
        processes.initialize(**given)


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("UNAVAILABLE: Socket closed", True),
        ("ABORTED: a TPU worker was preempted", True),
        ("UNKNOWN: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:1", True),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes", False),
        ("INVALID_ARGUMENT: a shape", False),
    ],
)
def test_what_says_that_peers_are_gone(text, lost):
    assert processes.lost_peers(jax.errors.JaxRuntimeError(text)) == lost
    assert not processes.lost_peers(RuntimeError(text))


def test_environment_variables_stand_for_flags(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES='two' is not a whole number"):
        processes.initialize()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1")
    with pytest.raises(UserError, match="--process_id is missing"):
        processes.initialize()


def test_a_process_on_its_own_needs_nothing():
    processes.initialize()
    assert not jax.distributed.is_initialized()


def _python(code, **environment):
    """A process that runs `code`; its output is of stdout and stderr together."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_slurm_step_is_detected():
    process = _python(
        "from mnv4_jax.runtime import processes; import jax; processes.initialize();"
        "print(jax.distributed.is_initialized(), jax.process_count())",
        SLURM_JOB_ID=str(free_port()),
        SLURM_STEP_NODELIST="localhost",
        SLURM_NTASKS="1",
        SLURM_PROCID="0",
        SLURM_LOCALID="0",
    )
    try:
        assert process.communicate(timeout=60)[0].splitlines()[-1] == "True 1"
    finally:
        process.kill()


_WAIT = """
from input_pipeline.cli import run
from mnv4_jax.runtime import processes
run(lambda: processes.initialize("127.0.0.1:{port}", 2, {process_id}, peer_timeout_s=3))
"""


@pytest.mark.parametrize(
    ("process_id", "message"),
    [
        (0, "error: process 0 waited for all 2 processes at 127.0.0.1:{port} in vain"),
        (1, "error: process 1 found no process 0 at 127.0.0.1:{port}"),
    ],
    ids=["worker", "coordinator"],
)
def test_a_peer_that_never_arrives_is_one_line_in_time(process_id, message):
    port = free_port()
    process = _python(_WAIT.format(port=port, process_id=process_id))
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2, output
    assert output.startswith(message.format(port=port))
    assert len(output.splitlines()) == 1  # no stack dump of JAX's


def test_a_port_in_use_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = _python(_WAIT.format(port=port, process_id=0).replace("_s=3", "_s=60"))
        try:
            output, _ = process.communicate(timeout=90)
        finally:
            process.kill()
    assert process.returncode == 2, output
    (line,) = output.splitlines()
    assert line.startswith(f"error: --coordinator=127.0.0.1:{port}: process 0 cannot listen there")


_FAIL = """
from input_pipeline.cli import UserError, run
from mnv4_jax.runtime import processes
import time

def main():
    processes.initialize("127.0.0.1:{port}", 2, {process_id}, peer_timeout_s=60)
    if {process_id} == 1:
        {failure}
    time.sleep(300)

with processes.exit_promptly():
    run(main)
"""


@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [
        ("raise UserError('the disk is full')", 2, "error: the disk is full"),
        ("raise ZeroDivisionError", 1, "ZeroDivisionError"),
    ],
)
def test_a_process_that_fails_alone_does_not_wait_for_its_peers(failure, status, message):
    port = free_port()
    peers = [_python(_FAIL.format(port=port, process_id=i, failure=failure)) for i in range(2)]
    try:
        output, _ = peers[1].communicate(timeout=90)
        assert peers[1].returncode == status, output
        assert message in output
    finally:
        for peer in peers:
            peer.kill()
            peer.communicate()

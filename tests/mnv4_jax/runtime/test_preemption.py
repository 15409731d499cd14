import os
import signal

from mnv4_jax.runtime.preemption import Preemption


def test_sigterm_is_an_answer_to_the_next_question():
    with Preemption() as preemption:
        assert not preemption.stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.stop_requested()
        assert preemption.stop_requested()


def test_sigterm_means_afterwards_what_it_meant_before():
    told = []
    before = signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    try:
        with Preemption():
            os.kill(os.getpid(), signal.SIGTERM)
        assert not told
        os.kill(os.getpid(), signal.SIGTERM)
        assert told
    finally:
        signal.signal(signal.SIGTERM, before)

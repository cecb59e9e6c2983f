"""Processes that are the workers of one `tf.distribute` strategy; none of them outlives its test."""

import contextlib
import faulthandler
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import tensorflow as tf
from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
from tensorflow.python.eager import context

ROOT = pathlib.Path(__file__).parents[1]
LIMIT = 900  # seconds for all workers to end: 40 on an idle machine, many times that beside other jobs
GRACE = 240  # seconds for the others to end after one has; `HEARTBEAT` to miss a worker
HEARTBEAT = 60  # seconds without a sign of life after which a worker counts as lost; TensorFlow's 10 are few under load
EXCHANGE = 400  # seconds for one exchange between workers, the other one tracing its step meanwhile


class Workers:
    """Two processes that run a function of a test module, killed and their ports freed at the end of a `with`.

    Two things can go wrong beside other jobs. Another process takes a port between its choice and its use: one worker
    cannot start, and TensorFlow lets the other wait for an hour. So the ports are held until the end by sockets that
    are bound and do not listen; TensorFlow's server may listen beside them, and the system gives the ports to nobody
    else. And a worker that gets no processor for 10 seconds sends no sign of life and is taken for lost (`strategy`).
    Whatever else keeps a worker from coming or ending is reported with the logs of all.
    """

    def __init__(self, directory, call, *arguments):
        """Starts the workers.

        Args:
            directory: for `log_0` and `log_1`.
            call: the program, `module.function` of `tests`.
            *arguments: `sys.argv[2:]` of each; `sys.argv[1]` is its number.
        """
        self.logs = [directory / f"log_{index}" for index in range(2)]
        self._held = [_bound() for _ in self.logs]
        addresses = [f"127.0.0.1:{held.getsockname()[1]}" for held in self._held]
        module, function = call.split(".")
        program = f"from tests import {module}, processes; processes.limit(); {module}.{function}()"
        self.processes = []
        for index, log in enumerate(self.logs):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            environment = {**os.environ, "TF_CONFIG": json.dumps(config), "PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-c", program, str(index), *map(str, arguments)]
            with open(log, "w") as file:
                self.processes.append(
                    subprocess.Popen(command, env=environment, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
                )
        self._start = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait(10)
        for held in self._held:
            held.close()

    def statuses(self):
        """Exit statuses, once all have ended."""
        ended = None
        while None in self._now():
            if ended is None and any(status is not None for status in self._now()):
                ended = time.monotonic()
            if ended is not None and time.monotonic() - ended > GRACE:
                raise TimeoutError(self.report(f"one worker did not end within {GRACE} s of the other"))
            self._sleep("end")
        return self._now()

    def wait_for(self, path):
        """Waits for a file that a worker writes."""
        while not path.exists():
            if any(status is not None for status in self._now()):
                raise RuntimeError(self.report(f"a worker ended before it wrote {path.name}"))
            self._sleep(f"write {path.name}")

    def _now(self):
        return [process.poll() for process in self.processes]

    def _sleep(self, what):
        if time.monotonic() - self._start > LIMIT:
            raise TimeoutError(self.report(f"no worker came to {what} within {LIMIT} s"))
        time.sleep(0.2)

    def report(self, what="not the expected statuses"):
        """What is known: exit statuses, and the end of every log."""
        ends = [log.read_text(errors="replace")[-3000:] for log in self.logs]
        return f"{what}; exit statuses {self._now()}\n" + "\n".join(
            f"---- worker {index}\n{end}" for index, end in enumerate(ends)
        )


def limit():
    """Called in a worker: prints where it stands and ends it a little before its test gives up."""
    faulthandler.dump_traceback_later(LIMIT - 15, exit=True)


def strategy():
    """The strategy of this worker, whose exchanges end with an error when the other one does not come.

    What is set in the context has no public name; it is what the strategy sets itself, with longer waits for a worker
    that gets no processor and shorter ones for a worker that does not come.
    """
    context.context().configure_coordination_service(
        "standalone",
        service_leader="/job:worker/replica:0/task:0",
        cluster_register_timeout_in_ms=1000 * EXCHANGE,
        heartbeat_timeout_in_ms=1000 * HEARTBEAT,
        coordinated_jobs=[coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=2)],
    )
    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=EXCHANGE)
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


def _bound():
    """A socket that holds a free port: gRPC's, which may share addresses as well, is the only one that listens."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held

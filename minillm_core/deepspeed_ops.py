"""What DeepSpeed compiles when it starts, made optional where it need not stop a run."""

from __future__ import annotations

import contextlib
import io
import logging

log = logging.getLogger(__name__)


def shared_memory_op_or_none() -> None:
    """Compile DeepSpeed's collectives over shared memory; where that fails, have it do without them.

    On a CPU DeepSpeed compiles them whenever it starts and gives up where that fails, most often because the machine
    has no C++ compiler or Python without its headers. Gloo does the same work; among the ranks of one machine it
    takes a little longer, and a single rank has nobody to exchange anything with.
    """
    import deepspeed.ops
    from deepspeed.comm.torch import build_shm_op

    try:
        # It says on standard output that it is built; DeepSpeed itself says so once more.
        with contextlib.redirect_stdout(io.StringIO()):
            build_shm_op()
    except Exception as error:
        # Whatever stops a compiler: a missing header comes as RuntimeError, a missing program as CalledProcessError.
        reason = next((line for line in str(error).splitlines() if "error:" in line), str(error).partition("\n")[0])
        log.warning(
            "DeepSpeed's shared-memory collectives were not compiled and are done without "
            "(on Debian, apt-get install g++ python3-dev): %s",
            reason.strip(),
        )
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

"""What does it cost not to hold the logits? Every divergence, chunked against dense, value and gradient.

    python -m benchmarks.loss [--quick]

Dense means: both models' logits of all tokens by one product each, ``divergence`` on them, autograd
back through the product. The two are timed in turn, and the fastest run of each counts, so a busy
machine spoils the seconds but hardly the ratio. Memory is the peak of the resident set during one
call, less what was resident before it and the gradients it leaves behind; it includes the buffers
that the chunked loss keeps between calls, which are given back before each measurement, but not what
the libraries take once and keep at new sizes: each size begins with a call that does not count.

The last line is one JSON object:

    time_ratio_2048   seconds chunked over dense at N = 2,048, the worst divergence and vocabulary
    memory_growth     extra memory at N = 16,384 over that at N = 2,048, the worst divergence
    peak_extra_mb     extra memory at N = 16,384 and V = 151,936, the worst divergence
    rows              every measurement

The whole takes about a quarter of an hour on two quiet cores and 6 GB for the dense side.
``--quick`` takes the smaller vocabulary alone and N up to 4,096, and says so (``quick``: true).

Axes: N tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from minillm_core.objectives.chunked import Head, cross_entropy_from_hidden
from minillm_core.objectives.divergences import KINDS, divergence

MEGABYTE = 2**20


class Inputs:
    """Hidden states and heads of a student and a teacher whose logits have the spread of a trained model's."""

    def __init__(self, tokens: int, width: int, vocab: int, spread: float = 3.0) -> None:
        random = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=random)

        self.student_ND, self.teacher_ND = draw(tokens, width), draw(tokens, width)
        self.student_VD, self.teacher_VD = (draw(vocab, width).mul_(spread / width**0.5) for _ in range(2))
        self.no_targets_N = torch.zeros(tokens, dtype=torch.long)
        self.leaves = (self.student_ND, self.student_VD)
        for leaf in self.leaves:
            leaf.requires_grad_(True)

    def chunked(self, kind: str) -> None:
        cross_entropy_from_hidden(
            self.student_ND,
            Head(self.student_VD),
            self.no_targets_N,
            cross_entropy_weight=0.0,
            divergence=kind,
            divergence_weight=1.0,
            teacher_hidden_ND=self.teacher_ND,
            teacher_head=Head(self.teacher_VD),
        ).total.backward()

    def dense(self, kind: str) -> None:
        student_NV = self.student_ND @ self.student_VD.T
        teacher_NV = self.teacher_ND @ self.teacher_VD.T
        divergence(kind, student_NV, teacher_NV).sum().backward()

    def clear(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None

    @property
    def gradient_bytes(self) -> int:
        return sum(leaf.numel() * leaf.element_size() for leaf in self.leaves)


def status_kb(field: str) -> int:
    """A field of /proc/self/status, in kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}: this benchmark needs Linux")


def settle() -> None:
    """Give back what earlier calls left: to the allocator, and from it to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def extra_mb(inputs: Inputs, call: Callable[[], None]) -> tuple[float, float]:
    """Peak of the resident set during the call beyond the inputs and their gradients, and its seconds."""
    inputs.clear()
    settle()
    before = status_kb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    started = time.perf_counter()
    # In a thread of its own, with whose end the buffers go that the losses keep between calls.
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    taken = time.perf_counter() - started
    peak = status_kb("VmHWM")
    inputs.clear()
    return round((peak - before) / 1024 - inputs.gradient_bytes / MEGABYTE, 1), taken


def seconds(inputs: Inputs, call: Callable[[], None]) -> float:
    inputs.clear()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def compare(inputs: Inputs, kind: str, repeats: int) -> tuple[float, float]:
    """Fastest seconds of chunked and of dense, run in turn after one round that does not count."""
    times: dict[str, list[float]] = {"chunked": [], "dense": []}
    for repeat in range(repeats + 1):
        for name, run in (("chunked", inputs.chunked), ("dense", inputs.dense)):
            taken = seconds(inputs, functools.partial(run, kind))
            if repeat > 0:
                times[name].append(taken)
    return min(times["chunked"]), min(times["dense"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--width", type=int, default=576, help="hidden width of both models")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    vocabularies = (50_257,) if options.quick else (50_257, 151_936)
    sizes = (512, 2048, 4096) if options.quick else (512, 2048, 16_384)

    rows = []
    for vocab in vocabularies:
        for tokens in sizes:
            inputs = Inputs(tokens, options.width, vocab)
            inputs.chunked(options.kinds[0])
            for kind in options.kinds:
                chunked = functools.partial(inputs.chunked, kind)
                row: dict[str, object] = {"kind": kind, "vocab": vocab, "tokens": tokens}
                row["chunked_mb"], chunked_s = extra_mb(inputs, chunked)
                if tokens <= 2048:
                    row["dense_mb"], _ = extra_mb(inputs, functools.partial(inputs.dense, kind))
                    chunked_s, dense_s = compare(inputs, kind, options.repeats)
                    row |= {"dense_s": round(dense_s, 3), "ratio": round(chunked_s / dense_s, 3)}
                row["chunked_s"] = round(chunked_s, 3)
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
            del inputs
            settle()

    def extra(kind: str, vocab: int, tokens: int) -> float:
        return next(
            float(row["chunked_mb"])  # type: ignore[arg-type]
            for row in rows
            if (row["kind"], row["vocab"], row["tokens"]) == (kind, vocab, tokens)
        )

    largest = sizes[-1]
    growth = [
        extra(kind, vocab, largest) / extra(kind, vocab, 2048) for vocab in vocabularies for kind in options.kinds
    ]
    result = {
        "time_ratio_2048": max(float(row["ratio"]) for row in rows if row["tokens"] == 2048),  # type: ignore[arg-type]
        "memory_growth": round(max(growth), 3),
        "peak_extra_mb": max(extra(kind, vocabularies[-1], largest) for kind in options.kinds),
        "quick": options.quick,
        "threads": options.threads,
        "rows": rows,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

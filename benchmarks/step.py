"""How long does one on-policy reverse-KL step take, beside TRL's and beside what the machine can do?

    python -m benchmarks.step [--against trl] [--quick]

Each side is a process of its own with the same teacher, student (ten of the teacher's layers),
prompts, rows, new tokens, float32 training and threads; they take their steps in turn while the
other one waits, so that a busy machine slows both. Ours is the real loop with its DeepSpeed engine
(``benchmarks.step_worker``), the peer TRL's DistillationTrainer in ``.venv-trl``, which is made at
first use (``benchmarks.trl_peer``). Steps that do not count come first. Both must train on equally
many response tokens, and our loss must be TRL's on one shared batch: the run fails otherwise.

The last line is one JSON object:

    ours_step_s, trl_step_s      seconds of a step, median
    speedup                      median of the ratios of neighbouring steps
    ours_peak_rss_mb, trl_peak_rss_mb, rss_ratio
    roofline_s                   operations over the measured rate of a large matrix product, plus
                                 bytes read while decoding over the measured bandwidth, at their
                                 best in the run; median over the steps, each with its own rows
    roofline_fraction            median of each step's roofline over its seconds
    parts                        our seconds by part, median
    ours_cpu_s, trl_cpu_s        CPU time of a step, all threads: the mean over the steps that count
    growth_512_over_64           a step with 512 new tokens over eight times one with 64

``--quick`` takes fewer rows, tokens and steps and says so; ``--teacher`` takes another model folder.

Axes: B rows, T positions, D hidden width, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from benchmarks import machine
from benchmarks.channel import ROOT, Worker
from benchmarks.prompts import CACHE, make_prompts, student_folder, teacher_folder, write_prompts
from minillm_core.rollout.projection import widens

TRL_ENVIRONMENT = ROOT / ".venv-trl"
TRL_PACKAGES = ("transformers", "trl==1.16.0", "datasets")
STEP_TIMEOUT_SECONDS = 900.0
LOSS_TOLERANCE = 1e-4
PARTS = ("prefill", "decode", "teacher", "student_forward", "loss", "backward", "optimizer")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def trl_python() -> Path:
    """Python of the peer's environment, which is made where it is not there."""
    python = TRL_ENVIRONMENT / "bin" / "python"
    whole = TRL_ENVIRONMENT / "made"
    if not whole.exists():
        say(f"making {TRL_ENVIRONMENT} (once)")
        version = torch.__version__.partition("+")[0]
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(TRL_ENVIRONMENT)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", f"torch=={version}", *TRL_PACKAGES],
            check=True,
            stdout=sys.stderr,
        )
        whole.touch()
    return python


@dataclass(frozen=True)
class Shape:
    """What is multiplied in a decoder of the LLaMA kind, for counting operations."""

    layers: int
    layer_weights: int
    heads_width: int
    head_weights: int
    cache_width: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Shape:
        width, inner = config.hidden_size, config.intermediate_size
        head = getattr(config, "head_dim", None) or width // config.num_attention_heads
        queries, shared = head * config.num_attention_heads, head * config.num_key_value_heads
        weights = width * (queries + 2 * shared) + queries * width + 3 * width * inner
        return cls(config.num_hidden_layers, weights, queries, config.vocab_size * width, 2 * shared)

    def layer_operations(self, lengths: list[int]) -> float:
        """One forward pass over rows of these lengths: products with weights, and causal attention."""
        products = 2.0 * self.layer_weights * sum(lengths)
        attention = 2.0 * self.heads_width * sum(length * (length + 1) for length in lengths)
        return self.layers * (products + attention)

    def head_operations(self, tokens: int) -> float:
        return 2.0 * self.head_weights * tokens


def roofline(
    teacher: Shape,
    student: Shape,
    prompts: list[int],
    new_tokens: int,
    *,
    rate: float,
    decode_rate: float,
    decode_bytes: int,
    bandwidth: float,
) -> float:
    """Seconds that the step's arithmetic and its decoding's reads take at the given rates.

    The teacher and the student see each row once without its last token; the student's gradient is
    twice its forward pass, and the head is applied to response tokens alone. Decoding reads the
    weights of the student and the keys and values of all rows at every token.
    """
    fed = [length + new_tokens - 1 for length in prompts]
    counted = new_tokens * len(prompts)
    scoring = teacher.layer_operations(fed) + teacher.head_operations(counted)
    training = 3.0 * (student.layer_operations(fed) + student.head_operations(counted))
    weights = new_tokens * (student.layers * student.layer_weights + student.head_weights)
    columns = sum(length + step for length in prompts for step in range(1, new_tokens))
    cached = student.layers * student.cache_width * columns
    return (
        (scoring + training) / rate
        + student.layer_operations(prompts) / decode_rate
        + decode_bytes * (weights + cached) / bandwidth
    )


def median(values: list[float]) -> float:
    return float(statistics.median(values))


def per_step(readings: list[float], warmup: int) -> float:
    """What a clock read after each step gained in the mean, after ``warmup`` (at least one) of them."""
    return (readings[-1] - readings[warmup - 1]) / (len(readings) - warmup)


class Ours:
    """Our worker and what its steps took."""

    def __init__(self, options: argparse.Namespace, teacher: Path, student: Path, prompts: Path, tokens: int) -> None:
        command = [sys.executable, "-m", "benchmarks.step_worker"]
        command += ["--teacher", str(teacher), "--student", str(student), "--prompts", str(prompts)]
        command += ["--rows", str(options.rows), "--new-tokens", str(tokens), "--decode-dtype", options.decode_dtype]
        self.worker = Worker(command, timeout=STEP_TIMEOUT_SECONDS)
        lengths, order = self.worker.ready["lengths"], self.worker.ready["order"]
        self.prompt_lengths = [
            [lengths[place] for place in order[begin : begin + options.rows]]
            for begin in range(0, len(order), options.rows)
        ]
        """Of each step's rows, which differ from step to step."""
        self.seconds: list[float] = []
        self.parts: list[dict[str, float]] = []
        self.response_tokens = 0
        self.peak_rss_mb = 0.0
        self.cpu: list[float] = []

    def step(self) -> float:
        answer, seconds = self.worker.ask(do="step")
        values = answer["values"]
        parts = {part: values[f"{part}_seconds"] for part in PARTS if part != "teacher"}
        # Nothing is drawn from the teacher at alpha 0: all it does is to score.
        parts["teacher"] = values["teacher_seconds"] + values["score_seconds"]
        parts["other"] = seconds - sum(parts.values())
        self.seconds.append(seconds)
        self.parts.append(parts)
        self.response_tokens = answer["response_tokens"]
        self.peak_rss_mb = answer["peak_rss_mb"]
        self.cpu.append(answer["cpu_seconds"])
        say(f"ours {seconds:.2f} s: " + ", ".join(f"{name} {value:.2f}" for name, value in parts.items()))
        return seconds


def compare_losses(ours: Ours, peer: Worker) -> dict[str, float]:
    """Both losses of one batch, before any step. Raises RuntimeError when they differ."""
    mine, _ = ours.worker.ask(do="loss")
    theirs, _ = peer.ask(do="loss", prompt_ids=mine["prompt_ids"], response_ids=mine["response_ids"])
    difference = abs(mine["loss"] - theirs["loss"])
    say(f"loss of one batch: ours {mine['loss']:.6f}, TRL's {theirs['loss']:.6f}")
    if difference > LOSS_TOLERANCE * max(1.0, theirs["loss"]):
        raise RuntimeError(f"the losses of one batch differ: ours {mine['loss']}, TRL's {theirs['loss']}")
    return {"ours_loss": mine["loss"], "trl_loss": theirs["loss"]}


def start_peer(options: argparse.Namespace, teacher: Path, student: Path, prompts: Path) -> Worker:
    command = [str(trl_python()), "-m", "benchmarks.trl_peer", "--teacher", str(teacher), "--student", str(student)]
    command += ["--prompts", str(prompts), "--rows", str(options.rows), "--new-tokens", str(options.new_tokens)]
    return Worker(command, timeout=STEP_TIMEOUT_SECONDS)


def peer_step(peer: Worker, ours: Ours, seconds: list[float]) -> dict[str, Any]:
    answer, taken = peer.ask(do="step")
    say(f"trl  {taken:.2f} s")
    if answer["response_tokens"] != ours.response_tokens:
        raise RuntimeError(f"response tokens: ours {ours.response_tokens}, TRL's {answer['response_tokens']}")
    seconds.append(taken)
    return answer


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    teacher = teacher_folder(options.teacher)
    student = student_folder(teacher, options.layers)
    total = options.warmup + options.steps
    texts = make_prompts(AutoTokenizer.from_pretrained(teacher), options.rows * total, options.prompt_tokens)
    prompts, ordered = folder / "prompts.jsonl", folder / "ordered.jsonl"
    write_prompts(texts, prompts)

    result: dict[str, Any] = {}
    # Where the processor cannot multiply bfloat16, the decoder multiplies such weights in float32.
    decoded_in = "float32" if widens(DTYPES[options.decode_dtype], torch.device("cpu")) else options.decode_dtype
    formats = sorted({"float32", decoded_in})
    rates: dict[str, list[float]] = {name: [] for name in (*formats, "bandwidth")}
    theirs: list[float] = []
    theirs_cpu: list[float] = []
    last: dict[str, Any] = {}
    ours = Ours(options, teacher, student, prompts, options.new_tokens)
    peer = None
    try:
        if options.against == "trl":
            write_prompts([texts[place] for place in ours.worker.ready["order"]], ordered)
            peer = start_peer(options, teacher, student, ordered)
            result |= compare_losses(ours, peer)
        for _ in range(total):
            ours.step()
            if peer is not None:
                last = peer_step(peer, ours, theirs)
                theirs_cpu.append(last["cpu_seconds"])
            for name in formats:
                rates[name].append(machine.product_rate(DTYPES[name]))
            rates["bandwidth"].append(machine.read_bandwidth())
            say("     " + ", ".join(f"{name} {values[-1] / 1e9:.0f} G/s" for name, values in rates.items()))
        if peer is not None:
            peer.close()
        counted = ours.seconds[options.warmup :]
        result["ours_step_s"] = median(counted)
        result["ours_cpu_s"] = per_step(ours.cpu, options.warmup)
        if peer is not None:
            result["trl_step_s"] = median(theirs[options.warmup :])
            result["speedup"] = median([b / a for a, b in zip(counted, theirs[options.warmup :], strict=True)])
            result["trl_cpu_s"] = per_step(theirs_cpu, options.warmup)
            result["trl_peak_rss_mb"] = last["peak_rss_mb"]
            result["rss_ratio"] = ours.peak_rss_mb / last["peak_rss_mb"]
        result["ours_peak_rss_mb"] = ours.peak_rss_mb
        result["response_tokens"] = ours.response_tokens
        measured = {name: max(values) for name, values in rates.items()}
        result |= {f"{name}_gflops": measured[name] / 1e9 for name in formats}
        result["bandwidth_gb_s"] = measured["bandwidth"] / 1e9
        floors = [
            roofline(
                Shape.of(AutoConfig.from_pretrained(teacher)),
                Shape.of(AutoConfig.from_pretrained(student)),
                lengths,
                options.new_tokens,
                rate=measured["float32"],
                decode_rate=measured[decoded_in],
                decode_bytes=DTYPES[options.decode_dtype].itemsize,
                bandwidth=measured["bandwidth"],
            )
            for lengths in ours.prompt_lengths[options.warmup : total]
        ]
        result["roofline_s"] = median(floors)
        result["roofline_fraction"] = median([floor / taken for floor, taken in zip(floors, counted, strict=True)])
        parts = ours.parts[options.warmup :]
        result["parts"] = {part: median([step[part] for step in parts]) for part in parts[0]}
        if not options.no_growth:
            result["growth_512_over_64"] = growth(options, ours, teacher, student, prompts)
    finally:
        ours.worker.close()
        if peer is not None:
            peer.close()
    return result


def growth(options: argparse.Namespace, short: Ours, teacher: Path, student: Path, prompts: Path) -> float:
    """Seconds of a step with eight times the new tokens over eight times the seconds of one without."""
    long = Ours(options, teacher, student, prompts, 8 * options.new_tokens)
    ratios = []
    try:
        long.step()
        for _ in range(options.growth_steps):
            before = short.step()
            taken = long.step()
            ratios.append(taken / (8.0 * (before + short.step()) / 2.0))
    finally:
        long.worker.close()
    return median(ratios)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", choices=["trl"], help="also measure this peer")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--teacher", type=Path, help="model folder; SmolLM2-135M-Instruct when left out")
    parser.add_argument("--layers", type=int, default=10, help="layers of the student")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--new-tokens", type=int)
    parser.add_argument("--prompt-tokens", type=int, default=95, help="mean length of the prompts")
    parser.add_argument("--steps", type=int, help="steps that count")
    parser.add_argument("--warmup", type=int, help="steps that do not")
    parser.add_argument("--growth-steps", type=int)
    parser.add_argument("--no-growth", action="store_true", help="leave growth_512_over_64 out")
    parser.add_argument("--decode-dtype", choices=sorted(DTYPES), help="the faster one here when left out")
    options = parser.parse_args()
    defaults = {"rows": 8, "new_tokens": 64, "steps": 7, "warmup": 2, "growth_steps": 2}
    if options.quick:
        defaults = {"rows": 4, "new_tokens": 16, "steps": 2, "warmup": 1, "growth_steps": 1}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.warmup < 1 or options.steps < 1:
        parser.error("--warmup and --steps are at least 1")
    torch.set_num_threads(os.cpu_count() or 1)
    options.decode_dtype = options.decode_dtype or machine.decode_dtype()
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    result |= {name: getattr(options, name) for name in ("decode_dtype", "quick", "rows", "new_tokens")}
    print(json.dumps(rounded(result)))


if __name__ == "__main__":
    main()

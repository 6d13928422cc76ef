"""A trainer that trains nothing: it speaks the events protocol and misbehaves on request. For tests alone.

``python fake_trainer.py RUN_DIR``; the mode and its settings come from the metadata of the spec:

mode            succeed | crash | kill | hang | silent | user_error | corrupt | no_student | oom | stubborn | escape
                | chatty (a megabyte of output a step) | ballast (fills its disk)
steps, delay    number of steps and seconds between them
at              step at which the mode shows
leave           folder that it leaves half-written at that step
linger          phase in which it stays until it is told to stop, and then for as long again as `goodbye` says
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

RUN_DIR = Path(sys.argv[1]).resolve()
SPEC = json.loads((RUN_DIR / "spec.json").read_text())
OPTIONS: dict[str, str] = SPEC.get("metadata", {})
MODE = OPTIONS.get("mode", "succeed")
STEPS = int(OPTIONS.get("steps", "3"))
DELAY = float(OPTIONS.get("delay", "0.02"))
AT = int(OPTIONS.get("at", "1"))
stop = threading.Event()
sequence = 0


def emit(kind: str, **values: Any) -> None:
    global sequence
    sequence += 1
    line = json.dumps({"type": kind, "seq": sequence, "time": dt.datetime.now(dt.UTC).isoformat(), **values})
    with (RUN_DIR / "events.jsonl").open("a") as file:
        file.write(line + "\n")


def write_folder(kind: str, name: str, files: dict[str, bytes]) -> tuple[str, int]:
    folder = RUN_DIR / name
    folder.mkdir(parents=True)
    for file, data in files.items():
        (folder / file).write_bytes(data)
    entries = [{"name": n, "bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in files.items()]
    about = {"kind": kind, "created_at": "2026-01-01T00:00:00Z", "files": entries}
    manifest = json.dumps({**about, "data": {"parameters": 128, "teacher_parameters": 256}}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    return hashlib.sha256(manifest).hexdigest(), sum(map(len, files.values()))


def checkpoint(step: int) -> None:
    name = f"checkpoints/training-{step}"
    digest, size = write_folder("checkpoint", name, {"state.bin": str(step).encode() * 100})
    emit("checkpoint", phase="training", step=step, path=name, bytes=size, manifest_sha256=digest)


def resumed_step() -> int:
    context = json.loads((RUN_DIR / "run.json").read_text()) if (RUN_DIR / "run.json").exists() else {}
    for folder in context.get("resume_from", []):
        return int(Path(folder).name.rpartition("-")[2])
    return 0


def student() -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 16, "hidden_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 32,
    }  # fmt: skip
    header = {"w": {"dtype": "F32", "shape": [16, 8], "data_offsets": [0, 512]}}
    packed = json.dumps(header).encode()
    weights = len(packed).to_bytes(8, "little") + packed + bytes(512)
    report = {"before": {"rouge_l": 1.0}, "after": {"rouge_l": 2.0}}
    files = {
        "config.json": json.dumps(config).encode(), "model.safetensors": weights, "tokenizer.json": b"{}",
        "report.json": json.dumps(report).encode(),
    }  # fmt: skip
    digest, size = write_folder("student", "student", files)
    if MODE == "corrupt":
        (RUN_DIR / "student" / "model.safetensors").write_bytes(weights[:-1] + b"\x01")
    if MODE == "unannounced":
        return
    emit("student", path="student", manifest_sha256=digest, bytes=size, parameters=128, teacher_parameters=256,
         report=report)  # fmt: skip


def watch_lifeline() -> None:
    descriptor = int(os.environ["MINILLM_LIFELINE_FD"])
    while os.read(descriptor, 1):
        pass
    os._exit(1)


def nest(levels: int, *, own_session: bool) -> None:
    """Grandchildren that ignore SIGTERM, each the child of the one before."""
    code = (
        "import signal,subprocess,sys,time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "n=int(sys.argv[1])\n"
        "if n: subprocess.Popen([sys.executable,'-S','-c',sys.argv[2],str(n-1),sys.argv[2]])\n"
        "time.sleep(120)\n"
    )
    subprocess.Popen([sys.executable, "-S", "-c", code, str(levels - 1), code], start_new_session=own_session)


def misbehave(step: int) -> None:
    if MODE == "chatty":
        print("x" * (1 << 20), flush=True)
    if step != AT:
        return
    if "leave" in OPTIONS:
        (RUN_DIR / OPTIONS["leave"]).mkdir(parents=True)
        (RUN_DIR / OPTIONS["leave"] / "state.bin").write_bytes(b"half")
    if MODE == "ballast":
        with contextlib.suppress(OSError), (RUN_DIR / "ballast").open("wb", buffering=0) as file:
            while file.write(bytes(1 << 12)):
                pass
    if MODE == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if MODE == "crash":
        failure = {"code": "internal_error", "category": "system", "message": "broken on purpose"}
        emit("failure", failure=failure)
        print("Traceback: broken \x1b[31mon purpose\x1b[0m", file=sys.stderr, flush=True)
        sys.exit(70)
    if MODE == "oom":
        failure = {"code": "out_of_memory", "category": "infrastructure", "message": "no memory", "retryable": True}
        emit("failure", failure=failure)
        sys.exit(70)
    if MODE in ("hang", "silent"):
        emit("message", level="info", code="hanging", message="")
        threading.Event().wait(120)


def enter(phase: str) -> None:
    """Begin a phase: as the real trainer, one without steps does not end sooner for a SIGTERM."""
    emit("phase", phase=phase)
    if OPTIONS.get("linger") == phase:
        stop.wait(120)
        time.sleep(float(OPTIONS.get("goodbye", "0")))


def main() -> None:
    (RUN_DIR / "environment.json").write_text(json.dumps(dict(os.environ)))
    threading.Thread(target=watch_lifeline, daemon=True).start()
    if MODE in ("stubborn", "escape"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        nest(3, own_session=MODE == "escape")
    else:
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
    enter("preparing")
    if MODE == "user_error":
        failure = {"code": "dataset_invalid", "category": "user", "message": "no rows", "param": "/dataset/file"}
        emit("failure", failure=failure)
        sys.exit(64)
    first = resumed_step() + 1
    enter("training")
    for step in range(first, STEPS + 1):
        misbehave(step)
        emit("progress", phase="training", step=step, total_steps=STEPS, fraction=step / STEPS)
        emit("metrics", phase="training", step=step, values={"loss": 1.0 / step})
        if stop.wait(DELAY):
            checkpoint(step)
            sys.exit(75)
        if MODE != "stubborn" and step % 2 == 0:
            checkpoint(step)
    enter("evaluating")
    enter("exporting")
    if MODE != "no_student":
        student()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
    time.sleep(0)

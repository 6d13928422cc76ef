"""Compiles the kernels of this package for this processor, once, and loads them.

They are plain C++ without torch's headers, so that compiling takes seconds. The shared object lies in the user's
cache folder under a name that hangs on the sources, the compiler and the processor: another machine with
the same home makes its own. Where there is no compiler, :func:`load` returns None and callers do without.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
_FOLDER = Path(__file__).parent
_SOURCES = ("attention.cpp", "pairs.cpp", "panels.cpp", "rows.cpp", "vocabulary.cpp")
_HEADERS = ("panel.h", "simd.h")
_COMPILE_SECONDS = 300.0

_Pointer, _Int, _Float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURE = {"*": _Pointer, "i": _Int, "f": _Float}

_FUNCTIONS = {
    "norm": "****iif",
    "norm_backward": "******ii",
    "silu_times": "***i",
    "silu_times_backward": "***i",
    "rotate_halves": "***iiiif",
    "rotate_pairs": "*****fiiii*",
    "rows_attention": "*i*i*i*iiiiif**",
    "rows_attention_backward": "*i*i*i****iiiiif***",
    "decode_attention": "*****f***iiiiiii*",
    "draw": "*i*iif***",
    "logp": "*i*iif*",
    "loss_sums": "**iif*",
    "loss_gradient": "**iif****",
    "pack": "*i*ii",
    "product": "*i***iiiii",
    "product_by_rows": "**i*iiii",
    "gradient_by_weight": "*i*i**iiiii",
    "pack_pairs": "*i*ii",
    "product_of_pairs": "*i***iiiii",
}
"""Arguments of each kernel: a pointer, an integer or a number, in their order."""
_HALF = ("norm", "silu_times", "rotate_pairs", "decode_attention", "draw", "logp", "pack", "product", "pack_pairs")
"""Kernels that are there for bfloat16 as well."""
_HALF_ALONE = ("product_of_pairs",)
"""Kernels that are there for nothing else."""

log = logging.getLogger(__name__)


@functools.cache
def load() -> ctypes.CDLL | None:
    """The compiled kernels, with the types of their arguments set; None, with a warning, where that fails."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        log.warning("no C++ compiler was found: the trainer does without kernels of its own and is slower")
        return None
    try:
        library = ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", "") or error
        log.warning("the trainer's kernels could not be compiled, it is slower without them: %s", output)
        return None
    for name, signature in _FUNCTIONS.items():
        for suffix in ("bf16",) if name in _HALF_ALONE else ("f32", "bf16") if name in _HALF else ("f32",):
            function = getattr(library, f"{name}_{suffix}")
            function.argtypes = [_SIGNATURE[letter] for letter in signature]
            function.restype = None
    library.panel_outputs.restype = _Int
    return library


def _built(compiler: str) -> Path:
    """The shared object, compiled where it is not there yet. Raises OSError or CalledProcessError."""
    digest = hashlib.sha256()
    for name in (*_SOURCES, *_HEADERS):
        digest.update((_FOLDER / name).read_bytes())
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=30).stdout
    digest.update(b"\0".join([version, _processor(), *(flag.encode() for flag in _FLAGS)]))
    target = _cache_folder() / f"kernels-{digest.hexdigest()[:16]}.so"
    if target.exists():
        return target
    # Two processes at once both compile, and one of them is renamed over the other: the same content.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        aside = Path(folder) / target.name
        sources = [str(_FOLDER / name) for name in _SOURCES]
        command = [compiler, *_FLAGS, *sources, "-o", str(aside)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMPILE_SECONDS)
        aside.replace(target)
    return target


def _cache_folder() -> Path:
    """Where compiled kernels are kept; a folder of this process's own where the user's cannot be written."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minillm" / "kernels"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    except (OSError, RuntimeError):
        pass
    return Path(tempfile.mkdtemp(prefix="minillm-kernels-"))


def _processor() -> bytes:
    """What tells one processor's instructions from another's."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return b""
    found = re.search(r"^(flags|Features)\s*:.*$", text, re.MULTILINE)
    model = re.search(r"^model\s*:.*$", text, re.MULTILINE)
    return "\n".join(match.group() for match in (found, model) if match).encode()

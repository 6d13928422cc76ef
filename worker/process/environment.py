"""What a trainer may see of the worker's environment, and what it may not see of the worker."""

from __future__ import annotations

from collections.abc import Mapping

_PASSED_ON = frozenset(
    {
        *(
            "PATH",
            "HOME",
            "USER",
            "LOGNAME",
            "SHELL",
            "LANG",
            "LANGUAGE",
            "TZ",
            "TMPDIR",
            "LD_LIBRARY_PATH",
            "CC",
            "CXX",
        ),
        *(
            "CUDA_VISIBLE_DEVICES",
            "CUDA_DEVICE_ORDER",
            "HIP_VISIBLE_DEVICES",
            "CUDA_HOME",
            "NVIDIA_VISIBLE_DEVICES",
            "NVIDIA_DRIVER_CAPABILITIES",
            "OMP_NUM_THREADS",
            "XDG_CACHE_HOME",
        ),
        *("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "TORCH_HOME", "TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    }
)
_PASSED_PREFIXES = ("LC_", "NCCL_", "GLOO_")
_PROXIES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"})


def clean_environment(source: Mapping[str, str]) -> dict[str, str]:
    """The part of `source` that a trainer may see: no database or broker URL, no key, no token.

    A list of what is let through, so that a secret added tomorrow under any name stays out. Proxies are let
    through unless they carry a password.
    """
    return {
        name: value
        for name, value in source.items()
        if name in _PASSED_ON or name.startswith(_PASSED_PREFIXES) or (name in _PROXIES and "@" not in value)
    }

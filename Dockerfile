# One file for every part of the service; docker-compose.yml says which command each part runs.
#
#   TORCH=none   no trainer, no compiler: for the API, the sweeper and migrations
#   TORCH=cpu    the trainer with the small build of PyTorch: for workers without accelerators
#   TORCH=cuda   the trainer with PyPI's build, which brings the CUDA libraries: for workers with NVIDIA accelerators
#
# BASE_IMAGE may be any Debian or Ubuntu with Python 3.11 or newer. One with the CUDA toolkit, such as
# nvidia/cuda:<version>-devel-ubuntu24.04, is needed for jobs with `resources.cpu_offload` on accelerators alone:
# DeepSpeed compiles their optimizer with nvcc, of the CUDA version that PyTorch was built with.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# ------------------------------------------------------------------------------------------ packages
FROM ${BASE_IMAGE} AS packages
ARG TORCH=none
RUN command -v python3 >/dev/null || { \
      apt-get update && apt-get install --yes --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*; }
RUN python3 -m venv /opt/minillm
ENV PATH=/opt/minillm/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build

# What changes seldom first: a change of the source rebuilds the last layer alone.
COPY constraints.txt ./
RUN case "${TORCH}" in \
      none) exit 0 ;; \
      cpu) index=https://download.pytorch.org/whl/cpu ;; \
      cuda) index=https://pypi.org/simple ;; \
      *) echo "TORCH is none, cpu or cuda, not ${TORCH}" >&2; exit 1 ;; \
    esac; \
    pip install --no-deps --index-url "${index}" "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml ./
RUN extras="postgres worker"; [ "${TORCH}" = none ] || extras="${extras} trainer"; \
    python -c 'import sys, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
extras = project["optional-dependencies"]; \
print(*project["dependencies"], *(line for name in sys.argv[1:] for line in extras[name]), sep="\n")' ${extras} > requirements.txt \
    && pip install --constraint constraints.txt setuptools --requirement requirements.txt

COPY README.md LICENSE ./
COPY api ./api
COPY migrations ./migrations
COPY minillm_core ./minillm_core
COPY store ./store
COPY worker ./worker
RUN pip install --no-deps --no-build-isolation .

# ------------------------------------------------------------------------------------------- service
FROM ${BASE_IMAGE} AS service
ARG TORCH=none
# For the trainer a compiler and Python's headers: it and DeepSpeed compile small kernels on the machine that they run on.
RUN apt-get update \
    && { [ "${TORCH}" = none ] || apt-get install --yes --no-install-recommends g++; } \
    && { command -v python3 >/dev/null || apt-get install --yes --no-install-recommends python3 python3-dev; } \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --shell /usr/sbin/nologin minillm \
    && install --directory --owner minillm --group minillm /data /cache \
    && install --directory /models
COPY --from=packages /opt/minillm /opt/minillm
# What is fetched or compiled once per machine lives in /cache; the trainer is let see these variables.
ENV PATH=/opt/minillm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MINILLM_DATA_DIR=/data \
    MINILLM_MODELS_ROOT=/models \
    HF_HOME=/cache/huggingface \
    XDG_CACHE_HOME=/cache \
    TORCH_EXTENSIONS_DIR=/cache/torch_extensions \
    TRITON_CACHE_DIR=/cache/triton
WORKDIR /opt/minillm
USER minillm
EXPOSE 8000
CMD ["python", "-m", "api"]

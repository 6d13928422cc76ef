# One image for every part of the service; docker-compose.yml says which command each part runs.
#
#   TORCH=cpu    the small build of PyTorch: for the API, the sweeper and migrations, which never import it
#   TORCH=cuda   PyPI's build, which brings the CUDA libraries: for workers with NVIDIA accelerators
#
# BASE_IMAGE may be any Debian or Ubuntu with Python 3.11 or newer. One with the CUDA toolkit, such as
# nvidia/cuda:<version>-devel-ubuntu24.04, is needed for jobs with `resources.cpu_offload` on accelerators alone:
# DeepSpeed compiles their optimizer with nvcc, of the CUDA version that PyTorch was built with.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# ------------------------------------------------------------------------------------------ packages
FROM ${BASE_IMAGE} AS packages
ARG TORCH=cpu
RUN command -v python3 >/dev/null || { \
      apt-get update && apt-get install --yes --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*; }
RUN python3 -m venv /opt/minillm
ENV PATH=/opt/minillm/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build

# What changes seldom first: a change of the source rebuilds the last layer alone.
COPY constraints.txt ./
RUN case "${TORCH}" in \
      cpu) index=https://download.pytorch.org/whl/cpu ;; \
      cuda) index=https://pypi.org/simple ;; \
      *) echo "TORCH is cpu or cuda, not ${TORCH}" >&2; exit 1 ;; \
    esac \
    && pip install --no-deps --index-url "${index}" "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml ./
RUN python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
print(*project["dependencies"], *project["optional-dependencies"]["postgres"], sep="\n")' > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt

COPY README.md LICENSE ./
COPY api ./api
COPY client ./client
COPY migrations ./migrations
COPY minillm_core ./minillm_core
COPY store ./store
COPY worker ./worker
RUN pip install --no-deps --no-build-isolation .

# ------------------------------------------------------------------------------------------- service
FROM ${BASE_IMAGE} AS service
# The compiler and Python's headers: the trainer and DeepSpeed compile small kernels on the machine that they run on.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
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

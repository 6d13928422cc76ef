"""Python client and command line of the distillation service.

from minillm import Client

with Client() as minillm:                     # MINILLM_URL and MINILLM_API_KEY
    job = minillm.create_job(spec)
    job = minillm.wait(job.id)
    minillm.download(job.id, "student")
"""

from minillm.api import Client
from minillm.errors import ApiError, DownloadError, MinillmError, SpecError, Unreachable
from minillm.types import (
    Attempt,
    Checkpoint,
    Event,
    Failure,
    File,
    Job,
    LogChunk,
    Manifest,
    MetricPoint,
    Model,
    Progress,
)

__all__ = [
    "ApiError",
    "Attempt",
    "Checkpoint",
    "Client",
    "DownloadError",
    "Event",
    "Failure",
    "File",
    "Job",
    "LogChunk",
    "Manifest",
    "MetricPoint",
    "MinillmError",
    "Model",
    "Progress",
    "SpecError",
    "Unreachable",
]

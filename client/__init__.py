"""Python client and command line of the distillation service.

from client import MinillmClient

with MinillmClient() as minillm:                     # MINILLM_URL and MINILLM_API_KEY
    job = minillm.create_job(spec)
    job = minillm.wait(job.id)
    minillm.download(job.id, "student")
"""

from client.api import MinillmClient
from client.errors import ApiError, DownloadError, MinillmError, SpecError, Unreachable
from client.types import (
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
    "DownloadError",
    "Event",
    "Failure",
    "File",
    "Job",
    "LogChunk",
    "Manifest",
    "MetricPoint",
    "MinillmClient",
    "MinillmError",
    "Model",
    "Progress",
    "SpecError",
    "Unreachable",
]
